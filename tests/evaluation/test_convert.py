"""The public sets, imitated in their publishers' layouts with drawn pictures."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.evaluation.convert import convert
from medclipsam.evaluation.data import check_cases, find_cases, read_case
from medclipsam.targets import TargetSet

from .conftest import disc, save

TARGETS = TargetSet.load()
SHAPE = (40, 50)
ONE, TWO = disc(SHAPE, 12, 12, 5), disc(SHAPE, 28, 35, 6)


def truths(data: Path, task: str) -> dict[tuple[str, str], np.ndarray]:
    splits = [split for split in ("train", "val", "test") if (data / task / f"{split}_images").is_dir()]
    cases = [case for split in splits for case in find_cases(data, TARGETS, split=split)]
    check_cases(cases)
    return {(case.split, case.name): read_case(case)[1][0] for case in cases if case.task.name == task}


def test_busi_and_udiat_make_one_task(tmp_path: Path) -> None:
    busi, udiat = tmp_path / "Dataset_BUSI_with_GT", tmp_path / "DatasetB"
    save(np.zeros(SHAPE), busi / "benign" / "benign (1).png")
    save(ONE * 255, busi / "benign" / "benign (1)_mask.png")
    save(TWO * 255, busi / "benign" / "benign (1)_mask_1.png")
    save(np.zeros(SHAPE), busi / "benign" / "benign (12).png")
    save(ONE * 255, busi / "benign" / "benign (12)_mask.png")
    save(np.zeros(SHAPE), busi / "normal" / "normal (1).png")
    save(np.zeros(SHAPE), udiat / "original" / "000001.png")
    save(TWO * 1, udiat / "GT" / "000001.png")
    data = tmp_path / "data"
    assert sum(convert("busi", busi, data).values()) == 2
    assert convert("udiat", udiat, data)["test"] == 1
    found = {name: mask for (_, name), mask in truths(data, "breast_tumors").items()}
    np.testing.assert_array_equal(found["benign-0001"], ONE | TWO)
    np.testing.assert_array_equal(found["benign-0012"], ONE)
    np.testing.assert_array_equal(found["000001"], TWO)
    with pytest.raises(InputError, match=r"000001\.png is there already"):
        convert("udiat", udiat, data)
    (busi / "benign" / "benign (12)_mask.png").unlink()
    with pytest.raises(InputError, match=r"benign \(12\)\.png has no mask"):
        convert("busi", busi, tmp_path / "again")


def test_covid_qu_ex_keeps_its_split(tmp_path: Path) -> None:
    source = tmp_path / "archive" / "Lung Segmentation Data" / "Lung Segmentation Data"
    for split in ("Train", "Val", "Test"):
        for kind in ("COVID-19", "Normal"):
            save(np.zeros(SHAPE), source / split / kind / "images" / f"{split}_1.png")
            save(ONE * 255, source / split / kind / "lung masks" / f"{split}_1.png")
    data = tmp_path / "data"
    assert convert("covid-qu-ex", tmp_path / "archive", data) == {"train": 2, "val": 2, "test": 2}
    found = truths(data, "lung_xray")
    assert ("test", "COVID-19-Test_1") in found
    np.testing.assert_array_equal(found["val", "Normal-Val_1"], ONE)


def test_chest_ct_takes_the_lungs_and_splits_by_patient(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    for patient in range(30):
        for number in range(2):
            stem = f"ID{patient:05d}"
            colours = np.zeros((*SHAPE, 3), np.uint8)
            colours[ONE, 0], colours[TWO, 1] = 255, 255
            (source / "images").mkdir(parents=True, exist_ok=True)
            (source / "masks").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros(SHAPE, np.uint8)).save(source / "images" / f"{stem}_{number}.jpg")
            picture = Image.fromarray(colours)
            picture.save(source / "masks" / f"{stem}_mask_{number}.jpg", quality=95, subsampling=0)
    data = tmp_path / "data"
    counts = convert("chest-ct", source, data)
    assert sum(counts.values()) == 60
    assert counts["train"] > 30
    found = truths(data, "lung_CT")
    splits: dict[str, set[str]] = {}
    for split, name in found:
        splits.setdefault(name.rpartition("_")[0], set()).add(split)
    assert all(len(of) == 1 for of in splits.values())
    mask = next(iter(found.values()))
    assert 2 * (mask & ONE).sum() / (mask.sum() + ONE.sum()) > 0.95
    again = tmp_path / "again"
    assert convert("chest-ct", source, again) == counts


def test_brain_tumours_of_figshare(tmp_path: Path) -> None:
    source = tmp_path / "mat"
    source.mkdir()
    with h5py.File(source / "7.mat", "w") as file:
        record = file.create_group("cjdata")
        record["image"] = np.arange(40 * 50, dtype=np.int16).reshape(SHAPE).T
        record["tumorMask"] = ONE.astype(np.uint8).T
        record["PID"] = np.array([[ord(letter)] for letter in "100360"], dtype=np.uint16)
    convert("brain-figshare", source, tmp_path / "data")
    ((_, name),) = found = truths(tmp_path / "data", "brain_tumors")
    assert name == "0007"
    np.testing.assert_array_equal(next(iter(found.values())), ONE)


@pytest.mark.parametrize(("name", "named"), [("acdc", "acdc"), ("udiat", "holds no image")])
def test_what_is_no_set_is_named(tmp_path: Path, name: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        convert(name, tmp_path, tmp_path / "data")
