"""A folder of studies to try the server on: phantoms in several formats, and real pictures that pydicom carries.

`python -m medclipsam.demo.studies FOLDER [--n N]`
"""

from __future__ import annotations

import argparse
import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file

from medclipsam.base.errors import InputError
from medclipsam.base.files import write_bytes
from medclipsam.demo.dicom import ct_slice, dicom_bytes, xray
from medclipsam.demo.phantoms import make_phantom, make_volume

# Files inside the installed pydicom, published with it for its documentation and tests.
_PYDICOM_FILES = {
    "real-ct.dcm": "CT_small.dcm",
    "real-mr.dcm": "MR_small.dcm",
    "real-us-rgb.dcm": "examples_rgb_color.dcm",
    "real-us-palette.dcm": "examples_palette.dcm",
    "real-us-cine.dcm": "examples_ybr_color.dcm",
}


def write_studies(folder: str | Path, n: int = 3, *, seed: int = 0) -> list[Path]:
    """Write demo studies into one flat folder, each under a stem of its own.

    For each of `n`: a breast ultrasound (PNG), a chest X-ray (CR DICOM), a brain MRI and a chest CT (NIfTI volumes)
    and one CT plane (DICOM). The first of a kind has its finding, the next has none, and so on. Beside them copies of
    the real CT, MR and US files that pydicom carries. Existing files of the same names are replaced.

    Parameters
    ----------
    folder : str or pathlib.Path
        Made if needed.
    n : int
        Phantoms of each kind, at least 1.
    seed : int
        Seed of the first phantom of each kind.

    Returns
    -------
    list of pathlib.Path
        The files, phantoms first.

    Raises
    ------
    InputError
        If `n` is below 1.
    """
    if n < 1:
        raise InputError(f"Demo studies are made of at least 1 phantom of each kind; given {n}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for index in range(n):
        sick = index % 2 == 0
        number = index + 1
        made = {
            f"breast-us-{number}.png": _png(seed + index, sick),
            f"chest-xray-{number}.dcm": dicom_bytes(xray("CR", seed + index, pathology=sick).files[0]),
            f"brain-mri-{number}.nii.gz": _nifti("MR", seed + index, sick),
            f"chest-ct-{number}.nii.gz": _nifti("CT", seed + index, sick),
            f"chest-ct-slice-{number}.dcm": _ct_slice(seed + index, sick),
        }
        written += [_write(folder / name, content) for name, content in made.items()]
    return written + _copy_real(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medclipsam.demo.studies", description="Write demo studies.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=3, help="phantoms of each kind (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    write_studies(chosen.folder, chosen.n, seed=chosen.seed)
    return 0


def _png(seed: int, pathology: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_phantom("US", seed, size=384, pathology=pathology).image).save(buffer, "PNG")
    return buffer.getvalue()


def _nifti(modality: str, seed: int, pathology: bool) -> bytes:
    """Return a volume whose axes run to the patient's right-to-left, posterior-to-anterior, inferior-to-superior."""
    stack, _ = make_volume(modality, seed, 24, size=192, pathology=pathology, raw=True)
    # Display columns run to the patient's left and rows to the back; NIfTI's world axes run right, front and up.
    voxels = np.ascontiguousarray(stack.transpose(2, 1, 0)[::-1, ::-1])
    in_plane, between = (1.1, 6.0) if modality == "MR" else (1.9, 12.0)
    affine = np.diag([in_plane, in_plane, between, 1.0])
    affine[:3, 3] = [-in_plane * (voxels.shape[0] - 1) / 2, -in_plane * (voxels.shape[1] - 1) / 2, 0.0]
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"medclipsam phantom {modality} {seed}".encode()
    return gzip.compress(image.to_bytes(), mtime=0)


def _ct_slice(seed: int, pathology: bool) -> bytes:
    # The middle of the lungs, one plane of a volume of few.
    stack, _ = make_volume("CT", 500 + seed, 9, size=256, pathology=pathology, raw=True)
    return dicom_bytes(ct_slice(stack[5], seed, spacing=1.4))


def _copy_real(folder: Path) -> list[Path]:
    written = []
    for name, inside in _PYDICOM_FILES.items():
        # A pydicom repackaged without its test files leaves these out; nothing is downloaded for them.
        source = get_testdata_file(inside, download=False)
        if source:
            written.append(_write(folder / name, Path(str(source)).read_bytes()))
    return written


def _write(path: Path, content: bytes) -> Path:
    write_bytes(path, content)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
