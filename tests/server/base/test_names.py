"""No name leads out of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclipsam.base.errors import InputError, OptionError
from medclipsam.server.base.names import checked_name, checked_request_id, checked_tag, file_suffix, id_from_file


@pytest.mark.parametrize("name", ["chest", "Brust Röntgen 3", "1.2.840.113619", "a..b", "x" * 200, "scan:1", "胸"])
def test_names_of_files_are_taken(name: str) -> None:
    assert checked_name(name, "Image") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a\0b",
        ".hidden",
        "a\nb",
        "x" * 201,
        "ä" * 101,
        None,
        3,
        ["a"],
    ],
)
def test_other_names_are_refused_in_one_sentence(name: object) -> None:
    with pytest.raises(InputError) as error:
        checked_name(name, "Image")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("Image")


@given(st.text(max_size=30))
def test_what_is_taken_stays_in_its_folder(name: str) -> None:
    try:
        taken = checked_name(name, "Image")
    except InputError:
        return
    folder = Path("/studies")
    assert (folder / taken).resolve().parent == folder
    assert (folder / f"{taken}.nii.gz").resolve().parent == folder


@pytest.mark.parametrize("tag", ["../..", "a/b", ".", "a.b", "x" * 65, "ä", "a b", 3, {"a": 1}])
def test_tags_are_plain_words(tag: object) -> None:
    with pytest.raises(OptionError, match="label_tag"):
        checked_tag(tag, "final")


def test_a_tag_that_is_not_given_is_the_default() -> None:
    assert checked_tag(None, "final") == checked_tag("", "final") == "final"
    assert checked_tag("pre-1_x", "final") == "pre-1_x"


def test_request_ids() -> None:
    assert checked_request_id(None) is None
    assert checked_request_id("my-1.2:3_x") == "my-1.2:3_x"
    for bad in ("", "a/b", "a b", "x" * 101, "ä"):
        with pytest.raises(OptionError, match="request_id"):
            checked_request_id(bad)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.nii.gz", ".nii.gz"),
        ("A.NII.GZ", ".nii.gz"),
        ("x/y.v2.nrrd", ".nrrd"),
        ("scan.dcm", ".dcm"),
        ("scan", ""),
        ("x.tar.gz", ""),
        ("a.exe", ""),
        (".png/../../x", ""),
        (None, ""),
    ],
)
def test_only_known_endings_of_a_sent_files_name_are_used(name: str | None, suffix: str) -> None:
    assert file_suffix(name) == suffix


def test_an_id_from_a_files_name() -> None:
    assert id_from_file("C:\\images\\chest.v2.nii.gz") == "chest.v2"
    assert id_from_file("/home/me/chest.png") == "chest"
    for bad in ("", "..", ".png", None):
        with pytest.raises(InputError):
            id_from_file(bad)
