import pytest

from medclipsam.errors import InputError, TargetError
from medclipsam.targets import (
    FINDING_LABELS,
    MAX_TEXT,
    Target,
    TargetSet,
    TextTarget,
    assign_labels,
    label_table,
    negatives,
    parse_prompt,
)

LUNGS = Target("lungs", 3, ("both lungs on an x-ray", "lung fields"), ("CR",), "lungs", ("lung-nodule",))
LEFT = Target("left lung", 11, ("the left lung",), ("CR",), "left-lung", ("lungs",))
HEART = Target("heart", 12, ("a heart shadow",), ("CR",), "heart", synonyms=("cardiac shadow",))
NODULE = Target("nodule", 13, ("a nodule",), ("CR",), "lung-nodule")
LIVER = Target("liver", 14, ("a liver",), ("CT",), "liver")
ANYWHERE = Target("needle", 15, ("a needle",), (), "needle")


@pytest.fixture
def known() -> TargetSet:
    return TargetSet([LUNGS, LEFT, HEART, NODULE, LIVER, ANYWHERE])


def names(targets: list[TextTarget]) -> list[str]:
    return [target.name for target in targets]


def test_one_known_target_takes_its_captions(known):
    assert parse_prompt("The lungs", "CR", known) == [TextTarget("lungs", LUNGS.captions, LUNGS)]


def test_free_text_is_kept_as_written_but_for_spaces(known):
    assert parse_prompt("  a  Dense\topacity ", "CR", known) == [TextTarget("a Dense opacity", ("a Dense opacity",))]


@pytest.mark.parametrize(
    "text", ["left lung; heart", "left lung\nheart", "left lung;;\r\n ; heart;\n", "left lung;heart"]
)
def test_targets_are_split_at_semicolons_and_lines_and_empty_pieces_dropped(known, text):
    assert names(parse_prompt(text, "CR", known)) == ["left lung", "heart"]


def test_targets_named_twice_are_merged(known):
    found = parse_prompt("heart; a shadow; Cardiac shadow; A Shadow.; heart | big heart", "CR", known)
    assert names(found) == ["heart", "a shadow"]
    assert found[0].captions == ("a heart shadow", "heart", "big heart")
    assert found[1].captions == ("a shadow", "A Shadow.")


def test_several_captions_of_one_target_are_taken_as_written(known):
    (found,) = parse_prompt("heart | an enlarged heart ||heart", "CR", known)
    assert found == TextTarget("heart", ("heart", "an enlarged heart"), HEART)
    (free,) = parse_prompt("a mass | a bright spot", "CR", known)
    assert free == TextTarget("a mass | a bright spot", ("a mass", "a bright spot"))


def test_captions_that_mean_two_targets_are_refused(known):
    with pytest.raises(TargetError, match=r"'heart \| left lung' describes one target but means heart and left lung"):
        parse_prompt("heart | left lung", "CR", known)


def test_the_modality_decides_what_is_known(known):
    assert parse_prompt("liver", "CT", known)[0].target is LIVER
    assert parse_prompt("liver", "CR", known)[0].target is None
    assert parse_prompt("needle", "US", known)[0].target is ANYWHERE


@pytest.mark.parametrize("text", ["", "  ", ";", "\n;|;\n", " | "])
def test_an_empty_text_is_refused(known, text):
    with pytest.raises(InputError, match="is empty"):
        parse_prompt(text, "CR", known)


def test_a_text_without_a_word_or_that_is_no_text_is_refused(known):
    with pytest.raises(InputError, match=r"'\?!' holds no word"):
        parse_prompt("heart; ?!", "CR", known)
    with pytest.raises(InputError, match="cannot be None"):
        parse_prompt(None, "CR", known)


def test_a_text_that_is_too_long_is_refused(known):
    assert parse_prompt("x" * MAX_TEXT, "CR", known)
    with pytest.raises(InputError, match=f"has {MAX_TEXT + 1} characters; allowed: {MAX_TEXT}"):
        parse_prompt("x" * (MAX_TEXT + 1), "CR", known)


def test_texts_in_other_scripts_are_free_text(known):
    assert names(parse_prompt("肺; Лёгкие", "CR", known)) == ["肺", "Лёгкие"]


def test_known_targets_keep_their_labels_and_free_text_takes_the_next_finding(known):
    found = parse_prompt("a mass; heart; a tube; lungs", "CR", known)
    assert assign_labels(found) == {"a mass": 201, "heart": 12, "a tube": 202, "lungs": 3}


def test_eight_free_texts_have_a_label_and_a_ninth_is_refused(known):
    eight = parse_prompt(";".join(f"thing {n}" for n in range(8)), "CR", known)
    assert list(assign_labels(eight).values()) == list(range(201, 209))
    nine = parse_prompt(";".join(f"thing {n}" for n in range(9)), "CR", known)
    with pytest.raises(TargetError, match="names 9 targets that are not among the known ones; allowed: 8"):
        assign_labels(nine)


def test_the_label_table_holds_known_targets_then_findings(known):
    table = label_table(known)
    assert list(table)[:6] == known.names()
    assert list(table.items())[6:] == list(FINDING_LABELS.items()) == [(f"finding {n}", 200 + n) for n in range(1, 9)]
    assert len(set(table.values())) == len(table)


def test_negatives_leave_out_the_same_and_overlapping_structures_whichever_side_says_so(known):
    assert [target.name for target in negatives(LUNGS, known, "CR")] == ["heart", "needle"]
    assert [target.name for target in negatives(NODULE, known, "CR")] == ["left lung", "heart", "needle"]
    assert [target.name for target in negatives(HEART, known, "CR")] == ["lungs", "left lung", "nodule", "needle"]


def test_negatives_of_all_modalities_and_of_free_text(known):
    assert [target.name for target in negatives(LUNGS, known)] == ["heart", "liver", "needle"]
    assert [target.name for target in negatives(None, known, "CT")] == ["liver", "needle"]


def test_the_same_structure_in_another_modality_is_no_negative():
    built_in = TargetSet.load()
    assert "lungs CT" not in [target.name for target in negatives(built_in.get("lungs x-ray"), built_in)]
