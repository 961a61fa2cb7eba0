"""Options of label sets: read without what writes and reads images, for the help of the command line."""

from __future__ import annotations

from typing import Literal, get_args

from medclipsam.base.options import Options, option

Format = Literal["nnunet", "coco", "nifti", "bids", "seg", "rtstruct"]
FORMATS: tuple[str, ...] = get_args(Format)


class ExportOptions(Options):
    """How labels are written as a set."""

    modality: str | None = option(None, "DICOM modality of the images that are taken", shown="all")
    test_share: float = option(0.0, "Expected share of patients kept for tests", 0, 0.9)
    folds: int = option(5, "Number of folds that the other patients are divided into", 1, 20)
    seed: int = option(0, "Seed of the choice of test patients and folds", 0, 2**31 - 1)
    dataset_id: int = option(501, "Number of the data set in nnU-Net's folder name", 1, 999)
    name: str = option(
        "Labels",
        "Name of the set; nnU-Net's folder is Dataset<number>_<name>",
        pattern=r"^[A-Za-z0-9]+$",
        allowed="letters and digits",
    )
    overlaps: Literal["refuse", "smaller-on-top"] = option(
        "refuse", "What happens to segments that overlap in nnU-Net and NIfTI sets: left out with its image, or flat"
    )
    coco_masks: Literal["rle", "polygons"] = option("rle", "Form of masks in COCO; polygons lose holes")
    bids_suffix: str | None = option(
        None,
        "Suffix of images in BIDS, such as T1w",
        shown="the modality",
        pattern=r"^[A-Za-z0-9]+$",
        allowed="letters and digits",
    )
    seg_type: Literal["BINARY", "LABELMAP"] = option("BINARY", "Kind of DICOM SEG")
    reports: bool = option(False, "Write the measurements of each DICOM SEG as a structured report")


class ImportOptions(Options):
    """How a label set is read into a studies folder."""

    existing: Literal["keep", "replace", "beside"] = option(
        "keep", "What happens to final labels that images have already; beside counts both as readings of two people"
    )
    images: bool = option(True, "Copy images that the studies folder does not have")
    reader: str = option("import", "Name under which the labels are saved where the set names no person")
