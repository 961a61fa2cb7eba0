"""What a final label's segments are called and who made them, from what the server knows of the mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import medclipsam
from medclipsam.imaging.dicom_seg import TISSUE, SegmentInfo
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.base.audit import Caller
from medclipsam.server.inference.last_masks import LastMasks, client_of
from medclipsam.server.studies.dicomweb import LabelText
from medclipsam.studies.final import is_by_person
from medclipsam.targets import FINDING_LABELS, SnomedCode, StructureCode, TargetSet, label_table

ZERO_SHOT = "MedCLIP-SAMv2 zero-shot"
NETWORK = "MedCLIP-SAMv2 network"
CLICKS = "SAM by clicks"
_FINDING = StructureCode(
    SnomedCode("49755003", "Morphologically Abnormal Structure"),
    SnomedCode("49755003", "Morphologically Abnormal Structure"),
)
# The one segment of an empty label about which nobody said what was looked for.
NOTHING = SegmentInfo("no finding", None, _FINDING, description="Nothing was found.")


class SegmentDescriber:
    """Describes final labels, see `DicomWebStudies`.

    Parameters
    ----------
    targets : TargetSet
        The known targets: names, labels and codes.
    masks : LastMasks
        The masks that clients were given last, against which a saved label tells whether a person changed it.
    """

    def __init__(self, targets: TargetSet, masks: LastMasks) -> None:
        self._masks = masks
        self._codes = {target.name: target.code for target in targets if target.code}
        self._table = label_table(targets)
        self._names = {label: name for name, label in self._table.items()}

    def __call__(self, image_id: str, path: Path, label_map: LabelMap, info: Mapping[str, Any]) -> LabelText:
        """Return the segments of a label map.

        Parameters
        ----------
        image_id : str
            The image.
        path : Path
            Its file or folder.
        label_map : LabelMap
            The label.
        info : mapping
            What came with the label, which tells whether a person saved it, see `is_by_person`.

        Notes
        -----
        What was asked for is described too where the label map does not hold it: it is absent. That a client's
        `label_info` lists a name says nothing of the kind, since 3D Slicer lists every label of the server there.
        """
        # who saves it stands beside the label
        client = client_of(Caller(str(info.get("user") or ""), str(info.get("client_id") or "")))
        given = self._masks.find(client, path)
        if given is not None and given.values.shape != label_map.values.shape:
            given = None
        by_person = is_by_person(info)
        asked = {**(given.names if given and by_person else {}), **label_map.asked}
        names = {**self._names, **{label: name for name, label in {**label_map.names, **asked}.items()}}
        there = label_map.present
        described = sorted(there | {label for label in asked.values() if label}) or sorted(label_map.names.values())
        made = self._masks.made(client, path) if by_person else info
        segments = []
        for label in described:
            name = names.get(label, f"label {label}")
            segment = SegmentInfo(name, label, self._code(name, label))
            if not by_person:
                segment = _computed(segment, "AUTOMATIC", made)
            elif given is not None and label in given.names.values():
                same = np.array_equal(label_map.mask_of(label), given.mask_of(label)) and not made.get("clicks")
                segment = _computed(segment, "AUTOMATIC" if same else "SEMIAUTOMATIC", made)
            segments.append(segment)
        title = ", ".join(segment.name for segment in segments if segment.label in there)
        absent = ", ".join(segment.name for segment in segments if segment.label not in there)
        user = str(info.get("user") or "") if by_person else ""
        return LabelText(
            segments or [NOTHING],
            series_description=f"medclipsam: {title or ('no ' + absent if absent else NOTHING.name)}",
            content_description=f"Absent: {absent}" if absent else "",
            creator=user,
        )

    def label_of(self, segment: SegmentInfo, taken: set[int]) -> int:
        """Return the label of a segment that was read: its own, else its name's, else the next one of the findings."""
        if segment.label is not None:
            return segment.label
        if segment.name == NOTHING.name:
            return 0
        known = self._table.get(segment.name)
        if known is not None and known not in taken:
            return known
        free = [label for label in FINDING_LABELS.values() if label not in taken]
        return free[0] if free else 0

    def _code(self, name: str, label: int) -> StructureCode:
        code = self._codes.get(name)
        return code or (_FINDING if label in FINDING_LABELS.values() else TISSUE)


def _computed(segment: SegmentInfo, algorithm: str, made: Mapping[str, Any]) -> SegmentInfo:
    """Add what computed a segment: model, prompt and weights, as far as is known."""
    params = made.get("params")
    known = {**made, **(params if isinstance(params, Mapping) else {})}
    text = known.get("text")
    weights = known.get("weights")
    parameters: dict[str, str] = {}
    if isinstance(known.get("model"), str):
        parameters["model"] = known["model"]
    if isinstance(text, str):
        parameters["prompt"] = text
    for kind, entry in weights.items() if isinstance(weights, Mapping) else ():
        if isinstance(entry, Mapping) and "sha256" in entry:
            parameters[f"{kind} weights"] = f"{entry.get('name', '')} sha256 {str(entry['sha256'])[:16]}".strip()
    told = "; ".join(f"{key}: {value}" for key, value in parameters.items())
    mended = " Changed by a person." if algorithm == "SEMIAUTOMATIC" else ""
    return replace(
        segment,
        algorithm=algorithm,
        algorithm_name=ZERO_SHOT if isinstance(text, str) else NETWORK if "model" in known else CLICKS,
        algorithm_version=str(known.get("version") or medclipsam.__version__),
        parameters={key.replace(" ", "_"): value for key, value in parameters.items()},
        description=f"{told}.{mended}".strip() if told else mended.strip(),
    )
