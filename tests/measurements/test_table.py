"""The table of measurements: what is added is read back by the csv module, and a table is continued or refused."""

import csv
from pathlib import Path

import numpy as np
import pytest

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage
from medclipsam.measurements import Measurements, measure
from medclipsam.measurements.table import MeasurementTable


def _measured() -> Measurements:
    image = MedicalImage.from_array(np.arange(600, dtype=np.int16).reshape(20, 30))
    mask = np.zeros((20, 30), bool)
    mask[3:5, 4:9] = True
    return measure(mask, image)


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_for_each_target_of_each_image(tmp_path: Path) -> None:
    table = MeasurementTable(tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()
    found = _measured()
    table.add("a, with a comma", [("left lung", 11, found), ("heart", 13, Measurements())])
    table.add("b", [("left lung", 11, found)])
    first, second, third = _lines(tmp_path / "t.csv")
    assert (first["image"], first["target"], first["label"], third["image"]) == (
        "a, with a comma",
        "left lung",
        "11",
        "b",
    )
    assert found.values is not None
    assert float(first["mean"]) == found.values.mean
    assert float(first["sd"]) == found.values.sd
    assert (first["centre_i"], first["centre_j"], first["area_mm2"]) == ("6.0", "3.5", "")
    assert (second["n_voxels"], second["mean"], second["centre_i"]) == ("0", "", "")


def test_a_table_is_begun_again_or_continued(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for name in ("a", "b"):
        table = MeasurementTable(path, keep=name == "b")
        table.add(name, [("heart", 13, _measured())])
    # a line that was cut off in the middle counts for nothing
    path.write_text(path.read_text() + "c,heart,13,1")
    again = MeasurementTable(path, keep=True)
    assert again.images == {"a", "b"}
    again.add("a", [("heart", 13, Measurements())])
    assert [(line["image"], line["n_voxels"]) for line in _lines(path)] == [("b", "10"), ("a", "0")]
    MeasurementTable(path).add("d", [])
    assert _lines(path) == []


def test_what_is_no_table_is_refused_and_stays(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("name,age\nx,1\n")
    with pytest.raises(InputError, match="not a table"):
        MeasurementTable(other, keep=True)
    assert other.read_text() == "name,age\nx,1\n"
    with pytest.raises(InputError, match=r"\.csv"):
        MeasurementTable(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="does not exist"):
        MeasurementTable(tmp_path / "no" / "t.csv")
