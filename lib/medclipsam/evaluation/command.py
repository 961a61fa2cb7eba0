"""`medclipsam evaluate run`: from a request to a run's folder with its tables and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError, OptionError
from medclipsam.base.options import SALIENCY_METHODS, ZeroShotOptions
from medclipsam.base.progress import ProgressBar
from medclipsam.base.statistics import DRAWS
from medclipsam.evaluation.data import Case, check_cases, draw_cases, find_cases
from medclipsam.evaluation.predictors import NetworkPredictor, ZeroShotPredictor, ladder
from medclipsam.evaluation.report import sample_sentence, write_report
from medclipsam.evaluation.runner import PROTOCOLS, Methods, Plan, read_identity, run
from medclipsam.evaluation.search import IMAGES, search_settings
from medclipsam.evaluation.summary import Summary, summarise
from medclipsam.evaluation.tables import write_tables
from medclipsam.evaluation.tasks import read_prompts
from medclipsam.evaluation.text import NONE, markdown_table, with_interval
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.targets import TargetSet
from medclipsam.training.ensemble import Ensemble
from medclipsam.weights import default_pair

# Maps of one image: a few texts, a few saliency methods.
_MAP_CACHE = 256


@dataclass(frozen=True)
class Request:
    """What to measure, as the command line says it.

    Attributes
    ----------
    data, out : pathlib.Path
        Data and the run's folder.
    protocol : {"A", "B"}
        See `medclipsam.evaluation.runner.PROTOCOLS`.
    prompts : pathlib.Path or None
        Prompts of protocol A.
    split : str
        Split that is measured.
    tasks : tuple of str
        Only these; empty for all.
    tasks_file : pathlib.Path or None
        Instead of the data folder's own.
    limit : int or None
        Images of each folder, drawn by the seed of `options`; None for all.
    label_map : mapping of int to str
        Names of the values in final labels of a studies folder that were saved without names.
    search : bool
        Protocol A: whether settings are searched on `search_images` validation images of each task.
    search_images : int
        How many.
    ladder : tuple of str
        Saliency methods whose ablation ladder is measured; empty for none.
    sams : tuple of str
        SAM weights on the ladder, beside those of `weights`.
    sensitivity : bool
        Whether to ask all texts of each task.
    draws : int
        Bootstrap samples.
    restart : bool
        Whether to throw earlier results away.
    network : pathlib.Path or None
        Folder of a trained network that is measured in place of the zero-shot pipeline.
    weights, device : str
        Models, and where they run.
    targets_files : tuple of pathlib.Path
        The user's own targets.
    options : ZeroShotOptions
        Options of the pipeline; their seed is also that of the bootstrap.
    """

    data: Path
    out: Path
    protocol: str = "B"
    prompts: Path | None = None
    split: str = "test"
    tasks: tuple[str, ...] = ()
    tasks_file: Path | None = None
    limit: int | None = None
    label_map: Mapping[int, str] = field(default_factory=dict)
    search: bool = False
    search_images: int = IMAGES
    ladder: tuple[str, ...] = ()
    sams: tuple[str, ...] = ()
    sensitivity: bool = False
    draws: int = DRAWS
    restart: bool = False
    network: Path | None = None
    weights: str = field(default_factory=default_pair)
    device: str = "cpu"
    targets_files: tuple[Path, ...] = ()
    options: ZeroShotOptions = field(default_factory=ZeroShotOptions)

    def __post_init__(self) -> None:
        if (self.protocol == "A") != (self.prompts is not None):
            raise InputError("Protocol A takes its prompts from a file (--prompts), and protocol B takes none.")
        if self.search and self.protocol != "A":
            raise InputError("Settings are searched under protocol A only (--protocol A --search).")
        for method in self.ladder:
            if method not in SALIENCY_METHODS:
                raise OptionError("ladder", method, "saliency methods: " + ", ".join(SALIENCY_METHODS))
        if self.network is not None and (self.search or self.ladder or self.sensitivity):
            raise InputError("A network (--network) is measured as it is: without --search, --ladder or --sensitivity.")
        if self.sams and not self.ladder:
            raise InputError("Further SAM weights (--sam) are measured on the ladder only (--ladder).")
        if self.limit is not None and self.limit < 1:
            raise OptionError("limit", self.limit, "a whole number from 1")
        if not 100 <= self.draws <= 1_000_000:
            raise OptionError("draws", self.draws, "a whole number from 100 to 1000000")


def evaluate(request: Request, *, show: bool = False) -> str:
    """Measure what a request asks for, write all files, and return a short table for people.

    Raises
    ------
    MedClipSamError
        If the data, the weights or the folder of the run are not as they must be.
    """
    targets = TargetSet.load(*request.targets_files)
    cases = find_cases(
        request.data,
        targets,
        split=request.split,
        only=request.tasks,
        tasks_file=request.tasks_file,
        label_map=request.label_map,
    )
    sample: dict[str, int] = {}
    if request.limit is not None:
        sample = {"limit": request.limit, "seed": request.options.seed, "of": len(cases)}
        cases = draw_cases(cases, request.limit, request.options.seed, show=show)
    check_cases(ProgressBar(cases, desc="checking the data", unit="image", show=show))
    prompts = read_prompts(request.prompts, _image_names(cases), targets) if request.prompts else {}
    validation = _validation_cases(request, targets, cases) if request.search else {}
    if request.network is not None:
        network = NetworkPredictor(Ensemble.load(request.network, device=request.device), targets)
        for case in cases:
            network.check(case.task.prompt)
        plan = Plan(Methods(network), protocol=request.protocol, prompts=prompts, sample=sample)
    else:
        plan = _zero_shot_plan(request, targets, validation, prompts, sample, show=show)
    rows = run(cases, plan, request.out, restart=request.restart, show=show)
    summary = summarise(rows, draws=request.draws, seed=request.options.seed)
    write_tables(request.out, rows, summary)
    identity = read_identity(request.out)
    write_report(request.out, cases, rows, summary, identity)
    return _in_short(request, summary, identity)


def _zero_shot_plan(
    request: Request,
    targets: TargetSet,
    validation: dict[str, list[Case]],
    prompts: dict[str, dict[str, str]],
    sample: dict[str, int],
    *,
    show: bool,
) -> Plan:
    pipeline = ZeroShot.load(request.weights, device=request.device, targets=targets)
    pipeline.map_cache = _MAP_CACHE
    pipelines = {str(pipeline.weights["sam"]["name"]): pipeline}
    pipelines.update({name: pipeline.with_sam(name, device=request.device) for name in request.sams})
    by_task, found = {}, {}
    for task, images in validation.items():
        options, found[task] = search_settings(
            images, pipeline, request.options, images=request.search_images, show=show
        )
        by_task[task] = _methods(request, pipelines, options)
    return Plan(
        methods=_methods(request, pipelines, request.options),
        protocol=request.protocol,
        prompts=prompts,
        by_task=by_task,
        search=found,
        sample=sample,
    )


def _methods(request: Request, pipelines: dict[str, ZeroShot], options: ZeroShotOptions) -> Methods:
    predictor = ZeroShotPredictor(next(iter(pipelines.values())), options)
    on_and_off = (predictor.with_options(presence=True), predictor.with_options(presence=False))
    return Methods(
        predictor,
        ladder(pipelines, options, request.ladder),
        on_and_off if request.sensitivity else None,
    )


def _validation_cases(request: Request, targets: TargetSet, cases: list[Case]) -> dict[str, list[Case]]:
    """Return the validation images of each task that is measured."""
    names = list(dict.fromkeys(case.task.name for case in cases))
    found = find_cases(request.data, targets, split="val", only=names, tasks_file=request.tasks_file)
    if request.split == "val":
        raise InputError("Settings cannot be searched on the split that is measured; allowed: --split test or train.")
    return {name: [case for case in found if case.task.name == name] for name in names}


def _in_short(request: Request, summary: Summary, identity: Mapping[str, Any]) -> str:
    """Return the main figures for a terminal."""
    rows = []
    for name, part in [*summary["tasks"].items(), ("pooled", summary["pooled"])]:
        present = f"{part['dice_present']['n']} of {part['dice']['n']}"
        rows.append((name, present, with_interval(part["dice_present"]), with_interval(part["nsd_present"])))
    macro = summary["macro"]
    rows.append(("macro", NONE, with_interval(macro["dice_present"]), with_interval(macro["nsd_present"])))
    table = markdown_table(("task", "with target", "DSC %", "NSD %"), rows)
    drawn = f"\n{sample_sentence(identity)}" if identity.get("sample") else ""
    return f"Protocol {PROTOCOLS[request.protocol]}{drawn}\n\n{table}\n\nReport: {request.out / 'report.html'}"


def _image_names(cases: list[Case]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for case in cases:
        names.setdefault(case.task.name, []).append(case.image.name)
    return names
