"""`medclipsam labels`: label sets written from a studies folder, and read into one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.cli.common import Parser, add_options, given_options, target_set


def add_labels(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    from medclipsam.exchange.options import FORMATS, ExportOptions, ImportOptions

    labels = commands.add_parser("labels", help="export and import sets of images with labels")
    actions = labels.add_subparsers(dest="action", required=True, parser_class=Parser)
    export = actions.add_parser("export", help="write the final labels of a studies folder, and their images, as a set")
    export.add_argument("out", type=Path, metavar="OUT", help="new folder of the set")
    add_options(export.add_argument_group("options of the export"), ExportOptions)
    export.set_defaults(run=_export)
    take = actions.add_parser("import", help="read a set into a studies folder: all of it, or nothing")
    take.add_argument("set", type=Path, metavar="SET", help="folder of the set")
    take.add_argument("--dry-run", action="store_true", help="check everything, print what would happen, write nothing")
    take.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="name of a structure here for one in the set; THEIRS= leaves it out",
    )
    take.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    add_options(take.add_argument_group("options of the import"), ImportOptions)
    take.set_defaults(run=_import)
    for action in (export, take):
        action.add_argument("--studies", required=True, type=Path, help="folder of images")
        action.add_argument("--format", required=True, choices=FORMATS, help="format of the set")


def _export(given: argparse.Namespace) -> int:
    from medclipsam.exchange import ExportOptions, export_labels

    options = ExportOptions.from_mapping(given_options(given, ExportOptions))
    made = export_labels(given.studies, given.out, given.format, options, progress=_bar())
    sys.stdout.write(f"{made.folder}: {len(made.cases)} images with labels of {', '.join(made.classes)}\n")
    for image, reason in made.left_out.items():
        sys.stdout.write(f"  left out: {image}: {reason}\n")
    return 0


def _import(given: argparse.Namespace) -> int:
    from medclipsam.exchange import ImportOptions, import_labels
    from medclipsam.server.studies.exchange import FolderLabelStore

    options = ImportOptions.from_mapping(given_options(given, ImportOptions))
    found = import_labels(
        given.set,
        given.format,
        FolderLabelStore(given.studies),
        options,
        dry_run=given.dry_run,
        names=_names(given.map),
        targets=target_set(given.targets_file),
        progress=_bar(),
    )
    would = "would be " if given.dry_run else ""
    for case in found:
        parts = [f"label {would if case.action in ('new', 'replaced') else ''}{_ACTIONS[case.action]}"]
        parts += [f"image {would}copied"] if case.image_copied else []
        parts += [f"{theirs!r} is {ours!r} here" for theirs, ours in case.renamed.items()]
        parts += [f"{name!r} left out" for name in case.left_out]
        sys.stdout.write(f"{case.name} -> {case.image_id}: {'; '.join(parts)}\n")
    return 0


_ACTIONS = {
    "new": "saved",
    "replaced": "saved in place of another one",
    "unchanged": "is there already",
    "kept": "not taken: the image has another one (--existing replace)",
}


def _names(pairs: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for pair in pairs:
        theirs, equals, ours = pair.partition("=")
        if not equals or not theirs.strip() or theirs.strip() in names:
            raise InputError(f"--map {pair!r} cannot be used; allowed: THEIRS=OURS, each of theirs once.")
        names[theirs.strip()] = ours.strip()
    return names


def _bar() -> Callable[[int, int], None]:
    """Return a function that shows how many steps are done."""
    from medclipsam.base.progress import ProgressBar

    bar = ProgressBar(unit="step", leave=False)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress
