"""Small files that unpack to much: the memory of the process that reads them, measured.

The bound is four times the bytes of the voxels that a file states, and 200 MB: what docs/security.md promises.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate

from medclipsam.base.errors import MedClipSamError
from medclipsam.imaging import isolation, read_image
from medclipsam.imaging.archives import unpack
from medclipsam.imaging.dicom_seg import SegmentInfo, read_segmentation, write_segmentation
from medclipsam.imaging.whole import is_whole

MB = 2**20
FACTOR, EXTRA = 4, 200_000_000
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is known on Linux"),
]


def rgba(folder: Path) -> tuple[Path, int]:
    """Return an RGBA picture and the bytes of its pixels."""
    Image.new("RGBA", (6000, 5000), (9, 9, 9, 128)).save(folder / "a.png")
    return folder / "a.png", 6000 * 5000 * 4


def tiff(folder: Path) -> tuple[Path, int]:
    Image.new("RGB", (6000, 5000)).save(folder / "a.tif", compression="tiff_adobe_deflate")
    return folder / "a.tif", 6000 * 5000 * 3


def nifti(folder: Path) -> tuple[Path, int]:
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((512, 512, 120), np.int16), np.eye(4)), folder / "a.nii.gz")
    return folder / "a.nii.gz", 512 * 512 * 120 * 2


def extension(folder: Path) -> tuple[Path, int]:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape((2, 2, 2))
    length = 320 * MB
    header["vox_offset"] = 352 + length
    head = header.binaryblock + b"\1\0\0\0" + struct.pack("<ii", length, 6)
    with gzip.open(folder / "a.nii.gz", "wb", 1) as file:
        file.write(head)
        for _ in range(320):
            file.write(bytes(MB))
    return folder / "a.nii.gz", 16


def deflated(folder: Path, write_radiograph: Callable[[np.ndarray, Path], None], change: str) -> tuple[Path, int]:
    write_radiograph(np.zeros((64, 64), np.uint8), folder / "plain.dcm")
    data = pydicom.dcmread(folder / "plain.dcm")
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    if change == "group 2":
        data.file_meta.PrivateInformationCreatorUID = "1.2.3"
        data.file_meta.PrivateInformation = bytes(5000)
    data.add_new(0x7FE10010 if change == "behind" else 0x00090010, "LO", "much")
    data.add_new(0x7FE11010 if change == "behind" else 0x00091010, "OB", bytes(320 * MB))
    data.save_as(folder / "a.dcm", enforce_file_format=True)
    (folder / "plain.dcm").unlink()
    return folder / "a.dcm", 64 * 64


def elements(folder: Path, write_radiograph: Callable[[np.ndarray, Path], None]) -> tuple[Path, int]:
    """Return a file of many small elements behind its pixels."""
    write_radiograph(np.zeros((64, 64), np.uint8), folder / "a.dcm")
    with (folder / "a.dcm").open("ab") as file:
        file.write(b"".join(struct.pack("<HH2sH", 0x7FE1 + 2 * (n >> 16), n & 0xFFFF, b"LO", 0) for n in range(2**21)))
    return folder / "a.dcm", 64 * 64


def peak(work: Callable[[], object]) -> tuple[int, bool]:
    """Return by how many bytes work makes this process and its readers grow at the most, and whether it is refused."""
    isolation.start()
    isolation.call(len, "", preload=("SimpleITK", "highdicom.seg"))
    processes = [psutil.Process(), *map(psutil.Process, isolation._pool.pids())]
    for process in processes:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    before = sum(process.memory_info().rss for process in processes)
    try:
        work()
        refused = False
    except MedClipSamError:
        refused = True
    now = [psutil.Process(), *map(psutil.Process, isolation._pool.pids())]
    return sum(map(_high, (process.pid for process in now))) - before, refused


def _high(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


CASES = ["rgba", "tiff", "nifti", "extension", "elements", "group 2", "before", "behind"]


@pytest.mark.parametrize("case", CASES)
def test_memory_is_bounded_by_the_stated_voxels(
    tmp_path: Path,
    write_radiograph: Callable[[np.ndarray, Path], None],
    note: Callable[[str, str, object], None],
    case: str,
) -> None:
    if case in ("group 2", "before", "behind"):
        path, stated = deflated(tmp_path, write_radiograph, case)
    elif case == "elements":
        path, stated = elements(tmp_path, write_radiograph)
    else:
        path, stated = {"rgba": rgba, "tiff": tiff, "nifti": nifti, "extension": extension}[case](tmp_path)
    for work in (is_whole, read_image):
        grown, refused = peak(lambda work=work: work(path))
        note(f"memory, {case}", f"MiB stated / grown, {work.__name__}", f"{stated // MB} / {grown // MB}")
        assert grown < FACTOR * stated + EXTRA
        # two million empty elements are valid: read or refused, but never with more memory
        if work is read_image and case != "elements":
            assert refused == (case not in ("rgba", "tiff", "nifti"))


@pytest.mark.parametrize("case", ["deflated", "larger picture", "more frames"])
def test_segmentations_that_unpack_to_much_are_refused(
    tmp_path: Path,
    write_radiograph: Callable[[np.ndarray, Path], None],
    note: Callable[[str, str, object], None],
    case: str,
) -> None:
    write_radiograph(np.zeros((64, 64), np.uint8), tmp_path / "film.dcm")
    image = read_image(tmp_path / "film.dcm")
    write_segmentation(np.ones((1, 64, 64), np.uint8), image, [SegmentInfo("heart", 1)], tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    if case == "deflated":
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        data.add_new(0x00090010, "LO", "much")
        data.add_new(0x00091010, "OB", bytes(320 * MB))
    else:
        data.SegmentationType, data.MaximumFractionalValue = "FRACTIONAL", 1
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit = 7
        content = io.BytesIO()
        Image.new("L", (9000, 9000) if case == "larger picture" else (64, 64)).save(content, "JPEG2000")
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        data.PixelData = encapsulate([content.getvalue()])
        if case == "more frames":
            data.NumberOfFrames = 2**31 - 1
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    grown, refused = peak(lambda: read_segmentation(tmp_path / "a.dcm", image, lambda segment: 1))
    note(f"memory, segmentation, {case}", "MiB grown", grown // MB)
    assert refused
    assert grown < EXTRA


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_long_names_and_headers_of_tar_archives_are_bounded(
    tmp_path: Path, note: Callable[[str, str, object], None], kind: bytes
) -> None:
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = kind, 320 * MB
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        file.write(entry.tobuf(tarfile.GNU_FORMAT))
        for _ in range(320):
            file.write(bytes(MB))
        file.write(tarfile.TarInfo("a").tobuf() + bytes(1024))
    folder = tmp_path / "inside"
    folder.mkdir()
    grown, refused = peak(lambda: unpack(tmp_path / "a.tar.gz", folder, max_bytes=MB))
    assert refused
    assert grown < EXTRA
    note(f"memory, tar {kind.decode()!r}", "MiB grown", grown // MB)


def test_a_zip_archive_with_a_long_directory_is_refused(tmp_path: Path) -> None:
    import zipfile

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(200):
            archive.writestr(f"{number}", b"")
    (tmp_path / "a.zip").write_bytes(content.getvalue())
    (tmp_path / "inside").mkdir()
    with pytest.raises(MedClipSamError):
        unpack(tmp_path / "a.zip", tmp_path / "inside", max_bytes=MB, max_files=199)
