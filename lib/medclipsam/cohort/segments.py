"""What the segments of a cohort's DICOM SEG are called, and what computed them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import medclipsam
from medclipsam.cohort.methods import Made
from medclipsam.imaging.dicom_seg import TISSUE, SegmentInfo
from medclipsam.targets import TargetSet

_ALGORITHMS = {"zero_shot": "MedCLIP-SAMv2 zero-shot", "network": "MedCLIP-SAMv2 network"}


def segments_of(made: Made, request: Mapping[str, Any]) -> list[SegmentInfo]:
    """Return the segments of a label map, those that were looked for and are absent among them.

    Parameters
    ----------
    made : Made
    request : mapping
        The method of the run.
    """
    targets = TargetSet.load(*(Path(file["file"]) for file in request.get("targets_files", ())))
    codes = {target.name: target.code for target in targets if target.code}
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
