"""A training from the labels to a published network: collect, check, select, plan, train, validate, publish."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam import __version__
from medclipsam.base.errors import CancelledError, InputError
from medclipsam.base.progress import ProgressBar
from medclipsam.imaging import MedicalImage
from medclipsam.targets import TargetSet
from medclipsam.training.compare import Predict, Verdict, dice_by_class, judge, means, score
from medclipsam.training.distributed import train_in
from medclipsam.training.ensemble import Ensemble
from medclipsam.training.examples import Example, identity_of
from medclipsam.training.lock import TrainingLock
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import Plan, make_plan
from medclipsam.training.report import write_report
from medclipsam.training.selection import Candidate, Criteria, Selection, Vocabulary, select
from medclipsam.training.settings import Request, RunOptions
from medclipsam.training.split import Split
from medclipsam.training.store import NETWORK_FILES, Network, NetworkStore
from medclipsam.training.tracking import tracker
from medclipsam.training.trainer import Progress

logger = logging.getLogger(__name__)

# What a network's folder holds of what training leaves behind; its state for going on is of no more use.
_KEPT = (*NETWORK_FILES, "training.json")
# How often another network may be published in between before this one gives up.
_TRIES = 3


# Told how far a training is, as the state that anyone may read (`training_state`).
Tell = Callable[[Mapping[str, Any]], None]


def train_network(
    candidates: Callable[[], Iterable[Candidate]],
    targets: TargetSet,
    store: NetworkStore,
    request: Request,
    *,
    split: Split | None = None,
    tell: Tell | None = None,
    should_stop: Callable[[], bool] | None = None,
    show: bool = False,
) -> Network:
    """Train, validate and publish a network.

    Parameters
    ----------
    candidates : callable
        Returns the images that have a label; asked once the lock is held.
    targets : TargetSet
        Known targets.
    store : NetworkStore
        Where it is published.
    request : Request
        What is trained, and how.
    split : Split, optional
        How validation patients are drawn, where the workspace has not drawn them yet.
    tell : callable, optional
        Is told how far the training is.
    should_stop : callable, optional
        Asked after each step; true ends the training, which can be gone on with later.
    show : bool
        Whether to show progress on the terminal.

    Returns
    -------
    Network
        Whatever came of it: `status` says whether it is served.

    Raises
    ------
    TrainingRunsError
        If another training runs in this workspace.
    InputError
        If there is nothing to train on, or labels, names and options do not fit together.
    CancelledError
        If it was stopped.
    """
    options = request.run
    with TrainingLock(store.folder, options.name) as lock:
        state: dict[str, Any] = {"name": options.name, "started": time.time()}

        def report_progress(**more: Any) -> None:
            state.update(more)
            lock.tell(state)
            if tell is not None:
                tell(dict(state))

        try:
            network = _run(candidates, targets, store, request, split, report_progress, should_stop, show)
        except CancelledError:
            report_progress(state="stopped")
            raise
        except Exception as error:
            report_progress(state="failed", reason=str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise
        report_progress(state="done", version=network.version, status=network.status, reason=network.reason)
        return network


def _run(
    candidates: Callable[[], Iterable[Candidate]],
    targets: TargetSet,
    store: NetworkStore,
    request: Request,
    split: Split | None,
    report_progress: Callable[..., None],
    should_stop: Callable[[], bool] | None,
    show: bool,
) -> Network:
    begin = time.time()
    options = request.run
    training = request.training.resolved()
    drawn = store.split(split)
    published = store.current(options.name)
    before = published or store.newest(options.name)
    criteria = _criteria(options, training, before, targets)
    report_progress(state="collecting")
    # a network that fits people's labels less well than that is no judge of others
    trusted = (
        published is not None
        and (published.metrics.get("verdict", {}).get("child") or 0.0) >= options.min_agreement > 0
    )
    agreement = _LabelAgreement(published, training) if trusted and published is not None else None
    chosen = select(candidates(), criteria, targets, drawn, agreement=agreement, show=show)
    del agreement
    _check_stopped(should_stop)
    report_progress(state="planning", images=chosen.counts())
    logger.info("Training on %s", chosen.counts())
    plan = make_plan(chosen.training, chosen.classes, training, show=show)
    processes = options.processes or _processes(training)
    digest = _digest(chosen, training, plan, processes)
    work = store.work(options.name, digest)
    curves = tracker(options.tracking, store.folder / "tracking", f"{options.name}-{digest[:8]}", request.to_dict())
    report_progress(state="training")
    with curves, ProgressBar(desc="training", unit="epoch", show=show) as bar:

        def step(progress: Progress) -> None:
            told = progress_state(progress)
            _show_step(bar, progress, training.epochs)
            bar.set_postfix({key: f"{told[key]:.3f}" for key in ("loss", "dice") if told[key] is not None})
            if progress.stage == "train":
                curves.log(progress.epoch, {key: told[key] for key in ("loss", "dice")})
            report_progress(**told)

        train_in(
            processes,
            chosen.training,
            plan,
            training,
            work,
            validation=chosen.validation,
            progress=step,
            should_stop=should_stop,
            resume=options.resume,
        )
    report_progress(state="validating")
    network = _publish(store, request, chosen, work, before, begin, training, show)
    store.forget_work(options.name)
    return network


def _show_step(bar: ProgressBar, progress: Progress, epochs: int | None) -> None:
    """Show how far a training is; its images are prepared before the first epoch."""
    desc, unit = ("training", "epoch") if progress.stage == "train" else ("preparing images", "image")
    if (bar.unit, bar.total) != (unit, progress.epochs):
        bar.begin(desc, progress.epochs, unit=unit, seconds=progress.seconds or 0.0)
    bar.update(progress.epoch - bar.n)
    if unit == "image" and progress.epoch == progress.epochs and epochs is not None:
        bar.begin("training", epochs, unit="epoch")


def progress_state(progress: Progress) -> dict[str, Any]:
    """Return a training's progress as the state that anyone may read.

    Returns
    -------
    dict
        `stage`, `epoch`, `epochs`, `loss`, `dice` (mean over classes), `eta` (seconds); None for what is not known.
    """
    values = list(progress.dice.values()) if progress.dice else []
    return {
        "stage": progress.stage,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "loss": progress.loss,
        "dice": float(np.mean(values)) if values else None,
        "eta": progress.eta,
    }


def judge_again(
    store: NetworkStore,
    name: str,
    version: int,
    targets: TargetSet,
    candidates: Iterable[Candidate],
    device: str | None,
) -> Verdict:
    """Hold a network against the one that is served, both on the validation images there are by now.

    Parameters
    ----------
    store, name, version
        The network.
    targets : TargetSet
        Known targets.
    candidates : iterable of Candidate
        Images with labels.
    device : str, optional
        Where to predict.
    """
    network, current = store.get(name, version), store.current(name)
    criteria = Criteria(tuple(network.labels), network.modality)
    chosen = select(candidates, criteria, targets, store.split(), only_validation=True)
    return _verdict(chosen, network.folder, network.classes, current, device)[0]


def _criteria(options: RunOptions, training: TrainingOptions, before: Network | None, targets: TargetSet) -> Criteria:
    """Return what is selected; a network goes on with what the one before it segments."""
    labels = options.label_names
    modality = None if options.modality == "auto" else options.modality
    if before is not None:
        words = Vocabulary(targets, before.modality)
        if labels and {words.name(name) for name in labels} != set(before.labels):
            raise InputError(
                f"The network {options.name!r} segments {', '.join(before.labels)}; to train {', '.join(labels)} give "
                "it another name, such as network_2."
            )
        labels, modality = tuple(before.labels), modality or before.modality
    return Criteria(
        labels=labels,
        modality=modality,
        final_weight=training.final_weight,
        original_weight=training.original_weight,
        min_presence=options.min_presence,
        min_sam_score=options.min_sam_score,
        min_agreement=options.min_agreement,
        absent_below=options.absent_below,
    )


class _LabelAgreement:
    """How well a pseudo-label agrees with the network before: mean Dice over the classes."""

    def __init__(self, before: Network, training: TrainingOptions) -> None:
        self._network = before
        self._ensemble = Ensemble.load(before.folder, device=training.device)

    def __call__(self, example: Example, classes: Mapping[str, int]) -> float:
        image = example.read()
        found = predictor(self._ensemble, self._network.classes, classes)(image)
        given = example.layers(image, max(classes.values()))
        return float(np.mean(list(dice_by_class(found, given, classes).values())))


def predictor(ensemble: Ensemble, own: Mapping[str, int], wanted: Mapping[str, int]) -> Predict:
    """Return a function that predicts in another numbering of the classes.

    Parameters
    ----------
    ensemble : Ensemble
        The network.
    own, wanted : mapping of str to int
        Its numbering, and the one to answer in; classes are told apart by their names.
    """
    table = np.zeros(256, np.uint8)
    for name, index in own.items():
        table[index] = wanted.get(name, 0)

    def predict(image: MedicalImage) -> np.ndarray:
        return table[ensemble.predict(image, uncertainty="none").layers]

    return predict


def _verdict(
    chosen: Selection,
    folder: Path,
    classes: Mapping[str, int],
    parent: Network | None,
    device: str | None,
    show: bool = False,
) -> tuple[Verdict, dict[str, Any]]:
    """Score a network, and the one that is served, on the same validation images."""

    def score_network(network: Path, numbering: Mapping[str, int], desc: str) -> dict[str, dict[str, float]]:
        predict = predictor(Ensemble.load(network, device=device), numbering, chosen.classes)
        images = ProgressBar(chosen.validation, desc=desc, unit="image", show=show)
        return score(images, chosen.classes, predict)

    child = score_network(folder, classes, "validating")
    before = None
    if parent is not None:
        before = score_network(parent.folder, parent.classes, "validating the published network")
    shown = _score_masks(chosen) if parent is None else None
    verdict = judge(means(child), None if before is None else means(before), zero_shot=shown, patients=chosen.patients)
    by_class = {name: float(np.mean([each[name] for each in child.values()])) for name in chosen.classes if child}
    return verdict, {"verdict": verdict.to_dict(), "dice": by_class, "images": {"child": child, "parent": before}}


def _score_masks(chosen: Selection) -> dict[str, float]:
    """Return the mean Dice over the classes of the zero-shot masks of validation images, by image."""
    masks = {example.name: example for example in chosen.zero_shot}
    found = {}
    for example in chosen.validation:
        if example.name in masks:
            image = example.read()
            truth, made = (each.layers(image, len(chosen.classes)) for each in (example, masks[example.name]))
            found[example.name] = float(np.mean(list(dice_by_class(made, truth, chosen.classes).values())))
    return found


def _publish(
    store: NetworkStore,
    request: Request,
    chosen: Selection,
    work: Path,
    before: Network | None,
    begin: float,
    training: TrainingOptions,
    show: bool,
) -> Network:
    name = request.run.name
    trained = Ensemble.load(work, device="cpu")
    for _ in range(_TRIES):
        parent = store.current(name)
        verdict, metrics = _verdict(chosen, work, chosen.classes, parent, training.device, show)
        made = work / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        for file in _KEPT:
            shutil.copyfile(work / file, made / file)
        about = {
            "name": name,
            "status": verdict.status,
            "reason": verdict.sentence,
            "labels": chosen.labels,
            "classes": chosen.classes,
            "modality": chosen.modality,
            "parent": None if before is None else before.version,
            "data": chosen.counts(),
            "metrics": metrics,
            "options": {**request.run.to_dict(), **training.to_dict()},
            "identity": trained.identity,
        }
        write_report(
            made,
            about,
            chosen,
            multilabel=trained.plan.multilabel,
            seconds=time.time() - begin,
            curve=_curve(work),
        )
        network = store.add(made, about, expected=None if parent is None else parent.version)
        if network is not None:
            return network
        logger.info("Another network was published meanwhile; comparing again")
    raise InputError(f"Other networks {name!r} were published again and again while this one was compared with them.")


def _curve(work: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads((work / "training.json").read_text())
    except (OSError, ValueError):
        return []
    curve = content.get("curve") if isinstance(content, dict) else None
    return [entry for entry in curve if isinstance(entry, dict)] if isinstance(curve, list) else []


def _digest(chosen: Selection, training: TrainingOptions, plan: Plan, processes: int) -> str:
    """Return what tells trainings apart that cannot go on with each other's state."""
    examples = [identity_of(part) for part in (chosen.training, chosen.validation)]
    about = json.dumps([__version__, examples, training.to_dict(), plan.to_json(), processes], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()


def _processes(training: TrainingOptions) -> int:
    """Return one process a GPU where "cuda" means all of them."""
    import torch

    return max(1, torch.cuda.device_count()) if training.device == "cuda" else 1


def _check_stopped(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise CancelledError("The training was stopped.")
