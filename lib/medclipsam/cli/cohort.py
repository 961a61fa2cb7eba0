"""`medclipsam cohort run | status | report | retry`."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.cli.common import (
    Parser,
    add_model_arguments,
    add_options,
    add_pipeline_options,
    given_options,
    pipeline_options,
    target_set,
    workspace_of,
)
from medclipsam.cohort.options import CohortOptions
from medclipsam.dicomweb.addresses import is_url, without_user
from medclipsam.dicomweb.options import PacsOptions

if TYPE_CHECKING:
    from medclipsam.cohort.command import Cohort, Machine
    from medclipsam.cohort.store import Run

# Options of the server that decide which series there are; all others concern how it is asked.
_QUERY = ("modalities", "filters")
# Options of the server's labels, which a cohort does not have.
_OF_LABELS = frozenset({"seg_type", "reports", "foreign_labels"})


def add_cohort(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    cohort = commands.add_parser(
        "cohort", help="masks and a table of findings of many studies, on one or many machines"
    )
    actions = cohort.add_subparsers(dest="action", required=True, parser_class=Parser)

    run = actions.add_parser("run", help="do all studies; started again it does what is missing")
    studies = run.add_argument_group("studies")
    studies.add_argument("--studies", help="folder of images, or URL of a DICOMweb server")
    studies.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="list of studies (CSV, Parquet) with image or series_uid, study_uid",
    )
    studies.add_argument("--pacs", metavar="URL", help="DICOMweb server of a list's series")
    studies.add_argument("--modality", help="DICOM modality of images that do not say (PNG, NIfTI)")
    studies.add_argument("--keep-list", action="store_true", help="do not look for new studies")
    asked = run.add_argument_group("what is looked for")
    asked.add_argument("--text", action="append", default=[], help='targets split by ";", or --text again')
    asked.add_argument(
        "--network", metavar="DIR|NAME", help="a trained network instead: its folder, or its name in the workspace"
    )
    asked.add_argument(
        "--embed", action="store_true", help="keep CLIP embeddings too, for the choice of images to label"
    )
    results = run.add_argument_group("results")
    results.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    results.add_argument(
        "--output",
        action="append",
        default=[],
        choices=("nifti", "seg", "pacs"),
        help="masks as NIfTI, as DICOM SEG, or stored in the PACS; may be repeated (default: nifti)",
    )
    results.add_argument(
        "--seg-type",
        choices=("BINARY", "LABELMAP", "FRACTIONAL"),
        default="BINARY",
        help="kind of DICOM SEG; FRACTIONAL holds the probabilities of a network (default: %(default)s)",
    )
    results.add_argument(
        "--to-rounds", action="store_true", help="put presence, uncertainty and masks into the project's workspace"
    )
    results.add_argument("--workspace", type=Path, help="of the project (default: that of the studies)")
    results.add_argument(
        "--continue-anyway", action="store_true", help="insist on the earlier run; refused if the request has changed"
    )
    planning = run.add_argument_group("plan")
    planning.add_argument("--dry-run", action="store_true", help="list the studies, do a few, and estimate the rest")
    planning.add_argument("--sample", type=int, default=5, help="studies done for the estimate (default: %(default)s)")
    add_model_arguments(run)
    add_pipeline_options(run)
    _add_machine(run)
    run.set_defaults(run=_run)

    retry = actions.add_parser("retry", help="try studies again that were set aside")
    _add_machine(retry)
    retry.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    retry.set_defaults(run=_retry)
    status = actions.add_parser("status", help="how far runs are")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)
    report = actions.add_parser("report", help="write table and report of what is done")
    report.set_defaults(run=_report)
    for action in (retry, status, report):
        action.add_argument("out", type=Path, metavar="DIR", help="folder of the runs, or of one run")
        action.add_argument("--run", dest="digest", metavar="DIGEST", help="a run of the folder (default: the latest)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machines")
    machine.add_argument(
        "--engine", choices=("ray", "local"), default="ray", help="Ray, or processes of this machine (default: ray)"
    )
    machine.add_argument("--address", help="Ray cluster, such as auto or HOST:6379 (default: this machine alone)")
    machine.add_argument("--shard", metavar="PART/PARTS", help="do one part only, without Ray, such as 3/40")
    add_options(machine, CohortOptions)
    pacs = parser.add_argument_group("DICOMweb server")
    for name, field in _pacs_settings().items():
        pacs.add_argument("--" + name.replace("_", "-"), metavar="VALUE", help=PacsOptions.options()[field].help)


def _run(given: argparse.Namespace) -> int:
    options = pipeline_options(given)
    machine = _machine(given)
    from medclipsam.cohort.command import conclude, list_studies, work
    from medclipsam.cohort.drive import StoppedError

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    cohort = _cohort(given, options)
    workspace = _rounds_workspace(given) if given.to_rounds else None
    if given.dry_run:
        return _plan(given, cohort, machine)
    run = cohort.open(continue_anyway=given.continue_anyway)
    if not (given.keep_list or machine.shard is not None) or not run.is_listed:
        added = list_studies(run, machine)
        print(f"{run.listed()['studies']} studies, {added} of them new: {run.folder}")
    problem: Exception | None = None
    with _stoppable() as stopped:
        try:
            work(run, machine, show=True, stopped=stopped)
        except StoppedError as error:
            problem = error
    if machine.shard is None:
        print(conclude(run, machine))
        if workspace is not None:
            from medclipsam.cohort.rounds import feed_rounds

            print(feed_rounds(run, workspace))
    else:
        counts = run.counts()
        print(f"{counts.done} of {counts.studies} studies of all parts are done; see `medclipsam cohort report`.")
    if problem is not None:
        raise problem
    return 0


def _plan(given: argparse.Namespace, cohort: Cohort, machine: Machine) -> int:
    from medclipsam.cohort.plan import make_plan
    from medclipsam.cohort.store import Run

    if given.sample < 0:
        raise InputError(f"--sample cannot be {given.sample}; allowed: a whole number from 0.")
    with tempfile.TemporaryDirectory(prefix="cohort-plan-") as place:
        run = Run.create(Path(place), cohort.request, cohort.source)
        print(make_plan(run, machine, sample=given.sample))
    return 0


def _retry(given: argparse.Namespace) -> int:
    from medclipsam.cohort.command import conclude, retry, work

    machine = _machine(given)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    run = _chosen(given)
    print(f"{retry(run)} studies are tried again.")
    with _stoppable() as stopped:
        work(run, machine, show=True, stopped=stopped)
    print(conclude(run, machine))
    return 0


def _status(given: argparse.Namespace) -> int:
    from medclipsam.cohort.command import status
    from medclipsam.cohort.store import runs_in

    runs = [_chosen(given)] if given.digest else runs_in(given.out)
    told = [status(run) for run in runs]
    if given.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return 0
    for each in told:
        method = each["request"]["method"]
        print(
            f"{each['run']}: {each['done']} of {each['studies']} studies done, {each['set_aside']} of them set aside, "
            f"{each['left']} left, {each['findings']} findings; {method.get('text') or method['kind']}."
        )
    return 0


def _report(given: argparse.Namespace) -> int:
    from medclipsam.cohort.command import Machine, conclude
    from medclipsam.dicomweb.client import Credentials

    print(conclude(_chosen(given), Machine(credentials=Credentials.from_environment())))
    return 0


def _chosen(given: argparse.Namespace) -> Run:
    from medclipsam.cohort.store import runs_in

    runs = runs_in(given.out)
    if given.digest is None:
        return runs[-1]
    found = [run for run in runs if run.digest.startswith(given.digest)]
    if len(found) != 1:
        raise InputError(
            f"{given.out} holds {len(found)} runs {given.digest!r}; there are {', '.join(run.digest for run in runs)}."
        )
    return found[0]


def _cohort(given: argparse.Namespace, options: ZeroShotOptions) -> Cohort:
    from medclipsam.cohort.command import Cohort, folder_source, manifest_source, pacs_source
    from medclipsam.cohort.methods import describe_request

    query = {name: value for name, value in _pacs_options(given).items() if name in _QUERY}
    if (given.studies is None) == (given.manifest is None):
        raise InputError("Name the studies with --studies FOLDER or URL, or with --manifest FILE.")
    if given.manifest is not None:
        source = manifest_source(given.manifest, without_user(given.pacs) if given.pacs else None, query)
    elif is_url(given.studies):
        source = pacs_source(without_user(given.studies), query)
    else:
        source = folder_source(Path(given.studies).expanduser())
    outputs = tuple(dict.fromkeys(given.output or ["nifti"]))
    request = describe_request(_method(given, options), outputs, given.modality, given.seg_type)
    return Cohort(given.out, request, source)


def _method(given: argparse.Namespace, options: ZeroShotOptions) -> dict[str, Any]:
    from medclipsam.cohort.methods import network_request, zero_shot_request
    from medclipsam.targets import joined_text, parse_prompt

    if given.network is not None:
        if given.text or given.embed:
            raise InputError("--network looks for what it was trained on; leave out --text and --embed.")
        return network_request(_network_folder(given))
    if not given.text and given.manifest is None:
        raise InputError("Say what is looked for with --text TEXT, or name a trained network with --network.")
    text = joined_text(given.text) if given.text else ""
    if text:
        parse_prompt(text, given.modality, target_set(given.targets_file))
    return zero_shot_request(text, given.weights, options, tuple(given.targets_file), embed=given.embed)


def _network_folder(given: argparse.Namespace) -> Path:
    folder = Path(given.network).expanduser()
    if folder.is_dir():
        return folder
    from medclipsam.training.store import NetworkStore

    network = NetworkStore(workspace_of(given) / "networks").current(given.network)
    if network is None:
        raise InputError(f"No network {given.network!r} is published in {workspace_of(given)}, and it is not a folder.")
    return network.folder


def _machine(given: argparse.Namespace) -> Machine:
    from medclipsam.cohort.command import Machine, parse_shard
    from medclipsam.dicomweb.client import Credentials

    if given.shard is not None and given.address is not None:
        raise InputError("--shard does one part without Ray; leave out --address.")
    options = CohortOptions.from_mapping(given_options(given, CohortOptions))
    pacs = {name: value for name, value in _pacs_options(given).items() if name not in _QUERY}
    checked = PacsOptions.from_mapping(_pacs_options(given))
    return Machine(
        engine=given.engine,
        address=given.address,
        device=given.device or "auto",
        shard=None if given.shard is None else parse_shard(given.shard),
        options=options,
        pacs=pacs,
        credentials=Credentials.from_environment(checked.token_file),
    )


def _pacs_options(given: argparse.Namespace) -> dict[str, str]:
    """Return the options of the DICOMweb server that are given, by their names."""
    return {field: value for name, field in _pacs_settings().items() if (value := getattr(given, name)) is not None}


def _pacs_settings() -> dict[str, str]:
    """Return the options of the DICOMweb server that a cohort has, by the names of their settings."""
    return {name: field for name, field in PacsOptions.settings().items() if field not in _OF_LABELS}


def _rounds_workspace(given: argparse.Namespace) -> Path:
    if given.shard is not None:
        raise InputError("--to-rounds needs all parts; leave out --shard, and run once without it when all are done.")
    if given.workspace is None and given.studies is None:
        raise InputError("--to-rounds needs the project's workspace; name it with --workspace DIR.")
    return workspace_of(given)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Let the first SIGINT or SIGTERM end a run after the studies that are in hand, and a second one at once."""
    asked: list[int] = []

    def stop(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("medclipsam: stopping after the studies in hand; once more to stop at once.", file=sys.stderr)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
