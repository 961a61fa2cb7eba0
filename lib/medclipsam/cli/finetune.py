"""`medclipsam finetune run | evaluate | history | rollback`: the command line of fine-tuning."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import InputError, OptionError
from medclipsam.cli.common import Parser, add_options, choose_device, given_options, workspace_of
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.weights import default_pair, resolve_clip

if TYPE_CHECKING:
    from medclipsam.finetune.store import ClipStore


def add_finetune(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    parser = commands.add_parser("finetune", help="fine-tune a CLIP on images with captions")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    run = actions.add_parser("run", help="fine-tune; an interrupted run goes on where it was")
    _add_data(run)
    run.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the run's folder; the weights in DIR/model"
    )
    run.add_argument("--val", action="append", default=[], type=Path, metavar="DATA", help="held-out pairs")
    run.add_argument("--weights", default=default_pair(), help="pair whose CLIP to start from (default: %(default)s)")
    run.add_argument("--restart", action="store_true", help="throw away what an earlier run left in --out")
    add_options(run, FinetuneOptions)
    run.set_defaults(run=_run)
    evaluate = actions.add_parser("evaluate", help="measure how well images and captions find each other")
    _add_data(evaluate)
    evaluate.add_argument("--weights", action="append", required=True, help="pair of weights or CLIP; may be repeated")
    evaluate.add_argument("--gallery", default="50", metavar="N", help='candidates, or "all" (default: %(default)s)')
    evaluate.add_argument("--runs", type=int, default=5, help="shuffles (default: %(default)s)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the random order (default: %(default)s)")
    evaluate.add_argument("--work", type=Path, metavar="DIR", help="where shards are unpacked")
    evaluate.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    evaluate.add_argument("--max-bad", type=float, default=0.1, help="share of rows that may be bad (%(default)s)")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_evaluate)
    history = actions.add_parser("history", help="what a server's fine-tunings came to, and which weights it uses")
    history.set_defaults(run=_history)
    rollback = actions.add_parser("rollback", help="let a server use earlier weights again")
    rollback.add_argument(
        "version", nargs="?", type=int, help="version to use, 0 for the original weights (default: the one used before)"
    )
    rollback.set_defaults(run=_rollback)
    for action in (history, rollback):
        action.add_argument("--studies", help="folder of images, or a DICOMweb URL, that the server serves")
        action.add_argument("--workspace", type=Path, help="where the server writes (default: that of the studies)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA", help="CSV, shards or folder with report texts")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder that a CSV's image names are relative to")
    parser.add_argument("--image-column", help="heading of the image in a CSV")
    parser.add_argument("--caption-column", help="heading of the caption in a CSV")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")


def _run(given: argparse.Namespace) -> int:
    options = FinetuneOptions.from_mapping(given_options(given, FinetuneOptions))
    _check(given, [given.weights], [*given.data, *given.val])
    if given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out} is a file; it must be a folder.")

    from medclipsam.base.distributed import rank, torchrun_group
    from medclipsam.finetune.run import finetune

    with torchrun_group(choose_device(given.device)) as where:
        first = rank() == 0
        work = given.out if first else given.out / f".process{rank()}"
        done = finetune(
            given.weights,
            _listing(given, given.data, work),
            given.out,
            options,
            validation=_listing(given, given.val, work / "validation") if given.val else None,
            device=where,
            restart=given.restart,
            write=first,
            show=first,
        )
        if first:
            sys.stdout.write(_summary(done.card, done.folder))
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    gallery = None if given.gallery == "all" else _whole(given.gallery)
    _check(given, given.weights, given.data)

    from medclipsam.finetune.run import measure

    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        listing = _listing(given, given.data, given.work or Path(temporary))
        for weights in given.weights:
            found[weights], pairs = measure(
                weights,
                listing,
                gallery=gallery,
                runs=given.runs,
                seed=given.seed,
                device=choose_device(given.device),
                workers=given.workers,
                max_bad=given.max_bad,
                show=True,
            )
    if given.json:
        sys.stdout.write(json.dumps({name: one.to_dict() for name, one in found.items()}, indent=2) + "\n")
        return 0
    for row in pairs.bad[:20]:
        sys.stderr.write(f"medclipsam: left out: {row.name}: {row.reason}\n")
    sys.stdout.write(
        f"{len(pairs)} pairs in galleries of {next(iter(found.values())).gallery}; mean and deviation, %\n"
    )
    for name, one in found.items():
        cells = [f"{key} {100 * one.rates[key]:.1f} ± {100 * one.deviations[key]:.1f}" for key in one.rates]
        sys.stdout.write(f"{name}: {'; '.join(cells)}\n")
    return 0


def _check(given: argparse.Namespace, weights: list[str], data: list[Path]) -> None:
    """Check what takes no time, before the imports that take seconds."""
    for source in data:
        if not source.exists():
            raise InputError(f"There are no pairs {source}.")
    if given.images is not None and not given.images.is_dir():
        raise InputError(f"--images {given.images} is not a folder.")
    for name in weights:
        resolve_clip(name)


def _history(given: argparse.Namespace) -> int:
    store = _store(given)
    for line in store.events():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(line["time"]))
        which = (
            f"{line['version']:04d}" if line["version"] else "the server's own" if line["event"] != "refused" else ""
        )
        sys.stdout.write(f"{when}  {line['event']:<11}  {which:<16}  {line.get('reason', '')}\n")
    current = store.current()
    sys.stdout.write(f"In use: {'the weights that the server is started with' if current is None else current}\n")
    return 0


def _rollback(given: argparse.Namespace) -> int:
    version = _store(given).rollback(given.version)
    used = "The weights that the server is started with" if version is None else f"Fine-tuned weights {version:04d}"
    sys.stdout.write(f"{used} are used from the next request on.\n")
    return 0


def _store(given: argparse.Namespace) -> ClipStore:
    from medclipsam.finetune.store import ClipStore

    place = workspace_of(given)
    if not place.is_dir():
        raise InputError(f"There is no workspace {place}.")
    return ClipStore(place / "finetuned")


def _listing(given: argparse.Namespace, sources: list[Path], work: Path) -> Any:
    from medclipsam.finetune.data import Listing, read_source

    named = {"image": given.image_column, "caption": given.caption_column}
    listing = Listing()
    for number, source in enumerate(sources):
        columns = {key: value for key, value in named.items() if value}
        listing.add(read_source(source, images=given.images, work=work / f"source{number}", columns=columns))
    return listing


def _summary(card: dict[str, Any], folder: Path) -> str:
    before, after = card["retrieval"]["before"], card["retrieval"]["after"]
    pairs = card["pairs"]
    lines = [
        f"{pairs['training']} pairs for training, {pairs['validation']} held out, {pairs['bad']} left out; "
        f"best epoch {card['best_epoch']} of {card['options']['epochs']}"
        + ("" if card["best_epoch"] else ": no epoch was better than the start, whose weights these are"),
        *(
            f"  {key}: {100 * before['rates'][key]:.1f} % before, {100 * after['rates'][key]:.1f} % after"
            for key in after["rates"]
        ),
        f"The weights are in {folder}; `medclipsam weights add NAME {folder}` gives them a name.",
    ]
    return "\n".join(lines) + "\n"


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 2:
        raise OptionError("gallery", text, "a whole number from 2, or all")
    return int(text)
