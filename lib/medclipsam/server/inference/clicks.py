"""The infer task `refine`: clicks and boxes of 3D Slicer, OHIF and scripts mend the present mask."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam import __version__
from medclipsam.base.errors import InputError, OptionError
from medclipsam.base.options import ZeroShotOptions, parse_planes
from medclipsam.imaging import MedicalImage, Window, read_mask
from medclipsam.imaging.label_map import LabelMap, ValueNames, read_label_map
from medclipsam.imaging.masks import mask_of
from medclipsam.imaging.seg_nrrd import has_layers
from medclipsam.imaging.sizes import size_in_words
from medclipsam.measurements import measure
from medclipsam.pipeline.refine import Clicks, RefineResult
from medclipsam.server.base.errors import ConflictError
from medclipsam.server.inference.infer_request import (
    DrawnMask,
    Envelope,
    InferRequest,
    shared_fields,
    task_options,
)
from medclipsam.server.inference.last_masks import LastMasks, client_of
from medclipsam.server.inference.model_task import Made, ModelTask, Opened
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.request_schema import MODALITIES, flag
from medclipsam.server.inference.work import Job
from medclipsam.server.studies.images import ImageReader
from medclipsam.targets import FINDING_LABELS, TargetSet, label_table

BACKGROUND = "background"
# The label of what is marked without a name, where there is no mask to take it from.
_UNNAMED = FINDING_LABELS["finding 1"]


@dataclass(frozen=True, kw_only=True)
class RefineRequest(InferRequest):
    """One checked request for `refine`; the present mask may come along as `mask`.

    Parameters
    ----------
    points : dict of str to list
        Voxels [i, j, k] in each label, by its name.
    foreground : list
        Voxels of the label that `label_name` names.
    background : list
        Voxels outside of all of them.
    box : list or None
        Two opposite corners of a box for the label that `label_name` names.
    label_name : str or None
        Name of the label that `foreground` and `box` are for.
    use_last_mask : bool
        Whether the mask that the client was given last stands for one that was not sent.
    propagate : bool
        Whether corrections are carried on to the other planes of a volume.
    drawn : str
        Planes of the mask that a person has drawn, as ranges counted from 0; empty for none.
    """

    points: dict[str, list[Any]]
    foreground: list[Any]
    background: list[Any]
    box: list[Any] | None
    label_name: str | None
    use_last_mask: bool
    propagate: bool
    drawn: str

    @classmethod
    def from_params(cls, params: Mapping[str, Any], envelope: Envelope, names: frozenset[str]) -> RefineRequest:
        """Check the params of a client.

        Parameters
        ----------
        params : mapping
            3D Slicer and OHIF send the points of each label under the label's name, 3D Slicer together with the
            present label in `label`; scripts `foreground`, `background`, `box` and `label`, or `target` in its place.
        envelope : Envelope
            What comes with them.
        names : frozenset of str
            Names of labels that may be keys.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type.
        """
        shared = shared_fields(params, envelope)
        keys = {"foreground", BACKGROUND, "box", "target", "label", "use_last_mask", "propagate", "drawn"}
        given = task_options(params, {*keys, *names})
        label = given.get("target") or given.get("label")
        if label is not None and not isinstance(label, str):
            raise OptionError("label", label, "the name of a label")
        points = {name: _points(name, given[name]) for name in names & given.keys()}
        foreground, background, box = (_points(key, given.get(key)) for key in ("foreground", BACKGROUND, "box"))
        return cls(
            points={name: marked for name, marked in points.items() if marked},
            foreground=foreground,
            background=background,
            box=box or None,
            # where "background" is the present segment, 3D Slicer names it, and means none of the labels
            label_name=None if label in (None, BACKGROUND) else label.strip(),
            use_last_mask=flag(given, "use_last_mask", default=True),
            propagate=flag(given, "propagate", default=False),
            drawn=_ranges(given.get("drawn")),
            **shared,
        )


class RefineTask(ModelTask[RefineRequest]):
    """Mend the present mask by clicks.

    Parameters
    ----------
    pipeline : SharedPipeline
        The server's pipeline, whose SAM and whose cache of embeddings are used.
    targets : TargetSet
        Known targets: their labels, and the windows that they are looked at through.
    images : ImageReader
        Reads the images.
    masks : LastMasks
        The masks that clients were given last.
    """

    def __init__(self, pipeline: SharedPipeline, targets: TargetSet, images: ImageReader, masks: LastMasks) -> None:
        self._table = label_table(targets)
        super().__init__(
            images=images,
            masks=masks,
            description="Mends the present mask by clicks in it, outside of it, or a box (SAM)",
            # 3D Slicer and OHIF offer points for this type, and send those of each label under its name
            type="deepedit",
            labels=self._table,
            config={"modality": ["auto", *MODALITIES], "use_last_mask": True, "propagate": False},
        )
        self._pipeline = pipeline
        self._windows = {target.label: Window(*target.window) for target in targets if target.window}

    def request(self, params: Mapping[str, Any], envelope: Envelope) -> RefineRequest:
        """Return the checked request, see `RefineRequest.from_params`.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        """
        return RefineRequest.from_params(params, envelope, frozenset(self._table))

    def _work(self, request: RefineRequest, opened: Opened, job: Job | None) -> Made:
        image, path, client = opened.image, opened.path, client_of(request.caller)
        source, present, names = self._present(request, image, client, path)
        clicks = self._clicks(request, image, present, names)
        windows = self._windows if image.modality == "CT" else {}
        drawn = self._drawn(request, image, present, {**self._table, **names})
        propagate = request.propagate or bool(drawn)
        result, weights = self._pipeline.refine(
            image,
            None if present is None else present.values,
            clicks,
            windows,
            job,
            propagate=propagate,
            drawn=drawn,
            beneath=None if present is None else present.beneath,
        )
        named = self._named({*clicks, *drawn}, result, names)
        params = {
            "sentence": _sentence(result, named, source, image),
            "present_mask": source,
            "planes": [vars(plane) for plane in result.planes],
            "propagated": {
                name: [track.to_dict() for track in result.tracks[label]]
                for name, label in named.items()
                if label in result.tracks
            },
            "measurements": {
                name: measure(mask_of(label, result.labels, result.beneath), image).to_dict()
                for name, label in named.items()
            },
            "weights": weights,
            "image": image.describe(),
            "seconds": result.seconds,
            "version": __version__,
        }
        origin = {**self._masks.made(client, path), "clicks": True}
        return Made(result.labels, named, params, origin, beneath=result.beneath)

    def _present(
        self, request: RefineRequest, image: MedicalImage, client: str, path: Path
    ) -> tuple[str, LabelMap | None, dict[str, int]]:
        """Return where the present mask comes from, the mask, and the names of labels that it brings."""
        last = self._masks.find(client, path) if request.use_last_mask else None
        names = last.names if last else {}
        if isinstance(request.mask, DrawnMask):
            label = request.mask.label
            if label.values.shape != (image.n_planes, *image.plane_shape):
                raise ConflictError("The image has changed since the mask was drawn; open it again.")
            return "sent", label, {**names, **label.names}
        if request.mask is not None:
            sent = request.mask.path
            if sent.suffix.lower() == ".nrrd" and has_layers(sent):
                layered, _ = read_label_map(sent, image, ValueNames(), self._table)
                return "sent", layered, {**names, **layered.names}
            return "sent", LabelMap(read_mask(sent, image), image), names
        if last is not None and last.values.shape == (image.n_planes, *image.plane_shape):
            return "last", LabelMap(last.values, image, beneath=last.beneath), names
        return "none", None, names

    def _clicks(
        self, request: RefineRequest, image: MedicalImage, present: LabelMap | None, names: dict[str, int]
    ) -> dict[int, Clicks]:
        known = {**self._table, **names}
        points = {known[name]: list(marked) for name, marked in request.points.items()}
        box_label = None
        if request.foreground or request.box:
            box_label = self._label(request, image, present, known)
            points[box_label] = points.get(box_label, []) + request.foreground
        if request.background:
            # it takes away from the label that is named, else from those that it lies in
            for label in self._under(request, image, present, known):
                points.setdefault(label, [])
        return {
            label: Clicks.from_ijk(image, marked, request.background, request.box if label == box_label else None)
            for label, marked in points.items()
        }

    def _drawn(
        self, request: RefineRequest, image: MedicalImage, present: LabelMap | None, known: dict[str, int]
    ) -> dict[int, list[int]]:
        """Return the planes that a person has drawn, by their label."""
        if not request.drawn:
            return {}
        try:
            planes = parse_planes(request.drawn, image.n_planes)
        except OptionError as error:
            raise OptionError("drawn", request.drawn, error.allowed) from None
        return {self._label(request, image, present, known): planes}

    def _label(
        self, request: RefineRequest, image: MedicalImage, present: LabelMap | None, known: dict[str, int]
    ) -> int:
        """Return the label that foreground and box are for: the named one, or the only one there can be meant."""
        if request.label_name is not None:
            return _known(request.label_name, known)
        there: set[int] = set()
        if present is not None:
            where = tuple(Clicks.from_ijk(image, request.foreground).foreground.T)
            there = _labels_at(present, where) or set(present.present)
        if len(there) > 1:
            found = ", ".join(name for name, label in known.items() if label in there)
            raise InputError(f"The present mask holds several labels; name one of them with label: {found}.")
        return there.pop() if there else _UNNAMED

    def _under(
        self, request: RefineRequest, image: MedicalImage, present: LabelMap | None, known: dict[str, int]
    ) -> list[int]:
        if request.label_name is not None:
            return [_known(request.label_name, known)]
        if present is None:
            return [_UNNAMED]
        where = tuple(Clicks.from_ijk(image, background=request.background).background.T)
        return sorted(_labels_at(present, where)) or [_UNNAMED]

    def _named(self, asked: Iterable[int], result: RefineResult, names: dict[str, int]) -> dict[str, int]:
        """Return the names of the labels that were asked for or that the mask holds, a client's own words first."""
        layers = (result.labels, *result.beneath)
        wanted = {*asked, *(int(label) for layer in layers for label in np.unique(layer) if label)}
        every = {label: name for name, label in [*self._table.items(), *names.items()]}
        return {every.get(label, f"label {label}"): label for label in sorted(wanted)}


def _labels_at(present: LabelMap, where: tuple[np.ndarray, ...]) -> set[int]:
    """Return the labels of voxels, those beneath others too."""
    return {int(label) for layer in present.layers for label in layer[where] if label}


def _known(name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        raise OptionError("label", name, "one of " + ", ".join(known))
    return known[name]


def _ranges(value: Any) -> str:
    """Return planes as ranges: as they are given, or of a list of numbers."""
    listed = isinstance(value, list) and all(type(each) is int for each in value)
    text = ",".join(map(str, value)) if listed else value
    if text is None or text == "":
        return ""
    # checked as the option `planes` is
    try:
        return ZeroShotOptions(planes=text).planes
    except OptionError as error:
        raise OptionError("drawn", value, error.allowed) from None


def _points(key: str, value: Any) -> list[Any]:
    """Return a list as clients send it: as it is, or as JSON in a text field."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise OptionError(key, value, "a list of voxel indices, such as [[120, 80, 3]]") from None
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise OptionError(key, value, "a list of voxel indices, such as [[120, 80, 3]]")
    return value


def _sentence(result: RefineResult, names: Mapping[str, int], source: str, image: MedicalImage) -> str:
    mask = {"sent": "The mask that was sent", "last": "The last mask of this image", "none": "An empty mask"}[source]
    parts = []
    for name, label in names.items():
        planes = [plane for plane in result.planes if plane.label == label]
        if planes:
            changed = sum(plane.changed for plane in planes)
            where = f"{len(planes)} plane{'s' if len(planes) > 1 else ''}"
            parts.append(f"{name}: {size_in_words(changed, image)} changed on {where}")
    return f"{mask} was mended; {'; '.join(parts)}." if parts else f"{mask} was left as it is."
