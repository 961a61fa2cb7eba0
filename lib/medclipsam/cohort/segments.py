"""What the segments of a cohort's DICOM SEG are called, and what computed them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import medclipsam
from medclipsam.cohort.methods import Made
from medclipsam.imaging.dicom_seg import TISSUE, SegmentInfo
from medclipsam.targets import StructureCode, TargetSet

_ALGORITHMS = {"zero_shot": "MedCLIP-SAMv2 zero-shot", "network": "MedCLIP-SAMv2 network"}


def segments_of(made: Made, request: Mapping[str, Any]) -> list[SegmentInfo]:
    """Return the segments of a label map, those that were looked for and are absent among them.

    Parameters
    ----------
    made : Made
    request : mapping
        The method of the run.
    """
    codes = _codes(tuple(Path(file["file"]) for file in request.get("targets_files", ())))
    weights = json.loads(made.about.get("weights") or "{}")
    parameters = {"prompt": str(made.about.get("text") or "")} if made.about.get("text") else {}
    for kind, entry in weights.items():
        if isinstance(entry, Mapping):
            parameters[f"{kind}_weights"] = f"{entry['name']} sha256 {entry['sha256'][:16]}"
    return [
        SegmentInfo(
            name,
            label,
            codes.get(name, TISSUE),
            "AUTOMATIC",
            _ALGORITHMS.get(request["kind"], str(request.get("factory", ""))),
            medclipsam.__version__,
            parameters,
        )
        for name, label in made.names.items()
    ]


@cache
def _codes(files: tuple[Path, ...]) -> dict[str, StructureCode]:
    """Return what the known targets and those of some files are in DICOM, by name."""
    return {target.name: target.code for target in TargetSet.load(*files) if target.code}
