"""Size and seconds of a label map as DICOM SEG of each kind: 400 planes of 512 x 512 pixels with five structures."""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from medclipsam.demo.dicom import ct_slice
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.dicom_seg import SegmentationKind, SegmentInfo, read_segmentation, write_segmentation

# Centre and radii of each structure, as shares of the volume's planes, rows and columns.
STRUCTURES = (
    *((0.5, 0.5, 0.3, 0.45, 0.3, 0.16), (0.5, 0.5, 0.7, 0.45, 0.3, 0.16), (0.62, 0.55, 0.5, 0.15, 0.12, 0.12)),
    *((0.15, 0.5, 0.4, 0.12, 0.16, 0.2), (0.5, 0.78, 0.5, 0.47, 0.04, 0.04)),
)
KINDS: tuple[SegmentationKind, ...] = ("BINARY", "LABELMAP")


def series(folder: Path, planes: int, size: int) -> MedicalImage:
    """Return a CT of air."""
    first = ct_slice(np.full((size, size), -1000, np.int16), 0, 1, spacing=0.8)
    for index in range(planes):
        data = copy.deepcopy(first)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.InstanceNumber, data.ImagePositionPatient, data.SliceThickness = index + 1, [0, 0, float(index)], "1"
        data.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    return read_image(folder)


def label_map(planes: int, size: int) -> np.ndarray:
    """Return ellipsoids, uint8 [planes, size, size]."""
    place = np.ogrid[:planes, :size, :size]
    labels = np.zeros((planes, size, size), np.uint8)
    for value, shares in enumerate(STRUCTURES, start=1):
        lengths = (planes, size, size)
        apart = sum(
            ((axis - share * length) / (radius * length)) ** 2
            for axis, length, share, radius in zip(place, lengths, shares[:3], shares[3:], strict=True)
        )
        labels[(apart < 1) & (labels == 0)] = value
    return labels


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planes", type=int, default=400)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args(arguments)
    segments = [SegmentInfo(f"structure {value}", value) for value in range(1, len(STRUCTURES) + 1)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "series"
        folder.mkdir()
        image, labels = series(folder, given.planes, given.size), label_map(given.planes, given.size)
        print("  kind            MB  writing s  reading s")
        for kind in KINDS:
            file = Path(temporary) / f"{kind}.dcm"
            start = time.perf_counter()
            write_segmentation(labels, image, segments, file, kind=kind)
            written = time.perf_counter()
            found, _ = read_segmentation(file, image, lambda segment: segment.label or 0)
            read = time.perf_counter()
            if not np.array_equal(found, labels):
                raise SystemExit(f"{kind} does not give the labels back")
            size = file.stat().st_size / 1e6
            print(f"  {kind:<10} {size:7.1f} {written - start:10.1f} {read - written:10.1f}")


if __name__ == "__main__":
    main()
