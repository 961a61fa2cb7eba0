"""The infer task `refine`: clicks and boxes of 3D Slicer, OHIF and scripts mend the present mask."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam import __version__
from medclipsam.base.errors import InputError, OptionError
from medclipsam.imaging import MedicalImage, Window, read_mask
from medclipsam.imaging.sizes import size_in_words
from medclipsam.pipeline.refine import Clicks, RefineResult
from medclipsam.server.base.task import InferTask
from medclipsam.server.inference.last_masks import LastMasks, client_of
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.request_schema import MODALITIES, SegmentRequest, flag
from medclipsam.server.inference.results import jsonable, write_result
from medclipsam.server.studies.images import ImageReader, is_upload
from medclipsam.targets import FINDING_LABELS, TargetSet, label_table

logger = logging.getLogger(__name__)

BACKGROUND = "background"
# The label of what is marked without a name, where there is no mask to take it from.
_UNNAMED = FINDING_LABELS["finding 1"]


@dataclass(frozen=True)
class RefineRequest:
    """One checked request for `refine`.

    Parameters
    ----------
    points : dict of str to list
        Voxels [i, j, k] in each label, by its name.
    foreground : list
        Voxels of the label that `label` names.
    background : list
        Voxels outside of all of them.
    box : list or None
        Two opposite corners of a box for the label that `label` names.
    label : str or None
        Name of the label that `foreground` and `box` are for.
    mask : Path or None
        The present mask that was sent along.
    use_last_mask : bool
        Whether the mask that the client was given last stands for one that was not sent.
    answer : SegmentRequest
        The answer's file format, and the modality.
    """

    points: dict[str, list[Any]]
    foreground: list[Any]
    background: list[Any]
    box: list[Any] | None
    label: str | None
    mask: Path | None
    use_last_mask: bool
    answer: SegmentRequest

    @classmethod
    def from_mapping(cls, request: Mapping[str, Any], names: frozenset[str]) -> RefineRequest:
        """Check a request as MONAI Label hands it to an infer task.

        Parameters
        ----------
        request : mapping
            3D Slicer and OHIF send the points of each label under the label's name, 3D Slicer together with the
            present label in `label`; scripts `foreground`, `background`, `box` and `label`.
        names : frozenset of str
            Names of labels that may be keys.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type.
        """
        given = dict(request)
        mask = given.get("label")
        sent = Path(mask) if isinstance(mask, str) and is_upload(Path(mask)) else None
        label = given.pop("target", None) or (None if sent else mask) or None
        if label is not None and not isinstance(label, str):
            raise OptionError("label", label, "the name of a label")
        # where "background" is the present segment, 3D Slicer names it, and means none of the labels
        label = None if label == BACKGROUND else label
        points = {name: _points(name, given.pop(name)) for name in names & given.keys()}
        foreground, background = (_points(key, given.pop(key, None)) for key in ("foreground", BACKGROUND))
        box = _points("box", given.pop("box", None)) or None
        use_last_mask = flag(given, "use_last_mask", default=True)
        given.pop("use_last_mask", None)
        own = ("foreground", "background", "box", "label", "use_last_mask", "the labels")
        answer = SegmentRequest.from_answer(given, own)
        return cls(
            {name: marked for name, marked in points.items() if marked},
            foreground,
            background,
            box,
            label.strip() if label else None,
            sent,
            use_last_mask,
            answer,
        )


class RefineTask(InferTask):
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
            "Mends the present mask by clicks in it, outside of it, or a box (SAM)",
            # 3D Slicer and OHIF offer points for this type, and send those of each label under its name
            type="deepedit",
            labels=self._table,
            config={"modality": ["auto", *MODALITIES], "use_last_mask": True},
        )
        self._pipeline = pipeline
        self._windows = {target.label: Window(*target.window) for target in targets if target.window}
        self._images = images
        self._masks = masks

    def check(self, request: dict[str, Any]) -> RefineRequest:
        """Return the typed request.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        """
        return RefineRequest.from_mapping(request, frozenset(self._table))

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Mend the mask of the image file or series folder `request["image"]`.

        Returns
        -------
        file : str
            Path of the mask, which the caller removes.
        params : dict
            `label_names`, `sentence`, `present_mask` (where it came from), what was done on each plane, `latencies`.

        Raises
        ------
        MedClipSamError
            If the request or the image cannot be used.
        """
        checked = self.check(request)
        marks = [time.perf_counter()]
        path, client = Path(request["image"]), client_of(request)
        image = self._images.read(path, checked.answer.modality)
        source, present, names = self._present(checked, image, client, path)
        clicks = self._clicks(checked, image, present, names)
        marks.append(time.perf_counter())
        windows = self._windows if image.modality == "CT" else {}
        result, weights = self._pipeline.refine(image, present, clicks, windows)
        marks.append(time.perf_counter())
        named = self._named(clicks, result, names)
        self._masks.keep(client, path, result.labels, named, {**self._masks.made(client, path), "clicks": True})
        save = flag(request, "save_label", default=False)
        file = write_result(result.labels, image, checked.answer, read_back=save)
        marks.append(time.perf_counter())

        read, work, write = (round(end - start, 3) for start, end in itertools.pairwise(marks))
        total = round(marks[-1] - marks[0], 3)
        logger.info("Refined in %.2f s (read %.2f, refine %.2f, write %.2f)", total, read, work, write)
        params = {
            "label_names": named,
            "sentence": _sentence(result, named, source, image),
            "present_mask": source,
            "planes": [vars(plane) for plane in result.planes],
            "weights": weights,
            "image": image.describe(),
            "seconds": result.seconds,
            "version": __version__,
            "latencies": {"pre": read, "infer": work, "write": write, "total": total},
        }
        return file, jsonable(params)

    def _present(
        self, checked: RefineRequest, image: MedicalImage, client: str, path: Path
    ) -> tuple[str, np.ndarray | None, dict[str, int]]:
        """Return where the present mask comes from, the mask, and the names of labels that it brings."""
        last = self._masks.find(client, path) if checked.use_last_mask else None
        names = last[1] if last else {}
        if checked.mask is not None:
            return "sent", read_mask(checked.mask, image), names
        if last is not None and last[0].shape == (image.n_planes, *image.plane_shape):
            return "last", last[0], names
        return "none", None, names

    def _clicks(
        self, checked: RefineRequest, image: MedicalImage, present: np.ndarray | None, names: dict[str, int]
    ) -> dict[int, Clicks]:
        known = {**self._table, **names}
        points = {known[name]: list(marked) for name, marked in checked.points.items()}
        box_label = None
        if checked.foreground or checked.box:
            box_label = self._label(checked, image, present, known)
            points[box_label] = points.get(box_label, []) + checked.foreground
        if checked.background:
            # it takes away from the label that is named, else from those that it lies in
            for label in self._under(checked, image, present, known):
                points.setdefault(label, [])
        return {
            label: Clicks.from_ijk(image, marked, checked.background, checked.box if label == box_label else None)
            for label, marked in points.items()
        }

    def _label(
        self, checked: RefineRequest, image: MedicalImage, present: np.ndarray | None, known: dict[str, int]
    ) -> int:
        """Return the label that foreground and box are for: the named one, or the only one there can be meant."""
        if checked.label is not None:
            return _known(checked.label, known)
        there: set[int] = set()
        if present is not None:
            where = tuple(Clicks.from_ijk(image, checked.foreground).foreground.T)
            there = {int(label) for label in present[where] if label} or {int(n) for n in np.unique(present) if n}
        if len(there) > 1:
            found = ", ".join(name for name, label in known.items() if label in there)
            raise InputError(f"The present mask holds several labels; name one of them with label: {found}.")
        return there.pop() if there else _UNNAMED

    def _under(
        self, checked: RefineRequest, image: MedicalImage, present: np.ndarray | None, known: dict[str, int]
    ) -> list[int]:
        if checked.label is not None:
            return [_known(checked.label, known)]
        if present is None:
            return [_UNNAMED]
        where = tuple(Clicks.from_ijk(image, background=checked.background).background.T)
        return sorted({int(label) for label in present[where] if label}) or [_UNNAMED]

    def _named(self, clicks: Mapping[int, Clicks], result: RefineResult, names: dict[str, int]) -> dict[str, int]:
        """Return the names of the labels that were asked for or that the mask holds, a client's own words first."""
        wanted = {*clicks, *(int(label) for label in np.unique(result.labels) if label)}
        every = {label: name for name, label in [*self._table.items(), *names.items()]}
        return {every.get(label, f"label {label}"): label for label in sorted(wanted)}


def _known(name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        raise OptionError("label", name, "one of " + ", ".join(known))
    return known[name]


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
