"""What makes a mask: the zero-shot pipeline up to one of its stages, or anything else with the same small interface."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.base.options import PROMPT_KINDS, ZeroShotOptions
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.targets import TargetSet, normalise
from medclipsam.training.ensemble import Ensemble

# Stages of the pipeline whose mask can be measured; "sam" is its result.
STAGES = ("saliency", "coarse", "components", "sam")


@dataclass(frozen=True)
class Prediction:
    """A mask and what is known about how it came about.

    Attributes
    ----------
    mask : numpy.ndarray
        bool [n_planes, H, W] in display orientation.
    presence : float or None
        Score in [0, 1] of the question whether the target is there; None where it was not asked.
    threshold : float or None
        What the score was held against.
    known : bool or None
        Whether the text meant a known target (None: the predictor does not tell).
    window : tuple of float or None
        (centre, width) in Hounsfield units that the image was looked at through; None for the file's own.
    seconds : mapping of str to float
        Seconds by stage.
    uncertainty : float or None
        Score that ranks images by how unsure their mask is; larger is less sure.
    boundary_uncertainty : float or None
        The published score for that, of the uncertainty map and the mask's boundary.
    probability : numpy.ndarray or None
        Probability of the structure, float [n_planes, H, W], for its calibration.
    """

    mask: np.ndarray
    presence: float | None = None
    threshold: float | None = None
    known: bool | None = None
    window: tuple[float, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    uncertainty: float | None = None
    boundary_uncertainty: float | None = None
    probability: np.ndarray | None = None


class Predictor(Protocol):
    """What the evaluation measures; a trained network takes part by having these two."""

    def identity(self) -> dict[str, Any]:
        """Return all that results depend on (hashes of weights, options), JSON-able."""

    def predict(self, image: MedicalImage, text: str) -> Prediction:
        """Find in an image what a text (or, for a network of one structure, the task) asks for."""


class ZeroShotPredictor:
    """The zero-shot pipeline, up to and with one stage.

    Parameters
    ----------
    pipeline : ZeroShot
        The loaded models; with `map_cache`, predictors that share it also share its saliency maps.
    options : ZeroShotOptions
        Options of every request.
    stage : {"saliency", "coarse", "components", "sam"}
        The saliency map above `options.threshold`; the coarse mask; its largest components; the pipeline's result.
    """

    def __init__(self, pipeline: ZeroShot, options: ZeroShotOptions, stage: str = "sam") -> None:
        if stage not in STAGES:
            raise InputError(f"There is no stage {stage!r}; allowed: {', '.join(STAGES)}.")
        self.pipeline = pipeline
        self.options = options
        self.stage = stage

    def identity(self) -> dict[str, Any]:
        """Return weights, options and stage."""
        return {"weights": self.pipeline.weights, "options": self.options.to_dict(), "stage": self.stage}

    def with_options(self, **changes: Any) -> ZeroShotPredictor:
        """Return a predictor with some options changed, on the same models."""
        return ZeroShotPredictor(self.pipeline, self.options.replace(**changes), self.stage)

    def predict(self, image: MedicalImage, text: str) -> Prediction:
        """Segment an image; see `ZeroShot.segment`.

        Raises
        ------
        InputError
            If the text asks for several targets, or does not fit the image or the options.
        """
        seen = np.zeros((image.n_planes, *image.plane_shape), dtype=bool)

        def keep_map(target: str, plane: int, saliency: np.ndarray) -> None:
            if self.stage == "saliency":
                seen[plane] = saliency > self.options.threshold

        def keep_mask(stage: str, target: str, plane: int, mask: np.ndarray) -> None:
            if self.stage == stage:
                seen[plane] = mask

        # a volume that is propagated through has the earlier stages on its key planes alone
        options = self.options if self.stage == "sam" else self.options.replace(volume="planes")
        result = self.pipeline.segment(image, text, options, keep_map=keep_map, keep_mask=keep_mask)
        if len(result.targets) != 1:
            raise InputError(
                f"The text {text!r} asks for {len(result.targets)} targets; a prompt to measure asks for one."
            )
        (target,) = result.targets
        return Prediction(
            mask=result.labels > 0 if self.stage == "sam" else seen,
            presence=target.presence_score,
            threshold=target.presence_threshold,
            known=target.known,
            window=target.window,
            seconds=result.seconds,
        )


class NetworkPredictor:
    """A trained network.

    Parameters
    ----------
    ensemble : Ensemble
        The network.
    targets : TargetSet
        Says which of its classes a text means, where it has several.
    members : int, optional
        Only the last so many checkpoints.
    mirror : bool
        Average over mirrored inputs too.
    uncertainty : str
        Map that `boundary_uncertainty` is made of.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        targets: TargetSet,
        *,
        members: int | None = None,
        mirror: bool = False,
        uncertainty: str = "class_entropy",
    ) -> None:
        self.ensemble = ensemble
        self.targets = targets
        self.members = members
        self.mirror = mirror
        self.uncertainty = uncertainty

    def identity(self) -> dict[str, Any]:
        """Return weights, plan and options."""
        return {
            "network": self.ensemble.identity,
            "members": self.members or self.ensemble.members,
            "mirror": self.mirror,
            "uncertainty": self.uncertainty,
        }

    def predict(self, image: MedicalImage, text: str) -> Prediction:
        """Segment an image; see `Ensemble.predict`.

        Raises
        ------
        InputError
            If the text means none of the network's classes, or the image is of another kind than its training's.
        """
        name = self.check(text)
        start = time.perf_counter()
        made = self.ensemble.predict(
            image, mirror=self.mirror, uncertainty=self.uncertainty, members=self.members, probabilities=True
        )
        seconds = time.perf_counter() - start
        assert made.probabilities is not None
        index = self.ensemble.plan.classes[name]
        return Prediction(
            mask=made.mask(index),
            seconds={"total": seconds},
            uncertainty=made.scores.get(name),
            boundary_uncertainty=made.boundary_scores.get(name),
            probability=made.probabilities[:, index],
        )

    def check(self, text: str) -> str:
        """Return the network's class that a text means; of a network of one class that is every text.

        Raises
        ------
        InputError
            If it means none of several.
        """
        names = list(self.ensemble.plan.classes)
        if len(names) == 1:
            return names[0]
        target = self.targets.match(text)
        asked = {normalise(text)} | ({normalise(target.name)} if target else set())
        for name in names:
            if normalise(name) in asked:
                return name
        raise InputError(f"The text {text!r} means none of the network's classes: {', '.join(names)}.")


def ladder(
    pipelines: Mapping[str, ZeroShot],
    options: ZeroShotOptions,
    methods: Sequence[str],
    *,
    prompts: Sequence[str] = PROMPT_KINDS,
) -> dict[str, Predictor]:
    """Return the rungs of the ablation: each adds one stage, for each saliency method and each SAM.

    Parameters
    ----------
    pipelines : mapping of str to ZeroShot
        Name of the SAM -> pipeline with it; all share one encoder.
    options : ZeroShotOptions
        Options that the rungs do not vary. Presence is asked in the last rung only.
    methods : sequence of str
        Saliency methods.
    prompts : sequence of str
        What SAM is given: boxes, points, both, mask; the last only to weights that take one.

    Returns
    -------
    dict
        Name of the rung -> predictor, in the order of the ladder.
    """
    rungs: dict[str, Predictor] = {}
    first = next(iter(pipelines.values()))
    for method in methods:
        plain = options.replace(saliency=method, presence=False)
        rungs[f"{method}: saliency thresholded"] = ZeroShotPredictor(first, plain, "saliency")
        rungs[f"{method}: + coarse mask"] = ZeroShotPredictor(first, plain, "coarse")
        rungs[f"{method}: + components"] = ZeroShotPredictor(first, plain, "components")
        for name, pipeline in pipelines.items():
            for prompt in prompts:
                if prompt == "mask" and not pipeline.sam.mask_prompts:
                    continue
                drawn = plain.replace(visual_prompt=prompt)
                rungs[f"{method}: + SAM {name}, {prompt}"] = ZeroShotPredictor(pipeline, drawn)
            asked = options.replace(saliency=method, presence=True)
            rungs[f"{method}: + presence, SAM {name}"] = ZeroShotPredictor(pipeline, asked)
    return rungs
