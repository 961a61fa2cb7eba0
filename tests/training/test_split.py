import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medclipsam.base.errors import OptionError
from medclipsam.training.split import Split, is_validation, patient_key

KEYS = [f"patient:{number}" for number in range(4000)]


def test_the_share_is_kept_and_a_greater_one_only_adds() -> None:
    few, more = ({key for key in KEYS if is_validation(key, 0, share)} for share in (0.15, 0.3))
    assert 0.13 < len(few) / len(KEYS) < 0.17
    assert few < more
    assert not any(is_validation(key, 0, 0.0) for key in KEYS)


def test_it_is_the_documented_hash() -> None:
    for key in KEYS[:50]:
        first = int(hashlib.sha256(f"7\n{key}".encode()).hexdigest()[:16], 16)
        assert is_validation(key, 7, 0.2) == (first / 2**64 < 0.2)


def test_another_seed_draws_other_patients() -> None:
    one, two = ({key for key in KEYS if Split(seed=seed, share=0.15).holds(key)} for seed in (0, 1))
    # independent draws share about the square of their share
    assert 0.01 < len(one & two) / len(KEYS) < 0.04


@pytest.mark.parametrize("wrong", [{"share": 0.6}, {"share": -0.1}, {"share": "x"}, {"seed": -1}, {"seed": 1.5}])
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"validation_{next(iter(wrong))}"):
        Split(**wrong)  # type: ignore[arg-type]


def test_series_of_one_patient_go_together(write_series: Callable[..., Path], tmp_path: Path) -> None:
    pixels = np.zeros((3, 16, 16), np.uint8)
    one = write_series(pixels, tmp_path / "one", uid="one")
    two = write_series(pixels, tmp_path / "two", uid="two")
    for folder, patient in ((one, "P1"), (two, "P1")):
        for file in folder.iterdir():
            data = pydicom.dcmread(file)
            data.PatientID = patient
            data.save_as(file)
    assert patient_key("a", one) == patient_key("b", two) == "patient:P1"


def test_without_a_patient_the_study_counts_and_without_a_study_the_image(
    write_series: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_series(np.zeros((2, 16, 16), np.uint8), tmp_path / "one", uid="one")
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.PatientID, data.StudyInstanceUID = "", "1.2.3"
        data.save_as(file)
    assert patient_key("a", folder) == "study:1.2.3"
    (tmp_path / "a.png").write_bytes(b"no DICOM")
    assert patient_key("a", tmp_path / "a.png") == "image:a"
    assert patient_key("a", tmp_path / "a.png", patient="P", study="1.2") == "patient:P"
