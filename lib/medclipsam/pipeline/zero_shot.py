"""The composition: an image and a text in, a label map and its evidence out.

For each group of planes: vision prefix -> presence -> saliency -> coarse mask -> visual prompt -> SAM. The prefix and
SAM's embedding are shared by all targets of a plane; a target that is not there costs no more than the question.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from PIL import Image
from scipy import ndimage

from medclipsam import __version__
from medclipsam.base.errors import CancelledError, InputError, OptionError, WeightsError
from medclipsam.base.metrics import dice
from medclipsam.base.options import ZeroShotOptions, parse_planes
from medclipsam.encoders import Encoder, Fit, PlaneInput
from medclipsam.imaging import MedicalImage, Window, draw_overlay
from medclipsam.imaging.label_map import LabelMap
from medclipsam.imaging.masks import flatten, mask_of
from medclipsam.imaging.sizes import area_mm2, doubt_of_size, size_in_words, volume_mm3
from medclipsam.measurements import Measurements, measure
from medclipsam.pipeline.memory_follower import MemoryFollower
from medclipsam.pipeline.volume import (
    FINDING_STEP_MM,
    ORGAN_STEP_MM,
    Follower,
    Seed,
    Track,
    coarse_to_fine,
    propagate,
    step_in_planes,
)
from medclipsam.presence import (
    DEFAULT_THRESHOLD,
    PresenceReference,
    consistent_planes,
    presence_reference,
    presence_scores,
    resembled_target,
    smooth_over_planes,
)
from medclipsam.prompting import VisualPrompt, boxes_of, coarse_mask, largest_components, visual_prompt
from medclipsam.saliency import (
    FAST,
    PUBLISHED,
    SaliencyRequest,
    SaliencySettings,
    Schedule,
    patch_similarity,
    saliency_maps,
)
from medclipsam.sam import MaskResult, SamModel
from medclipsam.sam.sam2_adapter import Sam2
from medclipsam.targets import Target, TargetSet, TextTarget, assign_labels, joined_text, negatives, parse_prompt
from medclipsam.weights import ResolvedWeights, default_pair, resolve, resolve_pair

Progress = Callable[[float, str], None]
Cancelled = Callable[[], bool]
KeepMap = Callable[[str, int, np.ndarray], None]
# Stage ("coarse", "components"), name of the target, plane, and that stage's mask, bool [H, W].
KeepMask = Callable[[str, str, int, np.ndarray], None]
# Name of the target, plane, and its mask as it is by now, bool [H, W].
KeepPartial = Callable[[str, int, np.ndarray], None]

# The published script's defaults, for a text that is no known target; for a tower of 12 blocks.
_FREE_TEXT = {"beta": 0.1, "variance": 1.0, "layer": 7}
_PRINTED_DEPTH = 12
# How often the coarse mask of a finding is narrowed on a key plane; share of its quality that a mask has that is larger
# than the finding can be.
_NARROWED, _TOO_LARGE = (1, 2), 0.35
# Planes of a volume whose presence is asked before a first mask is tried.
_FIRST_LOOK = 5


@dataclass
class PlaneEvidence:
    """What one target's mask on one plane rests on.

    Attributes
    ----------
    plane : int
        Index, from 0.
    presence : float or None
        The plane's presence score; None where presence was not asked.
    prompt : dict
        What SAM was given; empty where the mask follows from those of its neighbours alone.
    sam_score : float or None
        SAM's own score of its mask.
    agreement : float or None
        Dice of SAM's mask and the coarse mask, where there is one.
    kept_coarse : bool
        Whether SAM's mask was of something else, so that the coarse mask took its place.
    """

    plane: int
    presence: float | None
    prompt: dict[str, Any] = field(default_factory=dict)
    sam_score: float | None = None
    agreement: float | None = None
    kept_coarse: bool = False


@dataclass
class TargetEvidence:
    """What one target's part of the result rests on.

    Attributes
    ----------
    name, label : str, int
        Name and id in the label map.
    captions : list of str
        Texts that were encoded for it.
    known : bool
        Whether it is a target of the targets files rather than free text.
    treated_as : str or None
        The known target whose window, components and presence negatives were used: itself, or for free text the one
        that it means to the model; None where there is none.
    note : str
        How its text was read, where it is not a known name: "Read 'lnugs' as 'lungs CT'."; empty otherwise.
    found : bool
        Whether its mask has any pixel.
    reason : str
        One sentence: why the mask is empty, or how it was found.
    presence_score, presence_threshold : float
        Greatest (smoothed) score over the planes looked at, and the threshold it was held against (None: not asked).
    planes : list of PlaneEvidence
        For each plane that held it: presence, boxes, points (pixels, (x, y)) and pixels of a mask given to SAM, SAM's
        score.
    key_planes : list of Track
        Of a volume that was propagated through: the planes that the target was followed from, how far, and why it ended
        there.
    sam_score : float or None
        Mean over those planes.
    area_pixels : int
        Pixels (voxels) of its label.
    area_mm2, volume_mm3 : float or None
        Only where spacings are known; the area is that of all planes together.
    diameter_mm : float or None
        Largest diameter within one plane, of findings such as tumours alone; None where the spacing is not known.
    measurements : Measurements
        What its mask measures.
    doubt : str
        A sentence where the size is not plausible for the known target; empty otherwise.
    settings : dict
        The saliency settings that were used, and where they came from.
    window : tuple of float or None
        (centre, width) in Hounsfield units that it was looked at through; None for the file's own.
    seconds : dict
        Seconds by stage; the joint stages are shared out evenly.
    """

    name: str
    label: int
    captions: list[str]
    known: bool
    treated_as: str | None = None
    window: tuple[float, float] | None = None
    presence_score: float | None = None
    presence_threshold: float | None = None
    note: str = ""
    found: bool = False
    reason: str = ""
    planes: list[PlaneEvidence] = field(default_factory=list)
    key_planes: list[Track] = field(default_factory=list)
    sam_score: float | None = None
    area_pixels: int = 0
    area_mm2: float | None = None
    volume_mm3: float | None = None
    diameter_mm: float | None = None
    measurements: Measurements = field(default_factory=Measurements)
    doubt: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence, JSON-able."""
        planes = [vars(plane) for plane in self.planes]
        key_planes = [track.to_dict() for track in self.key_planes]
        measured = self.measurements.to_dict()
        return {**vars(self), "planes": planes, "key_planes": key_planes, "measurements": measured}


@dataclass
class ZeroShotResult:
    """A label map in display orientation, and how it came about.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 [N, H, W], planes in display orientation; 0 is background. Where targets overlap, the smaller one is on
        top; `mask` has each of them whole.
    label_names : dict
        {name: id}, ids as in `labels`.
    targets : list of TargetEvidence
        One for each target asked for.
    text : str
        The text as it was given.
    options, weights, image : dict
        The options, the names and hashes of the weights, and the image's size, spacing and modality.
    seconds : dict
        Seconds of each stage, and in "total".
    version : str
        Version of this package.
    source : MedicalImage or None
        The image that was segmented, for `plot`.
    beneath : numpy.ndarray
        uint8 [L, N, H, W]: what `labels` covers, see `LabelMap`; no layers where no targets overlap.
    """

    labels: np.ndarray
    label_names: dict[str, int]
    targets: list[TargetEvidence]
    text: str
    options: dict[str, Any]
    weights: dict[str, Any]
    image: dict[str, Any]
    seconds: dict[str, float]
    version: str = __version__
    source: MedicalImage | None = field(default=None, repr=False, compare=False)
    beneath: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.uint8), repr=False)

    def __repr__(self) -> str:
        found = ", ".join(f"{name}: {np.count_nonzero(self.mask(name))} voxels" for name in self.label_names)
        size = " x ".join(map(str, self.labels.shape))
        return f"<ZeroShotResult {self.text!r}: {found or 'no target'}; labels {size}>"

    def mask(self, name: str) -> np.ndarray:
        """Return the whole mask of a target, bool [N, H, W] in display orientation.

        Raises
        ------
        InputError
            If it was not asked for.
        """
        if name not in self.label_names:
            raise InputError(f"The result has no {name!r}; it has {', '.join(map(repr, self.label_names))}.")
        return mask_of(self.label_names[name], self.labels, self.beneath)

    def masks(self) -> dict[str, np.ndarray]:
        """Return the whole mask of each target, see `mask`; those may overlap."""
        return {name: self.mask(name) for name in self.label_names}

    def label_map(self, image: MedicalImage) -> LabelMap:
        """Return the result as a label map of the image that was segmented."""
        return LabelMap(self.labels, image, self.label_names, self.label_names, self.beneath)

    @property
    def sentence(self) -> str:
        """What was found and what was not, in one line for people."""
        return " ".join(part for target in self.targets for part in (target.note, target.reason, target.doubt) if part)

    @property
    def window(self) -> Window | None:
        """Grey window of the first target that has one; a picture of all targets has only one window."""
        return next((Window(*target.window) for target in self.targets if target.window), None)

    def plot(self, *, plane: int | None = None) -> Image.Image:
        """Draw the image with the masks, their outlines and a legend; a notebook shows the picture.

        Parameters
        ----------
        plane : int, optional
            Plane of a volume, from 0; by default up to six planes that hold a mask.

        Returns
        -------
        PIL.Image.Image
            RGB; `plot().save("overlay.png")` keeps it.

        Raises
        ------
        InputError
            If there is no such plane, or the result was made without its image.

        Examples
        --------
        >>> from medclipsam import MedicalImage, ZeroShot
        >>> from medclipsam.demo.phantoms import make_phantom
        >>> image = MedicalImage.from_array(make_phantom("US", 1, pathology=True).image, modality="US")
        >>> result = ZeroShot.load().segment(image, "breast tumour")
        >>> result.plot().save("overlay.png")
        """
        if self.source is None:
            raise InputError("The result was made without its image; draw it with medclipsam.draw_overlay.")
        return draw_overlay(
            self.labels, self.source, self.label_names, plane=plane, window=self.window, beneath=self.beneath
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the label map and the image, JSON-able."""
        return {
            "sentence": self.sentence,
            "text": self.text,
            "label_names": self.label_names,
            "targets": [t.to_dict() for t in self.targets],
            "options": self.options,
            "seed": self.options["seed"],
            "weights": self.weights,
            "image": self.image,
            "seconds": self.seconds,
            "version": self.version,
        }


@dataclass
class _Job:
    """One target while it is being worked on."""

    text: TextTarget
    # the known target that it is treated as
    known: Target | None
    evidence: TargetEvidence
    positive: torch.Tensor
    negatives: torch.Tensor | None
    reference: PresenceReference | None
    # what the presence of a plane is held against; that of the evidence is for the image
    plane_threshold: float | None
    settings: SaliencySettings
    beta: float
    window: Window | None
    num_components: int
    box_per_component: bool
    visual_prompt: str
    # the least Dice between SAM's mask and the coarse mask
    least_agreement: float
    mask: np.ndarray
    scores: np.ndarray

    def presence_at(self, plane: int) -> float | None:
        """Return the presence score of a plane; None where it was not asked."""
        score = float(self.scores[plane])
        return score if np.isfinite(score) else None

    @property
    def text_digest(self) -> bytes:
        """What identifies the text features that the saliency map is made with."""
        parts = [self.positive] if self.negatives is None else [self.positive, self.negatives]
        return hashlib.sha256(b"|".join(part.float().cpu().numpy().tobytes() for part in parts)).digest()


class ZeroShot:
    """The zero-shot pipeline with its two models loaded.

    Parameters
    ----------
    encoder : Encoder
        The frozen CLIP.
    sam : SamModel
        The frozen SAM.
    targets : TargetSet
        What can be asked for by name.
    weights : dict, optional
        Identity of both weights for the results.
    batch_planes : int
        Planes that are worked on side by side; bounds the memory, changes no result.
    map_cache : int
        How many of the latest saliency maps are kept, so that a request that changes only what comes after them
        (coarse mask, prompts, SAM) pays for no optimisation; changes no result.

    Notes
    -----
    One request at a time: the object is not safe to be used from several threads.
    """

    def __init__(
        self,
        encoder: Encoder,
        sam: SamModel,
        targets: TargetSet,
        *,
        weights: dict[str, Any] | None = None,
        batch_planes: int = 8,
        map_cache: int = 0,
    ) -> None:
        self.encoder = encoder
        self.sam = sam
        self.targets = targets
        self.weights = weights or {"clip": {"name": encoder.name, "sha256": encoder.identity}}
        self.batch_planes = batch_planes
        self._maps: LRUCache[tuple[Any, ...], np.ndarray] = LRUCache(map_cache)

    @property
    def map_cache(self) -> int:
        """How many saliency maps are kept; setting it drops those that are."""
        return int(self._maps.maxsize)

    @map_cache.setter
    def map_cache(self, maps: int) -> None:
        self._maps = LRUCache(maps)

    @classmethod
    def load(
        cls,
        weights: str | None = None,
        *,
        device: str | torch.device = "cpu",
        targets: TargetSet | None = None,
        batch_planes: int = 8,
    ) -> ZeroShot:
        """Load a pair of weights by name.

        Parameters
        ----------
        weights : str, optional
            "default", "demo", "biomedclip" (with sam_vit_h), or an explicit pair such as "biomedclip+medsam". Where it
            is not given, the environment variable `MEDCLIPSAM_WEIGHTS_NAME` names it, else it is "default".
        device : str or torch.device
            Where to run.
        targets : TargetSet, optional
            The known targets; those of the package by default.
        batch_planes : int
            See the class.

        Raises
        ------
        WeightsError
            If weights are unknown, missing or damaged; the message says how to get them.

        Examples
        --------
        >>> from medclipsam import ZeroShot
        >>> model = ZeroShot.load()
        >>> "breast tumour" in model.targets.names()
        True
        """
        weights = weights or default_pair()
        clip, sam = resolve_pair(weights)
        sam_model = SamModel.from_weights(sam, device=device)
        return cls(
            load_encoder(clip, device=device, sam=sam_model).use_engine(),
            sam_model,
            targets or TargetSet.load(),
            weights={
                "pair": weights,
                "clip": {"name": clip.name, "sha256": clip.sha256},
                "sam": {"name": sam.name, "sha256": sam.sha256},
            },
            batch_planes=batch_planes,
        )

    def with_sam(self, name: str, *, device: str | torch.device = "cpu") -> ZeroShot:
        """Return a pipeline with the same encoder and kept maps, and another SAM by its name.

        Raises
        ------
        WeightsError
            As `load`.
        """
        sam = resolve(name)
        weights = {**self.weights, "sam": {"name": sam.name, "sha256": sam.sha256}}
        other = ZeroShot(
            self.encoder,
            SamModel.from_weights(sam, device=device),
            self.targets,
            weights=weights,
            batch_planes=self.batch_planes,
            map_cache=self.map_cache,
        )
        other._maps = self._maps
        return other

    def with_clip(self, name: str, *, device: str | torch.device = "cpu") -> ZeroShot:
        """Return a pipeline with another CLIP by its name or folder, and the same SAM with its kept embeddings.

        Raises
        ------
        WeightsError
            As `load`.
        """
        clip = resolve(name)
        weights = {**self.weights, "clip": {"name": clip.name, "sha256": clip.sha256}}
        encoder = load_encoder(clip, device=device, sam=self.sam).use_engine()
        return ZeroShot(
            encoder,
            self.sam,
            self.targets,
            weights=weights,
            batch_planes=self.batch_planes,
            map_cache=self.map_cache,
        )

    def segment(
        self,
        image: MedicalImage,
        text: str | list[str],
        options: ZeroShotOptions | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        keep_map: KeepMap | None = None,
        keep_mask: KeepMask | None = None,
        keep_partial: KeepPartial | None = None,
    ) -> ZeroShotResult:
        """Find what a text asks for in an image.

        Parameters
        ----------
        image : MedicalImage
            A plane or a stack of planes.
        text : str or list of str
            One target, or several split by ";" or in a list; see `medclipsam.targets.parse_prompt`.
        options : ZeroShotOptions, optional
            Defaults where not given.
        progress : callable, optional
            Called with a fraction in [0, 1] and what is being done.
        cancelled : callable, optional
            Asked between steps; True stops the work.
        keep_map : callable, optional
            Called with a target's name, a plane and its saliency map (float32 [H, W] in [0, 1], display orientation),
            for each map as it is made; without it no map outlives its plane.
        keep_mask : callable, optional
            Called with the stage, a target's name, a plane and a mask (bool [H, W]): "coarse" for the coarse mask,
            "components" for what its choice of components left.
        keep_partial : callable, optional
            Called with a target's name, a plane and its mask (bool [H, W], display orientation) as soon as the mask is
            made, and again for each plane whose mask is corrected later. The array must not be changed. Where targets
            that cannot overlap do, only the result decides which of them a pixel belongs to.

        Returns
        -------
        ZeroShotResult
            Its masks are empty where the target is absent; the evidence says why. Two known targets of which neither
            says that it overlaps the other (`Target.overlaps`) share no pixel: on each plane the one with the higher
            SAM score has it. All others stay whole.

        Raises
        ------
        InputError
            If the text is empty or too long, or an option does not fit the image or the weights.
        CancelledError
            If the caller asked to stop.

        Examples
        --------
        >>> from medclipsam import MedicalImage, ZeroShot, ZeroShotOptions
        >>> from medclipsam.demo.phantoms import make_phantom
        >>> image = MedicalImage.from_array(make_phantom("XR", 1).image, modality="CR")
        >>> model = ZeroShot.load()
        >>> result = model.segment(image, "left lung; heart")
        >>> result.label_names
        {'left lung': 11, 'heart': 13}
        >>> left_lung = result.mask("left lung")
        >>> [target.found for target in result.targets]
        [True, True]

        A target that is not in the image gets an empty mask, and `sentence` says why. Options change single steps:

        >>> options = ZeroShotOptions(num_components=2, presence=False)
        >>> model.segment(image, "both lungs", options).labels.any()
        True
        """
        options = options or ZeroShotOptions()
        clock = _Clock(progress, cancelled)
        indices = parse_planes(options.planes, image.n_planes)
        asked = parse_prompt(text, image.modality, self.targets)
        label_names = assign_labels(asked)
        with clock.stage("text"):
            jobs = [self._job(target, label_names[target.name], image, options) for target in asked]
        shared = self._by_window(jobs)
        for part, (window, group) in enumerate(shared):
            clock.span(part / len(shared), (part + 1) / len(shared))
            _Pass(self, image, window, group, indices, options, clock, keep_map, keep_mask, keep_partial).run()
        covered = _settle(jobs, image)
        labels, beneath = flatten(
            ((job.evidence.label, job.mask) for job in jobs), (image.n_planes, *image.plane_shape)
        )
        for job in jobs:
            _conclude(job, image, covered=job.text.name in covered)
            job.evidence.seconds = {
                stage: round(clock.seconds[stage] / len(jobs), 4) for stage in clock.seconds if clock.seconds[stage]
            }
        return ZeroShotResult(
            labels=labels,
            label_names=label_names,
            targets=[job.evidence for job in jobs],
            text=joined_text(text),
            options=options.to_dict(),
            weights=self.weights,
            image=image.describe(),
            seconds={**{k: round(v, 4) for k, v in clock.seconds.items()}, "total": round(clock.total(), 4)},
            source=image,
            beneath=beneath,
        )

    def presence(
        self,
        image: MedicalImage,
        text: str | list[str],
        options: ZeroShotOptions | None = None,
        *,
        cancelled: Cancelled | None = None,
    ) -> dict[str, tuple[float, float]]:
        """Tell which targets of a text are there, and draw no mask.

        Parameters
        ----------
        image, text, options, cancelled
            As for `segment`.

        Returns
        -------
        dict
            By target: presence score of the image, the highest of its planes, and the threshold, as `segment` tells
            them.

        Raises
        ------
        InputError
            As `segment`.
        CancelledError
            If the caller asked to stop.
        """
        options = (options or ZeroShotOptions()).replace(presence=True)
        clock = _Clock(None, cancelled)
        indices = parse_planes(options.planes, image.n_planes)
        asked = parse_prompt(text, image.modality, self.targets)
        labels = assign_labels(asked)
        found = {}
        for window, jobs in self._by_window(
            [self._job(target, labels[target.name], image, options) for target in asked]
        ):
            _Pass(self, image, window, jobs, indices, options, clock).scan()
            for job in jobs:
                score, threshold = job.evidence.presence_score, job.evidence.presence_threshold
                assert score is not None
                assert threshold is not None
                found[job.text.name] = score, threshold
        return found

    @staticmethod
    def _by_window(jobs: Iterable[_Job]) -> list[tuple[Window | None, list[_Job]]]:
        """Group the targets of a request by the window through which they are looked at."""
        groups: dict[Window | None, list[_Job]] = defaultdict(list)
        for job in jobs:
            groups[job.window].append(job)
        return list(groups.items())

    def forget_images(self) -> None:
        """Drop what is remembered of images, which frees the memory that it takes and changes no result."""
        self.encoder.forget_planes()
        self.sam.cache.clear()

    def _job(self, text: TextTarget, label: int, image: MedicalImage, options: ZeroShotOptions) -> _Job:
        known = text.target or resembled_target(self.encoder, text.captions, self.targets, image.modality)
        settings, beta, source = self._saliency_settings(text, known, options)
        against = None
        if settings.contrast:
            others = negatives(known, self.targets, image.modality)
            if others:
                against = torch.stack([self.encoder.text_prototype(other.captions) for other in others])
        plane_threshold = options.presence_threshold
        if plane_threshold is None:
            plane_threshold = self._presence_threshold(known)
        threshold = plane_threshold
        if image.is_volume and options.volume == "propagate" and options.presence_threshold is None and known:
            # the highest of many scores is high by chance too
            threshold = max(threshold, self.encoder.defaults.get("volume_thresholds", {}).get(known.name, 0.0))
        window = Window(*known.window) if known and known.window and image.modality == "CT" else None
        captions = list(text.captions)
        evidence = TargetEvidence(text.name, label, captions, text.target is not None)
        evidence.note = text.note
        evidence.treated_as = known.name if known else None
        evidence.window = (window.center, window.width) if window else None
        evidence.presence_threshold = threshold if options.presence else None
        evidence.settings = {
            **{"source": source, "beta": beta, **vars(settings)},
            **{"schedule": list(settings.schedule.samples), "paired": settings.schedule.paired},
        }
        reference = (
            presence_reference(self.encoder, captions, known, self.targets, image.modality)
            if options.presence
            else None
        )
        chosen = options.num_components or (known.num_components if known else 1)
        per_component = options.box_per_component
        if per_component is None:
            per_component = known.box_per_component if known else False
        shape = (image.n_planes, *image.plane_shape)
        return _Job(
            text=text,
            known=known,
            evidence=evidence,
            positive=self.encoder.text_prototype(captions),
            negatives=against,
            reference=reference,
            plane_threshold=plane_threshold if options.presence else None,
            settings=settings,
            beta=beta,
            window=window,
            num_components=chosen,
            box_per_component=per_component,
            visual_prompt=self._visual_prompt(known, options),
            least_agreement=self.encoder.defaults.get("least_agreement", {}).get(known.name, 0.0) if known else 0.0,
            mask=np.zeros(shape, dtype=bool),
            scores=np.full(image.n_planes, -np.inf),
        )

    def _visual_prompt(self, known: Target | None, options: ZeroShotOptions) -> str:
        """Return what SAM is given: what was asked for, else the target's choice where these weights take it."""
        chosen = options.visual_prompt
        if chosen == "mask" and not self.sam.mask_prompts:
            allowed = "auto, boxes, points or both, since these SAM weights were not trained with masks as prompts"
            raise OptionError("visual_prompt", chosen, allowed)
        if chosen != "auto":
            return chosen
        own = known.visual_prompt if known else "boxes"
        return "boxes" if own == "mask" and not self.sam.mask_prompts else own

    def _presence_threshold(self, known: Target | None) -> float:
        """Return the threshold calibrated for the weights: the target's own, else free text's or that of all."""
        calibrated = self.encoder.defaults
        general = calibrated.get("presence_threshold", DEFAULT_THRESHOLD)
        if known is None:
            return float(calibrated.get("free_text_threshold", general))
        return float(calibrated.get("presence_thresholds", {}).get(known.name, general))

    def _saliency_settings(
        self, text: TextTarget, known: Target | None, options: ZeroShotOptions
    ) -> tuple[SaliencySettings, float, str]:
        """Decide M2IB's settings: the option, else the preset's, else the weights' or the printed value."""
        own = self.encoder.defaults.get("saliency")
        preset = options.preset
        if preset == "auto":
            preset = "demo" if own else "published"
        if preset == "demo" and not own:
            raise OptionError(
                "preset", "demo", f"published or paper, since {self.encoder.name!r} has no settings of its own"
            )
        values: dict[str, Any]
        printed = dict(text.target.saliency) if text.target else {}
        if preset == "demo":
            by_target = self.encoder.defaults.get("saliency_targets", {})
            values = {**(own or {}), **printed.get("demo", {}), **(by_target.get(known.name, {}) if known else {})}
        else:
            # The published scripts' variance has no effect: they act as with 1, whatever was printed.
            scripts = {**printed.get("paper", _FREE_TEXT), "variance": 1.0, **printed.get("published", {})}
            values = dict(printed.get("paper", _FREE_TEXT)) if preset == "paper" else scripts
            # Printed for a tower of 12 blocks; the same relative depth in others.
            depth = self.encoder.tower.n_blocks
            values["layer"] = min(depth - 1, round(values["layer"] * depth / _PRINTED_DEPTH))
        for key in ("beta", "variance", "layer", "contrast"):
            given = getattr(options, key)
            if given is not None:
                values[key] = given
        depth = self.encoder.tower.n_blocks
        if values["layer"] >= depth:
            raise OptionError("layer", values["layer"], f"a block of {self.encoder.name!r}, 0 to {depth - 1}")
        settings = SaliencySettings(
            method=str(values.get("method", "m2ib")) if options.saliency == "auto" else options.saliency,
            variance=float(values["variance"]),
            layer=int(values["layer"]),
            schedule=_schedule(options, values),
            steps=options.steps or len(PUBLISHED.samples),
            seed=options.seed,
            contrast=float(values.get("contrast") or 0.0),
            smooth=int(values.get("smooth", 1)),
            clip_percentile=float(values.get("clip_percentile", 100.0)),
        )
        return settings, float(values["beta"]), preset


def _schedule(options: ZeroShotOptions, weights: Mapping[str, Any]) -> Schedule:
    """Return M2IB's schedule: the published one for steps and samples that were asked for and for the presets that
    are to be exact, else that of the weights or the fast one.
    """
    if options.steps or options.samples or options.preset in ("published", "paper"):
        published = PUBLISHED.samples
        return Schedule((options.samples or published[0],) * (options.steps or len(published)))
    return Schedule(tuple(weights["schedule"]), paired=True) if "schedule" in weights else FAST


class _Pass:
    """One pass over an image: all targets of a request that look at its planes through the same window."""

    def __init__(
        self,
        pipeline: ZeroShot,
        image: MedicalImage,
        window: Window | None,
        jobs: list[_Job],
        indices: list[int],
        options: ZeroShotOptions,
        clock: _Clock,
        keep_map: KeepMap | None = None,
        keep_mask: KeepMask | None = None,
        keep_partial: KeepPartial | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.keep_mask = keep_mask
        self.keep_partial = keep_partial
        self.encoder = pipeline.encoder
        self.sam = pipeline.sam
        self.batch_planes = pipeline.batch_planes
        self.image = image
        self.window = window
        self.jobs = jobs
        self.indices = indices
        self.options = options
        self.clock = clock
        self.keep_map = keep_map

    def run(self) -> None:
        """Ask for presence, then draw masks in the planes that hold a target."""
        if self.image.is_volume and self.options.volume == "propagate":
            self._propagate()
        else:
            self._draw_planes()

    def _draw_planes(self) -> None:
        self.scan()
        wanted: dict[int, list[_Job]] = defaultdict(list)
        for job in self.jobs:
            for plane in self._planes_of(job):
                wanted[plane].append(job)
        for fraction, batch in self._batches(sorted(wanted)):
            self.clock.tick(0.2 + 0.8 * fraction, f"masks, plane {batch[0] + 1} of {self.image.n_planes}")
            self._masks(batch, wanted)
        if self.image.is_volume:
            for job in self.jobs:
                with self.clock.stage("steady"):
                    self._make_consistent(job)

    def _batches(self, planes: list[int]) -> Iterator[tuple[float, list[int]]]:
        for start in range(0, len(planes), self.batch_planes):
            yield start / len(planes), planes[start : start + self.batch_planes]

    def _propagate(self) -> None:
        """Follow each target from key planes; a first mask is made before presence is known everywhere."""
        step = step_in_planes(self.image, min(_step_mm(job) for job in self.jobs))
        grid = self.indices[::step] + ([self.indices[-1]] if (len(self.indices) - 1) % step else [])
        subjects = [_Subject(self, job, _step_mm(job)) for job in self.jobs]
        order, asked = coarse_to_fine(grid, _FIRST_LOOK), 0
        while asked < len(order):
            # twice as many each time
            looked = order[: 2 * asked or _FIRST_LOOK]
            self._ask_presence(looked[asked:], (0.3 * asked / len(order), 0.3 * len(looked) / len(order)))
            asked = len(looked)
            for subject in subjects:
                subject.show_first(sorted(looked))
        self._smooth(grid)
        for number, subject in enumerate(subjects):
            subject.find(grid, (0.3 + 0.7 * number / len(subjects), 0.3 + 0.7 * (number + 1) / len(subjects)))

    def scan(self) -> None:
        """Ask for presence in all planes."""
        self._ask_presence(self.indices, (0.0, 0.2))
        self._smooth(self.indices)

    def _ask_presence(self, planes: list[int], span: tuple[float, float]) -> None:
        jobs = [job for job in self.jobs if job.reference is not None]
        if not jobs:
            return
        layer = jobs[0].settings.layer
        for fraction, batch in self._batches(planes):
            self.clock.tick(
                span[0] + (span[1] - span[0]) * fraction, f"presence, plane {batch[0] + 1} of {self.image.n_planes}"
            )
            with self.clock.stage("presence"):
                inputs = [self._input(plane) for plane in batch]
                tokens = self.encoder.prefix_tokens(inputs, layer)
                features = self.encoder.features(tokens, layer)
                for job in jobs:
                    assert job.reference is not None
                    job.scores[batch] = presence_scores(features, job.reference, self.encoder.logit_scale).score

    def _smooth(self, planes: list[int]) -> None:
        # planes of a coarser grid are neighbours too; gaps between the planes that were asked for are not
        places = planes if planes == self.indices else range(len(planes))
        for job in self.jobs:
            if job.reference is not None:
                job.scores[planes] = smooth_over_planes(job.scores[planes], places)
                job.evidence.presence_score = float(job.scores[planes].max())

    def _planes_of(self, job: _Job) -> list[int]:
        threshold = job.evidence.presence_threshold
        if threshold is None:
            return self.indices
        present = job.scores[self.indices] >= threshold
        if self.image.is_volume:
            present = consistent_planes(present, self.indices)
        return [plane for plane, here in zip(self.indices, present, strict=True) if here]

    def _masks(self, batch: list[int], wanted: dict[int, list[_Job]]) -> None:
        for job, plane, saliency, fit in self._maps(batch, wanted):
            mask = self._draw(job, plane, saliency, fit)
            if mask is not None:
                self._set_mask(job, plane, mask)

    def _maps(self, batch: list[int], wanted: Mapping[int, list[_Job]]) -> Iterator[tuple[_Job, int, np.ndarray, Fit]]:
        """Yield the saliency maps of targets on planes."""
        pairs = [(row, job) for row, plane in enumerate(batch) for job in wanted[plane]]
        with self.clock.stage("prefix"):
            inputs = [self._input(plane) for plane in batch]
            layers = {job.settings.layer for _, job in pairs}
            tokens = {layer: self.encoder.prefix_tokens(inputs, layer) for layer in layers}
        groups: dict[SaliencySettings, list[tuple[int, _Job]]] = defaultdict(list)
        for row, job in pairs:
            groups[job.settings].append((row, job))
        for settings, members in groups.items():
            with self.clock.stage("saliency"):
                maps = self._saliency(inputs, tokens[settings.layer], members, settings)
            for (row, job), saliency in zip(members, maps, strict=True):
                if self.keep_map is not None:
                    self.keep_map(job.evidence.name, batch[row], saliency)
                yield job, batch[row], saliency, inputs[row].fit

    def _saliency(
        self,
        inputs: list[PlaneInput],
        tokens: torch.Tensor,
        members: list[tuple[int, _Job]],
        settings: SaliencySettings,
    ) -> list[np.ndarray]:
        """Return the maps of targets on planes (rows of `inputs`), those that were kept as they are."""
        kept = self.pipeline._maps
        keys = [(inputs[row].digest, job.text_digest, job.beta, settings) for row, job in members]
        new = [place for place, key in enumerate(keys) if key not in kept]
        asked = [members[place] for place in new]
        made = saliency_maps(
            self.encoder,
            tokens,
            [made.fit for made in inputs],
            [made.digest for made in inputs],
            [SaliencyRequest(row, job.positive, job.negatives, job.beta) for row, job in asked],
            settings,
            on_step=self.clock.check,
        )
        fresh = {keys[place]: saliency.numpy() for place, saliency in zip(new, made, strict=True)}
        maps = [fresh[key] if key in fresh else kept[key] for key in keys]
        if self.pipeline.map_cache:
            kept.update(fresh)
        return maps

    def _draw(
        self, job: _Job, plane: int, saliency: np.ndarray, fit: Fit, *, narrowed: int = 0, second: bool = False
    ) -> np.ndarray | None:
        """Turn one saliency map into one mask, and note the evidence; None where there is nothing to draw.

        `narrowed` is how often the coarse mask is split once more by its saliency; `second` is for the components after
        the largest ones in place of these.
        """
        self.clock.check()
        options = self.options
        pixels = self.image.model_plane(plane, self.window)
        region = self.image.valid_region(plane)
        valid = fit.covered() if region is None else fit.covered() & region
        with self.clock.stage("coarse"):
            coarse = coarse_mask(saliency, options.postprocess, threshold=options.threshold, valid=valid, plane=pixels)
            for _ in range(narrowed):
                coarse = coarse_mask(saliency, valid=coarse)
            components = largest_components(coarse, job.num_components, options.min_size)
            if second:
                components = largest_components(coarse & ~components, job.num_components, options.min_size)
            prompt = visual_prompt(
                components,
                job.visual_prompt,
                box_per_component=job.box_per_component,
                num_points=options.num_points,
                negative_points=options.negative_points,
                seed=options.seed,
                valid=valid,
            )
        if self.keep_mask is not None:
            self.keep_mask("coarse", job.evidence.name, plane, coarse)
            self.keep_mask("components", job.evidence.name, plane, components)
        if prompt is None:
            return None
        mask = largest_components(self._ask_sam(job, plane, pixels, prompt), job.num_components, options.min_size)
        seen = job.evidence.planes[-1]
        seen.agreement = dice(mask, components)
        if seen.agreement < job.least_agreement:
            seen.kept_coarse = True
            return components
        return mask

    def _set_mask(self, job: _Job, plane: int, mask: np.ndarray) -> None:
        """Take a plane's mask into the result, and hand it out."""
        job.mask[plane] = mask
        self._show(job, plane, mask)

    def _show(self, job: _Job, plane: int, mask: np.ndarray) -> None:
        if self.keep_partial is not None:
            self.keep_partial(job.evidence.name, plane, mask)

    def _ask_sam(self, job: _Job, plane: int, pixels: np.ndarray, prompt: VisualPrompt) -> np.ndarray:
        """Return SAM's mask for a prompt, and note the evidence."""
        answer = self._answer(plane, pixels, prompt)
        job.evidence.planes.append(PlaneEvidence(plane, job.presence_at(plane), prompt.to_dict(), float(answer.score)))
        return answer.mask

    def _answer(self, plane: int, pixels: np.ndarray, prompt: VisualPrompt) -> MaskResult:
        """Return SAM's answer to a prompt, its mask within the region that holds image."""
        with self.clock.stage("sam_embed"):
            embedding = self.sam.embed(pixels)
        with self.clock.stage("sam_decode"):
            answer = self.sam.decode(
                embedding,
                prompt.boxes,
                prompt.points,
                prompt.point_labels,
                mask=prompt.mask,
                voting=self.options.voting,
            )
        region = self.image.valid_region(plane)
        return answer if region is None else replace(answer, mask=answer.mask & region)

    def _make_consistent(self, job: _Job) -> None:
        """Keep the largest components in 3-D, then fill planes that were lost between two that hold the target."""
        lost = self._lost_planes(job.mask)
        # A lost plane must not cut a structure in two: for the count of components it is bridged.
        linked = job.mask.copy()
        for plane in lost:
            linked[plane] = linked[plane - 1] | linked[plane + 1]
        kept = largest_components(linked, job.num_components, self.options.min_size)
        if len(job.evidence.planes) > 1:
            kept = _without_single_planes(kept)
        for plane in np.flatnonzero((job.mask & ~kept).any(axis=(1, 2))):
            self._set_mask(job, int(plane), job.mask[plane] & kept[plane])
        for plane in self._lost_planes(job.mask):
            below, above = job.mask[plane - 1], job.mask[plane + 1]
            self.clock.check()
            job.evidence.planes = [seen for seen in job.evidence.planes if seen.plane != plane]
            between = VisualPrompt(boxes=(boxes_of(below) + boxes_of(above)) / 2)
            self._set_mask(job, plane, self._ask_sam(job, plane, self.image.model_plane(plane, self.window), between))
        seen = [seen for seen in job.evidence.planes if job.mask[seen.plane].any()]
        job.evidence.planes = sorted(seen, key=lambda seen: seen.plane)

    def _lost_planes(self, mask: np.ndarray) -> list[int]:
        """Planes without a mask between two that have one."""
        held = mask.any(axis=(1, 2))
        return [p for p in self.indices if 0 < p < len(held) - 1 and not held[p] and held[p - 1] and held[p + 1]]

    def _input(self, plane: int) -> PlaneInput:
        pixels = self.image.model_plane(plane, self.window)
        tensor, fit = self.encoder.preprocess(pixels, self.options.fit)
        content = f"{pixels.shape} {self.options.fit}".encode() + np.ascontiguousarray(pixels).tobytes()
        return PlaneInput(pixels, tensor, fit, hashlib.sha256(content).digest())


class _Subject:
    """One target of a pass, as `medclipsam.pipeline.volume.propagate` sees it."""

    def __init__(self, part: _Pass, job: _Job, step_mm: float) -> None:
        self._part = part
        self._job = job
        self._drawn: dict[int, list[tuple[Seed, float]]] = {}
        # of the planes that were drawn by the text, and of those on which SAM was asked on the way
        self._seen: dict[int, PlaneEvidence] = {}
        self._asked: dict[int, PlaneEvidence] = {}
        # of the plane that was drawn last, how similar its parts are to the target and its rivals
        self._similarity: tuple[int, np.ndarray] | None = None
        self._span, self._expected, self._done = (0.0, 1.0), 1, 0
        self.is_finding = job.known is not None and job.known.is_finding
        self._rivals = _rivals_of(job, part.pipeline, part.image)
        self.mask = job.mask
        self.num_components = job.num_components
        self.exact = part.options.num_components is not None
        self.most_voxels, self.most_pixels = _most_of(job, part.image)
        # SAM 2 follows a structure by its memory of the planes before
        by_memory = isinstance(part.sam.network, Sam2)
        follower = partial(MemoryFollower, part.sam) if by_memory else Follower
        self._follower = follower(
            part.image,
            part.window,
            part.indices,
            self._ask,
            step_mm=step_mm,
            num_components=job.num_components,
            box_per_component=job.box_per_component,
            mask_prompts=part.sam.mask_prompts,
            presence=job.presence_at,
            threshold=job.plane_threshold,
        )

    def show_first(self, planes: list[int]) -> None:
        """Draw the mask of the plane that most likely holds the target, so that there is something to see soon."""
        if self._drawn:
            return
        scores = self._job.scores[planes]
        threshold = self._job.evidence.presence_threshold
        best = planes[int(scores.argmax())] if threshold is not None else planes[len(planes) // 2]
        if threshold is None or scores.max() >= threshold:
            self.draw(best)

    def find(self, grid: list[int], span: tuple[float, float]) -> None:
        """Find the target in the volume; the job's mask and evidence hold the result."""
        job, threshold = self._job, self._job.evidence.presence_threshold
        scores = job.scores[grid] if threshold is not None else np.ones(len(grid))
        least = 0.0 if threshold is None else threshold
        share = np.count_nonzero(scores >= least) / len(grid)
        self._span, self._expected = span, max(1, round(share * len(self._part.indices)))
        job.evidence.key_planes = propagate(self, self._follower, grid, scores, least)
        for plane in [plane for plane, found in self._drawn.items() if found]:
            if not job.mask[plane].any():
                self.take(plane, job.mask[plane])  # what was shown first is gone
        held = np.flatnonzero(job.mask.any(axis=(1, 2))).tolist()
        keys = {track.plane: self._seen[track.plane] for track in job.evidence.key_planes if track.kept}
        told = {**self._asked, **keys}
        job.evidence.planes = [told.get(plane) or PlaneEvidence(plane, job.presence_at(plane)) for plane in held]

    def draw(self, plane: int) -> list[tuple[Seed, float]]:
        if plane not in self._drawn:
            kept: list[tuple[Seed, float]] = []
            for seed, quality, seen in sorted(self._draw(plane), key=lambda each: -each[1]):
                if not any((seed.mask & other.mask).any() for other, _ in kept):
                    kept.append((seed, quality))
                    self._seen.setdefault(plane, seen)
            self._drawn[plane] = kept
            if kept:
                self._part._show(self._job, plane, kept[0][0].mask)
        return self._drawn[plane]

    def _draw(self, plane: int) -> Iterator[tuple[Seed, float, PlaneEvidence]]:
        """Yield masks of a plane with their quality and evidence.

        A finding may be much smaller than what its saliency map marks, and may not be the only one, so that its coarse
        mask is narrowed, and its second component drawn too.
        """
        job = self._job
        ((_, _, saliency, fit),) = self._part._maps([plane], {plane: [job]})
        ways = [(0, False)]
        if self.is_finding:
            ways += [(narrowed, second) for narrowed in _NARROWED for second in (False, True)]
        for narrowed, second in ways:
            mask = self._part._draw(job, plane, saliency, fit, narrowed=narrowed, second=second)
            if mask is None or not mask.any() or self._is_another(plane, mask):
                continue
            seen = job.evidence.planes[-1]
            score = seen.sam_score or 0.0
            quality = score * (seen.agreement or 0.0) * (1.0 if seen.presence is None else seen.presence)
            if self.is_finding and int(mask.sum()) > self.most_pixels:
                quality *= _TOO_LARGE
            yield Seed(plane, mask, score), quality, seen

    def _is_another(self, plane: int, mask: np.ndarray) -> bool:
        """Return whether a mask's patches are more similar to a structure that shares no pixel with the target."""
        if self._rivals is None:
            return False
        if self._similarity is None or self._similarity[0] != plane:
            made, layer = self._part._input(plane), self._job.settings.layer
            encoder = self._part.encoder
            tokens = encoder.prefix_tokens([made], layer)
            self._similarity = plane, patch_similarity(encoder, tokens, made.fit, self._rivals, layer)
        inside = self._similarity[1][:, mask].mean(axis=1)
        return bool(inside[0] < inside[1:].max())

    def take(self, plane: int, mask: np.ndarray) -> None:
        self._part.clock.check()
        self._part._set_mask(self._job, plane, mask)

    def grey(self, plane: int) -> np.ndarray:
        return self._part.image.model_plane(plane, self._part.window).mean(axis=2, dtype=np.float32)

    def advance(self, planes: int) -> None:
        self._done += planes
        fraction = min(1.0, self._done / self._expected)
        low, high = self._span
        message = f"{self._job.evidence.name}, {self._done} planes"
        self._part.clock.tick(low + (high - low) * fraction, message)

    def _ask(self, plane: int, prompt: VisualPrompt) -> MaskResult:
        self._part.clock.check()
        pixels = self._part.image.model_plane(plane, self._part.window)
        answer = self._part._answer(plane, pixels, prompt)
        self._asked[plane] = PlaneEvidence(plane, self._job.presence_at(plane), prompt.to_dict(), float(answer.score))
        return answer


def _rivals_of(job: _Job, pipeline: ZeroShot, image: MedicalImage) -> torch.Tensor | None:
    """Return the text features [T, E] of a target and of structures that share no pixel with it.

    None where there are none, or the weights do not say that their patches tell them apart.
    """
    if job.known is None or job.known.name not in pipeline.encoder.defaults.get("patch_rivals", ()):
        return None
    others = negatives(job.known, pipeline.targets, image.modality)
    features = [pipeline.encoder.text_prototype(other.captions) for other in others]
    return torch.stack([job.positive, *features]) if others else None


def _most_of(job: _Job, image: MedicalImage) -> tuple[float, float]:
    """Return the voxels that a target has at most, and the pixels on one plane: 1.5 times those of a ball."""
    plausible = job.known.plausible_volume_ml if job.known else None
    voxel, pixel = volume_mm3(1, image), area_mm2(1, image)
    if not plausible or not voxel or not pixel:
        return float("inf"), float("inf")
    most = 1e3 * plausible[1]
    return most / voxel, 1.5 * np.pi * (3 * most / (4 * np.pi)) ** (2 / 3) / pixel


def _step_mm(job: _Job) -> float:
    """Return how far apart planes are looked at; a text that no known target stands for may mean something small."""
    return ORGAN_STEP_MM if job.known is not None and not job.known.is_finding else FINDING_STEP_MM


def load_encoder(
    weights: ResolvedWeights, *, device: str | torch.device = "cpu", sam: SamModel | None = None
) -> Encoder:
    """Load resolved CLIP weights.

    Parameters
    ----------
    weights : ResolvedWeights
        Of kind "clip".
    device : str or torch.device
        Where to run.
    sam : SamModel, optional
        A loaded SAM: a CLIP that works on the image embedding of the same weights shares it and its cache.

    Raises
    ------
    WeightsError
        If they are of another kind, or do not load.
    """
    from medclipsam.encoders import load_demo, load_embedding_clip, load_folder, load_open_clip

    if weights.kind != "clip":
        raise WeightsError(f"Weights {weights.name!r} are of kind {weights.kind!r}; an encoder needs kind 'clip'.")
    common: dict[str, Any] = {"name": weights.name, "identity": weights.sha256, "device": device}
    if weights.arch == "demo":
        return load_demo(weights.path, weights.path.with_suffix(".json"), **common)
    if weights.arch == "embedding":
        embedded = resolve(weights.metadata["embedding"])
        if sam is None or sam.identity != embedded.sha256:
            sam = SamModel.from_weights(embedded, device=device)
        return load_embedding_clip(weights.path, weights.path.with_suffix(".json"), sam, **common)
    if weights.path.is_dir():
        return load_folder(weights.path, **common)
    return load_open_clip(str(weights.arch), weights.path, **common)


class _Clock:
    """Seconds by stage, progress within the present span, and the question whether to stop."""

    def __init__(self, progress: Progress | None, cancelled: Cancelled | None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._progress = progress
        self._cancelled = cancelled
        self._span = (0.0, 1.0)
        self._start = time.perf_counter()

    def span(self, low: float, high: float) -> None:
        self._span = (low, high)

    def tick(self, fraction: float, message: str) -> None:
        self.check()
        if self._progress is not None:
            low, high = self._span
            self._progress(low + (high - low) * fraction, message)

    def check(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise CancelledError("The request was cancelled.")

    def total(self) -> float:
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def _without_single_planes(mask: np.ndarray) -> np.ndarray:
    """Drop 3-D components that lie in one plane only."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=bool))
    kept = mask.copy()
    for index, place in enumerate(ndimage.find_objects(labels), start=1):
        if place[0].stop - place[0].start == 1:
            kept[place] &= labels[place] != index
    return kept


def _settle(jobs: Sequence[_Job], image: MedicalImage) -> set[str]:
    """Take from masks what other masks have that they cannot overlap; return the targets of which nothing is left.

    On each plane the mask with the higher SAM score keeps its pixels.
    """
    rivals = {
        job.text.name: [other for other in jobs if other is not job and not _may_overlap(job, other)] for job in jobs
    }
    had = {job.text.name for job in jobs if rivals[job.text.name] and job.mask.any()}
    for plane in range(image.n_planes) if len(had) > 1 else ():
        here = [job for job in jobs if job.text.name in had and job.mask[plane].any()]
        ranked = sorted(here, key=lambda job: _score_at(job, plane), reverse=True) if len(here) > 1 else []
        for place, job in enumerate(ranked):
            for other in ranked[:place]:
                if other in rivals[job.text.name]:
                    job.mask[plane] &= ~other.mask[plane]
    return {job.text.name for job in jobs if job.text.name in had and not job.mask.any()}


def _may_overlap(one: _Job, other: _Job) -> bool:
    """Whether two targets may share pixels: the vocabulary says so, or one is free text, of which it knows nothing."""
    return one.text.target is None or other.text.target is None or one.text.target.overlaps_with(other.text.target)


def _score_at(job: _Job, plane: int) -> float:
    """Return SAM's score of a target's mask on a plane, or on the nearest one on which it was asked."""
    scored = [seen for seen in job.evidence.planes if seen.sam_score is not None]
    nearest = min(scored, key=lambda seen: abs(seen.plane - plane), default=None)
    return 0.0 if nearest is None else float(nearest.sam_score or 0.0)


def _conclude(job: _Job, image: MedicalImage, *, covered: bool) -> None:
    evidence = job.evidence
    area = int(np.count_nonzero(job.mask))
    evidence.area_pixels, evidence.found = area, area > 0
    evidence.area_mm2, evidence.volume_mm3 = area_mm2(area, image), volume_mm3(area, image)
    evidence.measurements = measure(job.mask, image)
    target = job.text.target
    if target is not None:
        evidence.doubt = doubt_of_size(target, area, image)
        if target.is_finding:
            evidence.diameter_mm = evidence.measurements.long_axis_mm
    scores = [seen.sam_score for seen in evidence.planes if seen.sam_score is not None]
    evidence.sam_score = float(np.mean(scores)) if scores else None
    evidence.reason = _reason(job, image, covered=covered)


def _reason(job: _Job, image: MedicalImage, *, covered: bool) -> str:
    doubt = image.doubt_of_units()
    return _finding(job, image, covered=covered) + (f" The image is taken for a CT, but {doubt}" if doubt else "")


def _finding(job: _Job, image: MedicalImage, *, covered: bool) -> str:
    evidence = job.evidence
    name = evidence.name
    score, threshold = evidence.presence_score, evidence.presence_threshold
    judged = "" if score is None else f" (presence {score:.2f}, threshold {threshold:.2f})"
    if evidence.found:
        where = f" on {len(evidence.planes)} of {image.n_planes} planes" if image.n_planes > 1 else ""
        return f"{name}: found{where}, {size_in_words(evidence.area_pixels, image, evidence.diameter_mm)}{judged}."
    if score is not None and threshold is not None and score < threshold:
        return f"{name}: not found, the mask is empty: the image does not look as if it were there{judged}."
    if covered:
        return f"{name}: its mask lies wholly under another target's with a higher SAM score{judged}."
    return f"{name}: not found, the mask is empty: the saliency map or the masks left nothing to keep{judged}."
