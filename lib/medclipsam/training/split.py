"""Which images are kept for validation: decided by the patient alone, before there is any label.

An image of a validation patient is never trained on, so that a network is always judged on patients that it has not
seen, whatever is labelled when.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

from medclipsam.base.options import Options, option

SHARE = 0.15


class Split(Options):
    """How validation patients are drawn."""

    prefix: ClassVar[str] = "validation_"

    seed: int = option(0, "Seed of the choice of validation patients; another one draws other patients", 0, 2**31 - 1)
    # A greater share adds patients and keeps those of a smaller one.
    share: float = option(SHARE, "Expected share of patients kept for validation, chosen once for a workspace", 0, 0.5)

    def holds(self, key: str) -> bool:
        """Return whether a patient is kept for validation, see `patient_key`."""
        return is_validation(key, self.seed, self.share)


def is_validation(key: str, seed: int = 0, share: float = SHARE) -> bool:
    """Return whether a patient is kept for validation.

    Parameters
    ----------
    key : str
        Of `patient_key`.
    seed, share : int, float
        See `Split`.

    Notes
    -----
    The first 64 bits of SHA-256 over seed and key, as a fraction of 2^64, are held against the share: the same on
    every machine, and for every patient independent of all others.
    """
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def patient_key(
    image_id: str, path: Path | None = None, *, patient: str | None = None, study: str | None = None
) -> str:
    """Return what tells the patient of an image: the patient's id, else the study, else the image.

    Parameters
    ----------
    image_id : str
        Id of the image.
    path : Path, optional
        Image file or series folder, whose DICOM header is asked where neither `patient` nor `study` is given.
    patient, study : str, optional
        PatientID and StudyInstanceUID where they are known already.
    """
    if path is not None and not patient and not study:
        # The settings of the server import this module, and its help waits for no image library.
        from medclipsam.imaging import read_origin

        patient, study, _ = read_origin(path)
    if patient:
        return f"patient:{patient}"
    return f"study:{study}" if study else f"image:{image_id}"
