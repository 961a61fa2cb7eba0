"""`medclipsam rounds show | labels | plot | simulate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.active import LEDGER_FILE
from medclipsam.base.errors import InputError
from medclipsam.cli.common import Parser, workspace_of
from medclipsam.weights import default_pair

if TYPE_CHECKING:
    from medclipsam.active.ledger import Ledger


def add_rounds(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    rounds = commands.add_parser("rounds", help="what was labelled and trained, round by round")
    actions = rounds.add_subparsers(dest="action", required=True, parser_class=Parser)

    show = actions.add_parser("show", help="a line for each round")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_show)
    labels = actions.add_parser("labels", help="a line for each label: who, when, which image, what, verdict")
    labels.add_argument("--csv", action="store_true", help="as CSV")
    labels.add_argument("--all", action="store_true", help="list replaced and removed versions too")
    labels.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    labels.set_defaults(run=_labels)
    plot = actions.add_parser("plot", help="learning curve and effort of correction as a picture or page")
    plot.add_argument("out", type=Path, help="file to write, .png or .html")
    plot.set_defaults(run=_plot)
    for action in (show, labels, plot):
        action.add_argument("--studies", help="folder of images and labels, or URL of the DICOMweb server")
        action.add_argument("--workspace", type=Path, help="where the ledger is (default: that of the studies)")

    simulate = actions.add_parser("simulate", help="hold strategies against each other, the true masks as annotators")
    simulate.add_argument("data", type=Path, help="data in the paper's layout, with a train and a test split")
    simulate.add_argument("--out", type=Path, required=True, help="folder of the results; an earlier run goes on")
    simulate.add_argument("--task", action="append", default=[], help="structure to label; may be given several times")
    simulate.add_argument(
        "--strategy", action="append", default=[], help="strategy to play; may be given several times"
    )
    simulate.add_argument("--seeds", type=int, default=10, help="runs of each strategy (default: %(default)s)")
    simulate.add_argument("--first-seed", type=int, default=0, help="first of these seeds (default: %(default)s)")
    simulate.add_argument("--initial", type=int, help="images of the first round")
    simulate.add_argument("--batch", type=int, help="images of each further round")
    simulate.add_argument("--rounds", type=int, help="further rounds")
    simulate.add_argument("--control", type=int, help="images on which the effort of correction is measured")
    simulate.add_argument(
        "--go-on",
        action="store_true",
        help="start each training from the network of the round before, and not from nothing",
    )
    simulate.add_argument("--weights", default=default_pair(), help="pair whose CLIP embeds the images (%(default)s)")
    simulate.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    simulate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the training or of the choice, as in --set epochs=12",
    )
    simulate.set_defaults(run=_simulate)


def _ledger(given: argparse.Namespace) -> Ledger:
    from medclipsam.active.ledger import Ledger

    file = workspace_of(given) / LEDGER_FILE
    if not file.is_file():
        raise InputError(
            f"There is no ledger {file}: no image has been requested from a server of these studies yet. Networks that "
            "were trained on the command line are listed by `medclipsam train history`."
        )
    return Ledger(file)


def _show(given: argparse.Namespace) -> int:
    from medclipsam.active.summary import as_text, summarise
    from medclipsam.training.store import NetworkStore

    place = workspace_of(given)
    if not (place / LEDGER_FILE).is_file():
        store = NetworkStore(place / "networks")
        trained = [network for name in store.names() for network in store.history(name)]
        if trained:
            # trained without a server: there are networks, and no labels that it was asked to keep
            if given.json:
                content = {"rounds": [], "networks": [network.to_dict() for network in trained]}
                sys.stdout.write(json.dumps(content, indent=2) + "\n")
                return 0
            sys.stdout.write("No rounds yet: no image has been requested from a server of these studies.\n")
            sys.stdout.write("Trained on the command line (details: medclipsam train history):\n")
            for network in trained:
                sys.stdout.write(f"  {network.name} version {network.version}: {network.status}. {network.reason}\n")
            return 0
    summary = summarise(_ledger(given))
    sys.stdout.write(json.dumps(summary, indent=2) + "\n" if given.json else as_text(summary))
    return 0


def _labels(given: argparse.Namespace) -> int:
    from medclipsam.active.summary import LABEL_COLUMNS, as_csv, label_rows
    from medclipsam.targets import TargetSet, label_table
    from medclipsam.training.collect import read_label_names

    ledger = _ledger(given)
    names: dict[str, dict[int, str]] = {}
    if given.studies is not None and Path(given.studies).is_dir():
        names = read_label_names(Path(given.studies))
    names[""] = {value: name for name, value in label_table(TargetSet.load(*given.targets_file)).items()}
    rows = label_rows(ledger, names, every=given.all)
    if given.csv:
        sys.stdout.write(as_csv(rows))
        return 0
    shown = [column for column in LABEL_COLUMNS[:8] if column != "reviewers"]
    table = [shown, *([str(row[column] if row[column] is not None else "-") for column in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0


def _plot(given: argparse.Namespace) -> int:
    from medclipsam.active.summary import plot, summarise

    sys.stdout.write(f"{plot(summarise(_ledger(given)), given.out)}\n")
    return 0


def _simulate(given: argparse.Namespace) -> int:
    from medclipsam.active.simulate import SimulationOptions, simulate
    from medclipsam.active.strategies import SamplingOptions
    from medclipsam.active.verdict import as_markdown, draw_curves, judge
    from medclipsam.pipeline.zero_shot import ZeroShot
    from medclipsam.targets import TargetSet
    from medclipsam.training.options import TrainingOptions

    sampling: dict[str, Any] = {"validation": 0.0}
    training: dict[str, Any] = {"preset": "small"}
    for entry in given.set:
        key, separator, value = entry.partition("=")
        if not separator:
            raise InputError(f"{entry!r} sets nothing; allowed: KEY=VALUE, such as epochs=12.")
        (sampling if key in SamplingOptions.options() else training)[key] = value
    chosen: dict[str, Any] = {key: getattr(given, key) for key in ("initial", "batch", "rounds", "control")}
    chosen["strategies"] = tuple(given.strategy) or None
    options = SimulationOptions(
        **{key: value for key, value in chosen.items() if value is not None},
        seeds=tuple(range(given.first_seed, given.first_seed + given.seeds)),
        sampling=SamplingOptions.from_mapping(sampling),
        training=TrainingOptions.from_mapping(training),
        go_on=given.go_on,
    )
    targets = TargetSet.load(*given.targets_file)
    encoder = ZeroShot.load(given.weights, targets=targets).encoder
    runs = simulate(given.data, given.out, options, encoder, targets, tasks=given.task, show=True)
    verdict = judge(runs, options.strategies)
    text = as_markdown(verdict)
    (given.out / "report.md").write_text(text, encoding="utf-8")
    draw_curves(verdict, given.out / "curves.png")
    sys.stdout.write(text)
    return 0
