"""Rounds played out: annotators who draw the true masks, so that strategies can be held against each other.

For each seed all strategies begin with the same images, drawn by lot, and train with the same options; they differ in
which images come next. The choice is made by the code that serves annotators, from a ledger of its own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import field_validator

from medclipsam.active.effort import effort_of_masks
from medclipsam.active.embedding import embed
from medclipsam.active.ledger import Ledger, Score
from medclipsam.active.pool import Pool
from medclipsam.active.score import score_of
from medclipsam.active.strategies import DEFAULT, SCORED, STRATEGIES, SamplingOptions, choose
from medclipsam.base.errors import InputError
from medclipsam.base.files import write_json
from medclipsam.base.formats import SEG_SUFFIX
from medclipsam.base.metrics import dice
from medclipsam.base.options import Options, option
from medclipsam.base.progress import ProgressBar
from medclipsam.encoders import Encoder
from medclipsam.evaluation.data import Case, find_cases, read_case
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.label_map import LabelMap
from medclipsam.targets import TargetSet
from medclipsam.training.ensemble import Ensemble
from medclipsam.training.examples import Example
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import make_plan
from medclipsam.training.trainer import train

# A lease that outlasts any simulation.
_FOREVER = 1e12
_READER = "simulated annotator"


class SimulationOptions(Options):
    """What is played."""

    strategies: tuple[str, ...] = option((DEFAULT, "random", "foreground"), "Strategies to hold against each other")
    seeds: tuple[int, ...] = option(tuple(range(10)), "Seeds, each of which is one run", allowed="one or more")
    initial: int = option(10, "Images of the first round", 1)
    batch: int = option(10, "Images of each further round", 1)
    rounds: int = option(5, "Number of further rounds", 1)
    # Drawn by lot from the training split, and never labelled.
    control: int = option(30, "Images on which the effort of correction is measured", 1)
    # Validation images have no part here: the test split measures.
    sampling: SamplingOptions = option(SamplingOptions(validation=0), "Options of the choice")
    training: TrainingOptions = option(TrainingOptions(preset="small"), "Options of each training but its seed")
    # The network of all labels then starts from that of the first round too, and is trained for as many epochs as all
    # further rounds.
    go_on: bool = option(False, "Start each training from the network of the round before")

    @field_validator("strategies")
    @classmethod
    def _are_known(cls, strategies: tuple[str, ...]) -> tuple[str, ...]:
        if not strategies or not set(strategies) <= STRATEGIES.keys():
            raise ValueError("some of " + ", ".join(STRATEGIES))
        return strategies

    @field_validator("seeds")
    @classmethod
    def _is_any(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError(cls.options()["seeds"].allowed)
        return seeds


@dataclass(frozen=True)
class Subject:
    """An image whose truth is known.

    Attributes
    ----------
    name : str
    image : MedicalImage
    truth : LabelMap
        Its structures, numbered from 1 in the order of the tasks; they may overlap.
    example : Example
        Image and label as files, to train on.
    """

    name: str
    image: MedicalImage
    truth: LabelMap
    example: Example


def find_subjects(cases: Sequence[Case], folder: Path) -> tuple[list[Subject], dict[str, int]]:
    """Read images and true masks, and write each image's structures as one label map.

    Parameters
    ----------
    cases : sequence of Case
        Of one folder of images; the tasks of an image follow each other. Their structures may overlap.
    folder : pathlib.Path
        Where the label maps are written; made if needed.

    Returns
    -------
    subjects : list of Subject
    classes : dict of str to int
        Task name to index, from 1.

    Raises
    ------
    InputError
        If there is no case, a file cannot be used, or the tasks are of several folders.
    """
    if len({case.task.folder for case in cases}) != 1:
        raise InputError("Rounds are simulated on the images of one folder; name tasks of one with --task.")
    folder.mkdir(parents=True, exist_ok=True)
    classes = {name: index for index, name in enumerate(dict.fromkeys(case.task.name for case in cases), 1)}
    grouped: dict[str, list[Case]] = {}
    for case in cases:
        grouped.setdefault(case.name, []).append(case)
    subjects = []
    for name, own in grouped.items():
        image: MedicalImage | None = None
        masks: dict[str, np.ndarray] = {}
        for case in own:
            image, masks[case.task.name] = read_case(case, image)
        assert image is not None
        truth = LabelMap.from_masks(masks, image, classes)
        suffix = SEG_SUFFIX if truth.overlaps else ".nii.gz" if image.is_volume else ".png"
        path = truth.write(folder / f"{name.replace('/', '_')}{suffix}")
        example = Example(name, own[0].image, path, "final", modality=own[0].task.modality)
        subjects.append(Subject(name, image, truth, example))
    return subjects, classes


def simulate(
    data: Path,
    out: Path,
    options: SimulationOptions,
    encoder: Encoder,
    targets: TargetSet,
    *,
    tasks: Sequence[str] = (),
    show: bool = False,
) -> list[dict[str, Any]]:
    """Play the rounds of every strategy and seed.

    Parameters
    ----------
    data : pathlib.Path
        Data in the paper's layout: the annotators label its train split, its test split measures.
    out : pathlib.Path
        Folder of the results: one JSON file for each run, `runs/<strategy>-<seed>.json`. Runs that are there already
        are taken as they are, so that an interrupted simulation goes on.
    options : SimulationOptions
    encoder : Encoder
        Makes the embeddings.
    targets : TargetSet
    tasks : sequence of str
        Structures, of one folder of images; all of the only folder by default.
    show : bool
        Whether to show progress.

    Returns
    -------
    list of dict
        The runs, see `Run.to_dict`; the run "all" has every image labelled.

    Raises
    ------
    InputError
        If the data cannot be used, there are too few images, or `out` holds runs of other options or data.
    """
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rounds-") as scratch:
        place = Path(scratch)
        subjects, classes = find_subjects(find_cases(data, targets, split="train", only=tasks), place / "labels")
        tests, _ = find_subjects(find_cases(data, targets, split="test", only=tasks), place / "test-labels")
        needed = options.initial + options.batch * options.rounds + options.control
        if len(subjects) < needed:
            raise InputError(
                f"The simulation labels and controls {needed} images; {data} has {len(subjects)} to train."
            )
        _hold_to(out, _identity(options, subjects, tests, classes, encoder))
        reading = ProgressBar(subjects, desc="embeddings", unit="image", show=show)
        vectors = {subject.name: embed(subject.image, encoder) for subject in reading}
        wanted = [(seed, name) for seed in options.seeds for name in ("all", *options.strategies)]
        done = sum((runs / f"{name}-{seed}.json").is_file() for seed, name in wanted)
        results = []
        with ProgressBar(desc="simulation", unit="run", total=len(wanted), initial=done, show=show) as bar:
            for seed in options.seeds:
                play = _Play(subjects, tests, classes, vectors, options, seed, place)
                for name in ("all", *options.strategies):
                    file = runs / f"{name}-{seed}.json"
                    if not file.is_file():
                        run = play.everything() if name == "all" else play.rounds(name)
                        write_json(file, {"strategy": name, "seed": seed, "rounds": run})
                        bar.update()
                    results.append(json.loads(file.read_text(encoding="utf-8")))
    return results


class _Play:
    """The runs of one seed, which share their first round."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        tests: Sequence[Subject],
        classes: Mapping[str, int],
        vectors: Mapping[str, np.ndarray],
        options: SimulationOptions,
        seed: int,
        place: Path,
    ) -> None:
        self._tests, self._classes, self._vectors = tests, classes, vectors
        self._options, self._seed, self._place = options, seed, place
        self._overlaps = any(subject.truth.overlaps for subject in (*subjects, *tests))
        order = np.random.default_rng(seed).permutation(len(subjects))
        self._control = [subjects[index] for index in order[: options.control]]
        self._pool = {subjects[index].name: subjects[index] for index in sorted(order[options.control :])}
        self._initial = [subjects[index].name for index in order[options.control : options.control + options.initial]]
        self._first: tuple[dict[str, Any], Ensemble] | None = None

    def everything(self) -> list[dict[str, Any]]:
        """Label all images of the pool and train once."""
        if not self._options.go_on:
            return [self._round(list(self._pool))[0]]
        epochs = self._options.training.resolved().epochs
        assert epochs is not None
        epochs *= self._options.rounds
        return [self._round(list(self._pool), start=self._begin()[1], epochs=epochs)[0]]

    def _begin(self) -> tuple[dict[str, Any], Ensemble]:
        """Return the first round, which all strategies share."""
        if self._first is None:
            self._first = self._round(self._initial)
        return self._first

    def rounds(self, strategy: str) -> list[dict[str, Any]]:
        """Play the rounds of a strategy."""
        file = self._place / f"{strategy}-{self._seed}.sqlite"
        ledger = Ledger(file)
        try:
            ledger.sync_images({name: (name, False) for name in self._pool})
            ledger.set_embeddings("simulated", self._vectors_of_pool())
            labelled = list(self._initial)
            self._record(ledger, labelled)
            done, network = self._begin()
            played = [done]
            for number in range(1, self._options.rounds + 1):
                ledger.begin_training(None)
                ledger.end_training("published", f"round {number}")
                if strategy in SCORED:
                    ledger.set_scores(f"round {number}", self._scores(network, set(labelled)))
                fresh = self._select(ledger, strategy)
                self._record(ledger, fresh)
                labelled += fresh
                before = network
                done, network = self._round(labelled, start=before if self._options.go_on else None)
                played.append(done)
                if number > 1:
                    shutil.rmtree(before.folder)
            return played
        finally:
            ledger.close()

    def _select(self, ledger: Ledger, strategy: str) -> list[str]:
        pool, chosen = Pool(ledger, self._seed), []
        for _ in range(self._options.batch):
            choice = choose(pool, strategy, self._options.sampling)
            assert choice is not None
            chosen.append(choice.image)
            ledger.lease(choice.image, _READER, _FOREVER)
            pool.refresh()
        return chosen

    def _record(self, ledger: Ledger, names: Sequence[str]) -> None:
        for name in names:
            ledger.record(name, _READER, self._pool[name].truth.values)

    def _vectors_of_pool(self) -> dict[str, np.ndarray]:
        return {name: self._vectors[name] for name in self._pool}

    def _scores(self, network: Ensemble, labelled: set[str]) -> dict[str, Score]:
        """Score what has no label yet."""
        names = network.plan.names()
        return {
            name: score_of(network.predict(subject.image), names)
            for name, subject in self._pool.items()
            if name not in labelled
        }

    def _round(
        self, labelled: Sequence[str], *, start: Ensemble | None = None, epochs: int | None = None
    ) -> tuple[dict[str, Any], Ensemble]:
        """Train on what is labelled, and measure."""
        started = time.perf_counter()
        examples = [self._pool[name].example for name in labelled]
        given = self._options.training
        # overlaps in an image that is labelled later are no reason for another kind of network
        mode = "always" if self._overlaps and given.multilabel == "auto" else given.multilabel
        options = given.replace(seed=self._seed, epochs=epochs or given.epochs, multilabel=mode)
        folder = Path(tempfile.mkdtemp(prefix="network-", dir=self._place))
        plan = make_plan(examples, self._classes, options)
        network = Ensemble.load(train(examples, plan, options, folder, start=None if start is None else start.folder))
        measured = [self._measure(network, subject) for subject in self._tests]
        means = {
            name: float(np.mean([one[name] for one in measured if name in one]))
            for name in self._classes
            if any(name in one for one in measured)
        }
        controls = [effort_of_masks(self._masks(network, subject).values()) for subject in self._control]
        result = {
            "labelled": len(labelled),
            "images": list(labelled),
            "dice": float(np.mean(list(means.values()))),
            "by_structure": means,
            "control_dice": float(np.mean([each.dice for each in controls])),
            "control_path_length": float(np.mean([each.path_length for each in controls])),
            "seconds": round(time.perf_counter() - started, 1),
        }
        return result, network

    def _measure(self, network: Ensemble, subject: Subject) -> dict[str, float]:
        """Return Dice of each structure that is in the truth or in the answer."""
        masks = self._masks(network, subject)
        return {name: dice(mask, truth) for name, (mask, truth) in masks.items() if mask.any() or truth.any()}

    def _masks(self, network: Ensemble, subject: Subject) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return of each structure the whole mask of the network, and the true one."""
        found = network.predict(subject.image, uncertainty="none")
        return {name: (found.mask(index), subject.truth.mask_of(index)) for name, index in self._classes.items()}


def _identity(
    options: SimulationOptions,
    subjects: Sequence[Subject],
    tests: Sequence[Subject],
    classes: Mapping[str, int],
    encoder: Encoder,
) -> dict[str, Any]:
    played = options.to_dict()
    # runs of further strategies and seeds may be added
    del played["strategies"], played["seeds"]
    return {
        "options": played,
        "classes": dict(classes),
        "train": [subject.name for subject in subjects],
        "test": [subject.name for subject in tests],
        "encoder": encoder.identity,
    }


def _hold_to(out: Path, identity: dict[str, Any]) -> None:
    """Write what the runs depend on, or see that it is what the runs that are there depend on."""
    file = out / "simulation.json"
    wanted = json.loads(json.dumps(identity))
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        for key, value in wanted.items():
            if found.get(key) != value:
                raise InputError(f"{out} holds runs with other {key}; name another folder, or remove it.")
    else:
        write_json(file, wanted)
