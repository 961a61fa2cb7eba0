"""Searches over data sets, as DICOM PS3.4 (C.2.2.2) says what matches."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from medclipsam.base.errors import InputError
from medclipsam.server.studies.qido import Query


def _study(number: int, name: str, date: str, modalities: list[str]) -> Dataset:
    data = Dataset()
    data.PatientName, data.PatientID, data.StudyDate = name, f"P[{number}]", date
    data.StudyInstanceUID, data.ModalitiesInStudy = f"1.2.{number}", modalities
    data.NumberOfStudyRelatedSeries = number
    return data


STUDIES = [
    _study(1, "Doe^John", "20240105", ["CT", "SEG"]),
    _study(2, "Doe^Jane", "20240210", ["MR"]),
    _study(3, "van Dyck^Ada", "", ["US"]),
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [1, 2, 3]),
        ("PatientName=doe^john", [1]),
        ("PatientName=DOE*", [1, 2]),
        ("PatientName=*ja?e", [2]),
        ("00100010=jane&fuzzymatching=true", [2]),
        ("PatientName=*dyck ada*&fuzzymatching=true", [3]),
        ("PatientName=jane", []),
        ("PatientID=P[2]", [2]),
        ("PatientID=p*", []),
        ("PatientID=*", [1, 2, 3]),
        ("StudyInstanceUID=1.2.1,1.2.3", [1, 3]),
        ("StudyInstanceUID=1.2.1%5C1.2.2", [1, 2]),
        ("StudyInstanceUID=1.2.*", []),
        ("StudyDate=20240105", [1]),
        ("StudyDate=20240101-20240131", [1]),
        ("StudyDate=20240106-", [2]),
        ("StudyDate=-20240105", [1]),
        ("ModalitiesInStudy=SEG", [1]),
        ("NumberOfStudyRelatedSeries=2", [2]),
        ("AccessionNumber=4", []),
        ("limit=2", [1, 2]),
        ("limit=1&offset=1&includefield=all&includefield=00081030,PatientSex", [2]),
        ("offset=5", []),
        ("OtherPatientIDsSequence.PatientID=4", [1, 2, 3]),
    ],
)
def test_what_matches(query: str, expected: list[int]) -> None:
    from urllib.parse import parse_qsl

    found = Query.from_params(parse_qsl(query, keep_blank_values=True)).select(STUDIES)
    assert [int(data.NumberOfStudyRelatedSeries) for data in found] == expected


@pytest.mark.parametrize("name", ["Patient", "0010", "limit", "offset", "fuzzymatching", "includefield", "FFFF0000"])
def test_what_cannot_be_searched_for_is_named(name: str) -> None:
    with pytest.raises(InputError, match=name if name != "includefield" else "nonsense"):
        Query.from_params([(name, "nonsense")])
