"""`medclipsam evaluate run`: from a request to a run's folder with its tables and reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medclipsam.errors import InputError, OptionError
from medclipsam.evaluation.data import Case, check_cases, find_cases
from medclipsam.evaluation.predictors import ZeroShotPredictor
from medclipsam.evaluation.runner import Plan, run
from medclipsam.evaluation.statistics import DRAWS
from medclipsam.evaluation.summary import summarise
from medclipsam.evaluation.tables import write_tables
from medclipsam.evaluation.tasks import read_prompts
from medclipsam.options import ZeroShotOptions
from medclipsam.targets import TargetSet
from medclipsam.zeroshot import ZeroShot

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
        The first so many images of each folder.
    sensitivity : bool
        Whether to ask all texts of each task.
    draws : int
        Bootstrap samples.
    restart : bool
        Whether to throw earlier results away.
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
    sensitivity: bool = False
    draws: int = DRAWS
    restart: bool = False
    weights: str = "demo"
    device: str = "cpu"
    targets_files: tuple[Path, ...] = ()
    options: ZeroShotOptions = field(default_factory=ZeroShotOptions)

    def __post_init__(self) -> None:
        if (self.protocol == "A") != (self.prompts is not None):
            raise InputError("Protocol A takes its prompts from a file (--prompts), and protocol B takes none.")
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
        limit=request.limit,
    )
    check_cases(cases)
    prompts = read_prompts(request.prompts, _image_names(cases)) if request.prompts else {}
    pipeline = ZeroShot.load(request.weights, device=request.device, targets=targets)
    pipeline.map_cache = _MAP_CACHE
    predictor = ZeroShotPredictor(pipeline, request.options)
    plan = Plan(
        predictor=predictor,
        protocol=request.protocol,
        prompts=prompts,
        sensitivity=(predictor.with_options(presence=True), predictor.with_options(presence=False))
        if request.sensitivity
        else None,
    )
    rows = run(cases, plan, request.out, restart=request.restart, show=show)
    summary = summarise(rows, draws=request.draws, seed=request.options.seed)
    write_tables(request.out, rows, summary)
    return f"{len(rows)} cases of {len(summary['tasks'])} tasks: {request.out / 'summary.json'}"


def _image_names(cases: list[Case]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for case in cases:
        names.setdefault(case.task.name, []).append(case.image.name)
    return names
