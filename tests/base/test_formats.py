"""Endings of file names: which are known, and what they leave of a name."""

import pytest

from medclipsam.base.formats import LABEL_SUFFIXES, MASK_SUFFIXES, STUDY_SUFFIXES, stem_of, suffix_of


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("scan.nii.gz", ".nii.gz", "scan"),
        ("scan.v2.nii", ".nii", "scan.v2"),
        ("folder.nii/SCAN.NII.GZ", ".nii.gz", "folder.nii/SCAN"),
        ("Slice.DCM", ".dcm", "Slice"),
        ("photo.JPEG", ".jpeg", "photo"),
        ("IM0001.ima", "", "IM0001.ima"),
        ("1.2.840.10008", "", "1.2.840.10008"),
        ("archive.gz", "", "archive.gz"),
        ("", "", ""),
    ],
)
def test_a_name_is_its_stem_and_its_suffix(name, suffix, stem):
    assert (suffix_of(name), stem_of(name)) == (suffix, stem)


def test_only_the_given_suffixes_count():
    assert suffix_of("mask.jpg", MASK_SUFFIXES) == ""
    assert suffix_of("mask.tif", LABEL_SUFFIXES) == ".tif"


@pytest.mark.parametrize("suffixes", [STUDY_SUFFIXES, MASK_SUFFIXES, LABEL_SUFFIXES])
def test_no_suffix_hides_a_longer_one(suffixes):
    for index, suffix in enumerate(suffixes):
        assert suffix_of(f"a{suffix}", suffixes) == suffix, suffixes[:index]


def test_what_is_written_as_a_mask_is_read_as_a_label_and_listed_as_an_image():
    assert set(MASK_SUFFIXES) <= set(LABEL_SUFFIXES) <= set(STUDY_SUFFIXES)
