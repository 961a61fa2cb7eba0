"""`medclipsam train run | history | show | publish | rollback | export`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import InputError
from medclipsam.cli.common import Parser, add_options, given_options, workspace_of

if TYPE_CHECKING:
    from medclipsam.training.store import Network, NetworkStore


def add_train(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    from medclipsam.training.options import TrainingOptions
    from medclipsam.training.settings import RunOptions
    from medclipsam.training.split import Split

    train = commands.add_parser("train", help="train a network on the labels of a studies folder")
    actions = train.add_subparsers(dest="action", required=True, parser_class=Parser)

    run = actions.add_parser("run", help="train, validate, publish")
    run.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    group = run.add_argument_group("validation images, which are drawn once for a workspace")
    for name, field in Split.settings().items():
        group.add_argument("--" + name.replace("_", "-"), metavar="VALUE", help=Split.options()[field].help)
    add_options(run.add_argument_group("what is trained"), RunOptions)
    add_options(run.add_argument_group("how it is trained"), TrainingOptions)
    run.set_defaults(run=_run)

    history = actions.add_parser("history", help="list what was trained, and what is served")
    history.set_defaults(run=_history)
    show = actions.add_parser("show", help="the report of a network")
    show.add_argument("version", nargs="?", type=int, help="by default the one that is served, else the newest")
    show.set_defaults(run=_show)
    publish = actions.add_parser("publish", help="judge a network again by today's validation images, and serve it")
    publish.add_argument("version", type=int, help="version of the network")
    publish.add_argument("--force", action="store_true", help="serve it whatever it scores")
    publish.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    publish.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    publish.set_defaults(run=_publish)
    rollback = actions.add_parser("rollback", help="serve an earlier network again")
    rollback.add_argument("version", nargs="?", type=int, help="by default the one served before")
    rollback.set_defaults(run=_rollback)
    export = actions.add_parser("export", help="write a network as a MONAI bundle or as ONNX, with a model card")
    export.add_argument("out", type=Path, metavar="OUT", help="new folder of a bundle, or a file that ends in .onnx")
    export.add_argument("--version", type=int, help="version of the network (default: the one that is served)")
    export.add_argument(
        "--format", choices=("bundle", "onnx"), default="bundle", help="form of the network (default: %(default)s)"
    )
    export.add_argument("--with-onnx", action="store_true", help="put the network into the bundle as ONNX too")
    export.set_defaults(run=_export)
    for action in (run, history, show, publish, rollback, export):
        needs = action in (run, publish)
        action.add_argument("--studies", type=Path, required=needs, help="folder of images and labels")
        action.add_argument("--workspace", type=Path, help="where the networks are (default: that of the studies)")
    for action in (run, publish):
        action.add_argument(
            "--label-map",
            action="append",
            default=[],
            metavar="VALUE=NAME|FILE",
            help="names of values in labels saved without names: 1=heart (may be repeated), or a YAML or JSON file",
        )
    for action in (history, show, publish, rollback, export):
        action.add_argument("--name", default="network", help="name of the network (default: %(default)s)")
    for action in (history, show):
        action.add_argument("--json", action="store_true", help="print JSON")


def _store(given: argparse.Namespace) -> NetworkStore:
    from medclipsam.training.store import NetworkStore

    if given.studies is not None and not given.studies.is_dir():
        raise InputError(f"Studies {given.studies} is not a folder.")
    return NetworkStore(workspace_of(given) / "networks")


def _run(given: argparse.Namespace) -> int:
    from medclipsam.targets import TargetSet
    from medclipsam.training.collect import read_label_map, read_studies
    from medclipsam.training.options import TrainingOptions
    from medclipsam.training.run import train_network
    from medclipsam.training.settings import Request, RunOptions
    from medclipsam.training.split import Split

    request = Request.from_mapping(given_options(given, RunOptions, TrainingOptions))
    store = _store(given)
    label_map = read_label_map(given.label_map)
    split = None
    if given.validation_share is not None or given.validation_seed is not None:
        split = Split.from_settings(vars(given))
    network = train_network(
        lambda: read_studies(given.studies, label_map),
        TargetSet.load(*given.targets_file),
        store,
        request,
        split=split,
        show=True,
    )
    sys.stdout.write(f"{_in_short(network)}\nReport: {network.folder / 'report.md'}\n")
    return 1 if network.status == "refused" else 0


def _history(given: argparse.Namespace) -> int:
    store = _store(given)
    networks, current = store.history(given.name), store.current(given.name)
    if given.json:
        content = {
            "networks": [network.to_dict() for network in networks],
            "current": None if current is None else current.version,
            "events": store.events(given.name),
        }
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return 0
    if not networks:
        sys.stdout.write(f"No network {given.name!r} has been trained here.\n")
    for network in networks:
        served = "*" if current is not None and network.version == current.version else " "
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(network.created))
        sys.stdout.write(f"{served} {network.version:4d}  {made}  {_in_short(network)}\n")
    return 0


def _show(given: argparse.Namespace) -> int:
    store = _store(given)
    network = store.current(given.name) if given.version is None else store.get(given.name, given.version)
    if network is None:
        every = store.history(given.name)
        if not every:
            raise InputError(f"No network {given.name!r} has been trained here.")
        network = every[-1]
    file = network.folder / ("report.json" if given.json else "report.md")
    sys.stdout.write(file.read_text(encoding="utf-8"))
    return 0


def _publish(given: argparse.Namespace) -> int:
    from medclipsam.targets import TargetSet
    from medclipsam.training.collect import read_label_map, read_studies
    from medclipsam.training.run import judge_again

    store = _store(given)
    if given.force:
        store.publish(given.name, given.version, "by hand")
        sys.stdout.write(f"Version {given.version} of {given.name} is served.\n")
        return 0
    candidates = read_studies(given.studies, read_label_map(given.label_map))
    targets = TargetSet.load(*given.targets_file)
    verdict = judge_again(store, given.name, given.version, targets, candidates, given.device)
    if verdict.status != "published":
        sys.stdout.write(f"Version {given.version} of {given.name} is not served. {verdict.sentence}\n")
        return 1
    store.publish(given.name, given.version, verdict.sentence)
    sys.stdout.write(f"Version {given.version} of {given.name} is served. {verdict.sentence}\n")
    return 0


def _rollback(given: argparse.Namespace) -> int:
    network = _store(given).rollback(given.name, given.version)
    sys.stdout.write(f"Version {network.version} of {network.name} is served again.\n")
    return 0


def _export(given: argparse.Namespace) -> int:
    from medclipsam.active import LEDGER_FILE
    from medclipsam.active.ledger import Ledger
    from medclipsam.active.summary import summarise
    from medclipsam.exchange.network import export_bundle, export_onnx

    store = _store(given)
    network = store.current(given.name) if given.version is None else store.get(given.name, given.version)
    if network is None:
        raise InputError(f"No network {given.name!r} is served here; name one with --version.")
    if given.format == "onnx":
        made = export_onnx(network, given.out)
    else:
        ledger = workspace_of(given) / LEDGER_FILE
        facts = summarise(Ledger(ledger)) if ledger.is_file() else None
        made = export_bundle(network, given.out, onnx=given.with_onnx, facts=facts)
    sys.stdout.write(f"{_in_short(network)}\n{made}\n")
    return 0


def _in_short(network: Network) -> str:
    labels = ", ".join(network.labels)
    return f"{network.name} version {network.version} ({labels}): {network.status}. {network.reason}"
