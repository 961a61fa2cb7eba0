"""Label sets of DICOM: the images' own files, and a DICOM SEG or an RT Structure Set for each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from medclipsam.base.errors import InputError
from medclipsam.exchange.cases import Case, Incoming
from medclipsam.exchange.nifti_sets import read_provenance, write_splits
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.dicom_seg import SegmentationKind, SegmentInfo, read_masks, write_segmentation
from medclipsam.imaging.label_map import LabelMap
from medclipsam.imaging.masks import flatten
from medclipsam.imaging.rtstruct import read_structure_set, write_structure_set
from medclipsam.measurements import measure
from medclipsam.measurements.report import write_report


class DicomSet:
    """`images/<case>/`, the files of each image, `labels/<case>.dcm`, and reports of measurements in `reports/`.

    Parameters
    ----------
    root : Path
        The set's folder.
    kind : {"seg", "rtstruct"}
    seg_type : {"BINARY", "LABELMAP"}
        Of DICOM SEGs.
    reports : bool
        Whether the measurements of each SEG are written as a structured report.
    """

    def __init__(
        self,
        root: Path,
        kind: Literal["seg", "rtstruct"],
        seg_type: SegmentationKind = "BINARY",
        reports: bool = False,
    ) -> None:
        self.root = root
        self._kind = kind
        self._seg_type = seg_type
        self._reports = reports

    def add(self, case: Case) -> None:
        """Write one case.

        Raises
        ------
        InputError
            If the image is not DICOM, has no place in the patient where contours need one, or segments overlap in a
            LABELMAP.
        """
        segments = case.segments()
        if not segments:
            raise InputError(f"The label of {case.name} names no structure.")
        for folder in ("images", "labels"):
            (self.root / folder).mkdir(exist_ok=True)
        path = self.root / "labels" / f"{case.name}.dcm"
        if self._kind == "rtstruct":
            write_structure_set(case.label.drawn, case.image, segments, path)
        else:
            made = write_segmentation(case.label.drawn, case.image, segments, path, kind=self._seg_type)
            if self._reports:
                (self.root / "reports").mkdir(exist_ok=True)
                measured = [measure(case.label.mask_of(segment.label or 0), case.image) for segment in segments]
                write_report(measured, made, case.image, self.root / "reports" / f"{case.name}.dcm")
        source, target = case.image.source, self.root / "images" / case.name
        target.mkdir()
        for file in sorted(source.iterdir()) if source.is_dir() else [source]:
            shutil.copyfile(file, target / (file.name if file.suffix else f"{file.name}.dcm"))

    def finish(self, cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the splits."""
        write_splits(self.root / "splits.json", cases)


def read_dicom(root: Path, kind: Literal["seg", "rtstruct"]) -> list[Incoming]:
    """Return the cases of a set of DICOM SEGs or RT Structure Sets: `labels/*.dcm`."""
    labels = sorted((root / "labels").glob("*.dcm")) if (root / "labels").is_dir() else []
    if not labels:
        raise InputError(f"{root} has no labels/*.dcm.")
    known = read_provenance(root)
    found = []
    for label in labels:
        image = root / "images" / label.stem
        provenance = known.get(label.stem, {})
        name = str(provenance.get("image") or label.stem)
        read = partial(_read, label, kind)
        found.append(Incoming(label.stem, name, read, image if image.is_dir() else None, provenance))
    return found


def _read(path: Path, kind: str, image: MedicalImage) -> LabelMap:
    numbers: dict[str, int] = {}

    def label_of(segment: SegmentInfo) -> int:
        # one name is one label
        return numbers.setdefault(segment.name, len(numbers) + 1)

    reader = read_structure_set if kind == "rtstruct" else read_masks
    masks, _ = reader(path, image, label_of)
    inside = {label: mask >= 0.5 for label, mask in masks.items()}
    values, beneath = flatten(inside.items(), (image.n_planes, *image.plane_shape))
    return LabelMap(values, image, numbers, beneath=beneath)
