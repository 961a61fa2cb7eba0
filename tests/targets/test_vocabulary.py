import pytest

from medclipsam.targets import Target, TargetSet, suggest

KNOWN = TargetSet(
    [
        Target("left lung", 1, ("a",), ("CR", "CT"), synonyms=("lung on the left",)),
        Target("lungs", 2, ("b",), ("CR",), synonyms=("lung", "both lungs")),
        Target("liver", 3, ("c",), ("CT",)),
        Target("heart", 4, ("d",), (), synonyms=("cardiac silhouette",)),
    ]
)


def names(query: str, modality: str | None = None, limit: int = 10) -> list[str]:
    return [found.target.name for found in suggest(query, KNOWN, modality, limit)]


def test_names_that_begin_with_the_query_come_before_later_words() -> None:
    assert names("lu") == ["lungs", "left lung"]
    assert names("l") == ["lungs", "liver", "left lung"]


def test_a_target_comes_once_with_the_text_that_fits() -> None:
    (found,) = suggest("card", KNOWN)
    assert (found.target.name, found.text) == ("heart", "cardiac silhouette")


@pytest.mark.parametrize(
    ("query", "name"), [("haert", "heart"), ("haer", "heart"), ("Lt lung", "left lung"), ("livr", "liver")]
)
def test_misspelt_and_abbreviated_names_are_suggested(query: str, name: str) -> None:
    assert names(query)[0] == name


def test_only_targets_of_the_modality_and_only_so_many() -> None:
    assert names("l", "CT") == ["liver", "left lung"]
    assert names("", "CR") == ["left lung", "lungs", "heart"]
    assert names("", limit=2) == ["left lung", "lungs"]


def test_what_fits_nothing_suggests_nothing() -> None:
    assert names("qqqq") == []
