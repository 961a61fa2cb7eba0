"""`medclipsam labels`: label sets written from a studies folder and read into one, who reads what, and consensus."""

from __future__ import annotations

import argparse
import getpass
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import InputError
from medclipsam.cli.common import Parser, add_options, given_options, target_set, workspace_of

if TYPE_CHECKING:
    from medclipsam.active.ledger import Ledger
    from medclipsam.imaging.label_map import LabelMap
    from medclipsam.server.studies.exchange import FolderLabelStore


def add_labels(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    from medclipsam.exchange.options import FORMATS, ExportOptions, ImportOptions

    labels = commands.add_parser("labels", help="export, import, assign and compare labels, and make one of several")
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
    readers = actions.add_parser("readers", help="images with labels of several readers, and how well these agree")
    readers.add_argument("--json", action="store_true", help="print JSON")
    readers.set_defaults(run=_readers)
    agree = actions.add_parser("consensus", help="make one final label of those of several readers")
    agree.add_argument(
        "--method", choices=("staple", "majority"), default="staple", help="way it is made (default: %(default)s)"
    )
    agree.add_argument(
        "--readers", type=int, default=2, metavar="N", help="least number of readers of an image (default: %(default)s)"
    )
    agree.add_argument("--dry-run", action="store_true", help="print what would happen, write nothing")
    agree.set_defaults(run=_consensus)
    assign = actions.add_parser("assign", help="give images to people, who alone are offered them; list who has which")
    assign.add_argument("images", nargs="*", metavar="IMAGE", help="id of an image; none to list assignments")
    assign.add_argument("--reader", action="append", default=[], metavar="NAME", help="person; may be repeated")
    assign.add_argument("--remove", action="store_true", help="take images back: of the readers named, or of everyone")
    assign.add_argument("--json", action="store_true", help="print JSON")
    assign.add_argument("--studies", help="folder of images, or URL of the DICOMweb server")
    assign.add_argument("--workspace", type=Path, help="where the ledger is (default: that of the studies)")
    assign.set_defaults(run=_assign)
    for action in (export, take, readers, agree):
        action.add_argument("--studies", required=True, type=Path, help="folder of images")
    for action in (export, take):
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
        parts = [f"label {would if case.action in ('new', 'replaced', 'beside') else ''}{_ACTIONS[case.action]}"]
        parts += [f"image {would}copied"] if case.image_copied else []
        parts += [f"{theirs!r} is {ours!r} here" for theirs, ours in case.renamed.items()]
        parts += [f"{name!r} left out" for name in case.left_out]
        sys.stdout.write(f"{case.name} -> {case.image_id}: {'; '.join(parts)}\n")
    return 0


def _readers(given: argparse.Namespace) -> int:
    from medclipsam.exchange.consensus import agreement

    found: dict[str, Any] = {}
    for image_id, store, readings in _several(given.studies, 2):
        agreed = agreement(readings)
        found[image_id] = {name: asdict(structure) for name, structure in agreed.items()}
        if not given.json:
            state = "waits for a consensus" if store.waits_for_consensus(image_id) else "has a consensus"
            sys.stdout.write(f"{image_id}: {', '.join(sorted(readings))}; {state}\n")
            for name, structure in agreed.items():
                for pair in structure.pairs:
                    told = [f"Dice {pair.dice:.3f}"]
                    told += [] if pair.hd95_mm is None else [f"HD95 {pair.hd95_mm:.1f} mm"]
                    told += [] if pair.kappa is None else [f"kappa {pair.kappa:.3f}"]
                    sys.stdout.write(f"  {name}: {', '.join(pair.readers)}: {', '.join(told)}\n")
                if structure.fleiss_kappa is not None:
                    sys.stdout.write(f"  {name}: all: Fleiss' kappa {structure.fleiss_kappa:.3f}\n")
    if given.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    elif not found:
        sys.stdout.write("No image has labels of several readers.\n")
    return 0


def _consensus(given: argparse.Namespace) -> int:
    from medclipsam.exchange.consensus import consensus
    from medclipsam.imaging.label_map import is_same_label
    from medclipsam.studies.final import CONSENSUS

    if given.readers < 2:
        raise InputError(f"--readers {given.readers} cannot be used; allowed: 2 or more.")
    saved = 0
    for image_id, store, readings in _several(given.studies, given.readers):
        made = consensus(readings, given.method)
        before = store.label(image_id, made.label.image)
        same = before is not None and CONSENSUS in before[1] and is_same_label(before[0], made.label)
        if not same and not given.dry_run:
            about = {"method": given.method, "agreement": made.agreement}
            store.save(image_id, made.label, {"saved_by": CONSENSUS, CONSENSUS: about})
        saved += not same
        did = "is there already" if same else "would be saved" if given.dry_run else "saved"
        sys.stdout.write(f"{image_id}: consensus of {', '.join(sorted(readings))} {did}\n")
        for reader, dice in sorted(made.agreement.items()):
            told = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
            sys.stdout.write(f"  {reader}: Dice with it {told or 'not known'}\n")
    if not saved:
        sys.stdout.write("There is nothing to save.\n")
    return 0


def _assign(given: argparse.Namespace) -> int:
    from medclipsam.active import LEDGER_FILE
    from medclipsam.active.ledger import Ledger
    from medclipsam.server.base.names import checked_person

    readers = [checked_person(name) for name in dict.fromkeys(given.reader)]
    if given.images and not (readers or given.remove):
        raise InputError("Nobody is named whom the images are for; name each with --reader NAME, or say --remove.")
    if given.remove and not (given.images or readers):
        raise InputError("--remove names neither image nor reader; allowed: one of them, or both.")
    workspace = workspace_of(given)
    workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
    ledger = Ledger(workspace / LEDGER_FILE)
    unknown = _unknown_images(given, ledger)
    if unknown:
        raise InputError(f"Image {unknown[0]!r} is not among the studies; allowed: the ids that the server lists.")
    if given.remove:
        pairs = itertools.product(given.images or (None,), readers or (None,))
        ended = [each for image, reader in pairs for each in ledger.unassign(image, reader)]
        shown, verb = ended, "no longer "
    elif given.images:
        shown, verb = ledger.assign(list(dict.fromkeys(given.images)), readers, getpass.getuser()), ""
    else:
        shown, verb = [each for each in ledger.assignments() if not readers or each.reader in readers], ""
    if given.json:
        sys.stdout.write(json.dumps([asdict(each) for each in shown], indent=2) + "\n")
        return 0
    for each in shown:
        sys.stdout.write(f"{each.image}: {verb}{each.reader}{', done' if each.done else ''}\n")
    if not shown:
        sys.stdout.write("There are no such assignments.\n")
    return 0


def _unknown_images(given: argparse.Namespace, ledger: Ledger) -> list[str]:
    """Return the images of an assignment that are not among the studies."""
    from medclipsam.server.studies.exchange import FolderLabelStore

    if given.remove or not given.images:
        return []
    if given.studies is not None and not given.studies.startswith(("http://", "https://")):
        known = FolderLabelStore(Path(given.studies)).images()
        return [image for image in given.images if image not in known]
    # those of a DICOMweb server are known once a server has listed them
    return [image for image in given.images if not ledger.knows(image)]


def _several(studies: Path, least: int) -> Iterator[tuple[str, FolderLabelStore, dict[str, LabelMap]]]:
    """Yield the images that so many readers have labelled, and their labels."""
    from medclipsam.imaging import read_image
    from medclipsam.server.studies.exchange import FolderLabelStore

    store = FolderLabelStore(studies)
    for image_id, path in sorted(store.images().items()):
        if store.count_readers(image_id) >= least:
            yield image_id, store, store.readings(image_id, read_image(path))


_ACTIONS = {
    "new": "saved",
    "replaced": "saved in place of another one",
    "unchanged": "is there already",
    "beside": "saved beside that of another reader",
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
