"""What is done to each image: the zero-shot pipeline asked texts, a trained network, or a function of one's own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medclipsam import __version__
from medclipsam.base.errors import InputError, TrainingError
from medclipsam.base.files import file_sha256
from medclipsam.base.options import ZeroShotOptions

if TYPE_CHECKING:
    from medclipsam.imaging import MedicalImage
    from medclipsam.imaging.dicom_seg import SegmentationKind
    from medclipsam.imaging.label_map import LabelMap


@dataclass(frozen=True)
class Made:
    """What a method found in an image.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 [n_planes, H, W] in display orientation.
    names : dict of str to int
        Name of each finding that was looked for, to its label.
    findings : list of dict
        For each of them columns of the table, at least `finding`, `label` and `found`.
    about : dict
        Columns that all of them share.
    beneath : numpy.ndarray or None
        What `labels` covers where findings overlap, see `medclipsam.imaging.label_map.LabelMap`.
    probabilities : dict of int to numpy.ndarray, or None
        By label, float32 [n_planes, H, W] in [0, 1] in display orientation; of methods that compute them.
    """

    labels: np.ndarray
    names: dict[str, int]
    findings: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)
    beneath: np.ndarray | None = None
    probabilities: dict[int, np.ndarray] | None = None

    def label_map(self, image: MedicalImage) -> LabelMap:
        """Return it as a label map of the image that it was found in."""
        from medclipsam.imaging.label_map import LabelMap

        whole = {} if self.beneath is None else {"beneath": self.beneath}
        return LabelMap(self.labels, image, self.names, self.names, **whole)


class Method(Protocol):
    """What a worker loads once, and calls for one image at a time."""

    def segment(self, image: MedicalImage, text: str) -> Made:
        """Look for what a text, or that of the run where it is empty, asks for."""


def zero_shot_request(
    text: str, weights: str, options: ZeroShotOptions, targets_files: tuple[Path, ...] = (), *, embed: bool = False
) -> dict[str, Any]:
    """Describe the zero-shot pipeline, for a run's request.

    Raises
    ------
    WeightsError
        If the weights are missing.
    """
    from medclipsam.weights import resolve_pair

    clip, sam = resolve_pair(weights)
    return {
        "kind": "zero_shot",
        "text": text,
        "options": options.to_dict(),
        "weights": {
            "pair": weights,
            "clip": {"name": clip.name, "sha256": clip.sha256},
            "sam": {"name": sam.name, "sha256": sam.sha256},
        },
        "targets_files": [{"file": str(file.absolute()), "sha256": file_sha256(file)} for file in targets_files],
        "embed": embed,
    }


def network_request(folder: Path) -> dict[str, Any]:
    """Describe a trained network, for a run's request.

    Parameters
    ----------
    folder : Path
        A version in a workspace's `networks`, or the folder of a training's `plan.json` and weights.

    Raises
    ------
    TrainingError
        If it holds no network.
    """
    from medclipsam.training.ensemble import Ensemble

    ensemble = Ensemble.load(folder, device="cpu")
    about: dict[str, Any] = {"name": folder.name, "version": None, "labels": dict(ensemble.plan.classes)}
    file = folder / "network.json"
    if file.is_file():
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            about = {"name": told["name"], "version": told["version"], "labels": told["labels"]}
            about["modality"] = told.get("modality")
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(f"{file} does not describe a network ({error!r}).") from error
    return {"kind": "network", "folder": str(folder.absolute()), "identity": ensemble.identity, **about}


def own_request(factory: str, **arguments: Any) -> dict[str, Any]:
    """Describe a method of one's own, for a run's request.

    Parameters
    ----------
    factory : str
        "module:function"; the function takes the device and the arguments, and returns a `Method`.
    **arguments : object
        JSON-able.
    """
    return {"kind": "own", "factory": factory, "arguments": arguments}


def load_method(request: Mapping[str, Any], device: str, *, probabilities: bool = False) -> Method:
    """Load what a request describes, and check that the weights are those that it names.

    Parameters
    ----------
    request : mapping
        Of one of the functions above.
    device : str
        Where it runs.
    probabilities : bool
        Whether a network's probabilities are needed beside its masks.

    Raises
    ------
    InputError
        If they are others by now.
    MedClipSamError
        If they cannot be loaded.
    """
    if request["kind"] == "zero_shot":
        return _ZeroShot(request, device)
    if request["kind"] == "network":
        return _Network(request, device, probabilities)
    module, _, name = str(request["factory"]).partition(":")
    made: Method = getattr(importlib.import_module(module), name)(device, **request["arguments"])
    return made


class _ZeroShot:
    def __init__(self, request: Mapping[str, Any], device: str) -> None:
        from medclipsam.pipeline.zero_shot import ZeroShot
        from medclipsam.targets import TargetSet

        for file in request["targets_files"]:
            if file_sha256(Path(file["file"])) != file["sha256"]:
                raise InputError(f"{file['file']} has changed since the run began; start a new run.")
        targets = TargetSet.load(*(Path(file["file"]) for file in request["targets_files"]))
        self._pipeline = ZeroShot.load(request["weights"]["pair"], device=device, targets=targets)
        if self._pipeline.weights != request["weights"]:
            raise InputError(f"The weights {request['weights']['pair']!r} are not those that the run began with.")
        self._text = str(request["text"])
        self._options = ZeroShotOptions(**request["options"])
        self._embed = bool(request["embed"])

    def segment(self, image: MedicalImage, text: str) -> Made:
        result = self._pipeline.segment(image, text or self._text, self._options)
        about: dict[str, Any] = {"weights": json.dumps(result.weights), "text": result.text}
        if self._embed:
            from medclipsam.active.embedding import embed

            about["embedding"] = embed(image, self._pipeline.encoder).astype(np.float16).tobytes().hex()
            about["encoder"] = self._pipeline.encoder.identity
        # an image of a cohort comes once
        self._pipeline.forget_images()
        findings = []
        for target in result.targets:
            told = target.to_dict()
            findings.append(
                {
                    "finding": target.name,
                    "label": target.label,
                    "found": target.found,
                    "presence": target.presence_score,
                    "threshold": target.presence_threshold,
                    "voxels": target.area_pixels,
                    "volume_mm3": target.volume_mm3,
                    "area_mm2": target.area_mm2,
                    "diameter_mm": target.diameter_mm,
                    "measurements": json.dumps(told["measurements"]),
                    "sam_score": target.sam_score,
                    "reason": target.reason,
                    "doubt": target.doubt,
                    "evidence": json.dumps(
                        {name: told[name] for name in ("captions", "treated_as", "window", "settings", "planes")}
                    ),
                }
            )
        return Made(result.labels, result.label_names, findings, about, result.beneath)


class _Network:
    def __init__(self, request: Mapping[str, Any], device: str, probabilities: bool) -> None:
        from medclipsam.training.ensemble import Ensemble

        self._ensemble = Ensemble.load(Path(request["folder"]), device=device)
        if self._ensemble.identity != request["identity"]:
            raise InputError(f"The network in {request['folder']} is not the one that the run began with.")
        self._labels: dict[str, int] = dict(request["labels"])
        self._probabilities = probabilities
        self._weights = json.dumps({"network": {"name": request["name"], "sha256": request["identity"]}})

    def segment(self, image: MedicalImage, text: str) -> Made:
        from medclipsam.imaging.sizes import area_mm2, volume_mm3
        from medclipsam.measurements import measure

        result = self._ensemble.predict(image, probabilities=self._probabilities)
        table = np.zeros(256, np.uint8)
        findings = []
        for name, index in self._ensemble.plan.classes.items():
            table[index] = self._labels[name]
            measured = measure(result.mask(index), image)
            voxels = measured.n_voxels
            findings.append(
                {
                    "finding": name,
                    "label": self._labels[name],
                    "found": voxels > 0,
                    "uncertainty": result.scores.get(name),
                    "voxels": voxels,
                    "volume_mm3": volume_mm3(voxels, image),
                    "area_mm2": area_mm2(voxels, image),
                    "diameter_mm": measured.long_axis_mm,
                    "measurements": json.dumps(measured.to_dict()),
                }
            )
        planes = None
        if result.plane_scores is not None and len(result.plane_scores) > 1:
            planes = [int(index) for index in np.argsort(-result.plane_scores, kind="stable")[:5]]
        about = {
            **{"weights": self._weights, "text": "", "planes_to_look_at": planes},
            "image_uncertainty": result.scores.get("image"),
        }
        drawn = None
        if result.probabilities is not None:
            classes = self._ensemble.plan.classes
            drawn = {self._labels[name]: result.class_probabilities(index) for name, index in classes.items()}
        return Made(table[result.labels], dict(self._labels), findings, about, table[result.beneath], drawn)


def describe_request(
    method: Mapping[str, Any],
    outputs: tuple[str, ...],
    modality: str | None = None,
    seg_type: SegmentationKind = "BINARY",
) -> dict[str, Any]:
    """Return all that the results of a run depend on beside the studies, JSON-able."""
    return {
        "version": __version__,
        "method": dict(method),
        "outputs": list(outputs),
        "modality": modality,
        "seg_type": seg_type,
    }
