import pytest

from medclipsam.base.errors import InputError, NegationError, SeparatorError, TargetError
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
    for wrong in (None, 3, [], ["heart", ""], ["heart", None]):
        with pytest.raises(InputError, match="both lungs"):
            parse_prompt(wrong, "CR", known)


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


@pytest.fixture(scope="module")
def built_in() -> TargetSet:
    return TargetSet.load()


@pytest.mark.parametrize(
    "text",
    [
        "left lung, heart",
        "left lung and heart",
        "left lung & heart",
        "left lung/heart",
        "left lung + heart",
        "Left Lung,Heart.",
        "the left lung, and the heart",
        "segment the left lung and heart",
        "- left lung\n- heart",
        "1. left lung\r\n2. heart",
        ["left lung", "heart"],
        ["left lung; heart"],
        "lt lung and haert",
    ],
)
def test_known_targets_are_split_at_what_people_write_between_them(built_in, text):
    assert names(parse_prompt(text, "DX", built_in)) == ["left lung", "heart"]


@pytest.mark.parametrize(
    "text",
    ["left and right lung", "right and left lungs", "left & right lung", "left/right lungs", "left and right lung, "],
)
def test_a_list_that_is_the_name_of_one_target_stays_one(built_in, text):
    assert names(parse_prompt(text, "DX", built_in)) == ["lungs x-ray"]


def test_the_longest_names_of_a_list_are_taken(built_in):
    assert names(parse_prompt("left and right lung, and heart", "CT", built_in)) == ["lungs CT", "heart"]
    asked = parse_prompt("right lung, left lung, heart & spine", "CT", built_in)
    assert names(asked) == ["right lung", "left lung", "heart", "spine"]
    asked = parse_prompt("skin, fat and gland", "US", built_in)
    assert [target.target.label for target in asked] == [19, 20, 21]


@pytest.mark.parametrize("text", ["heart, mediastinum", "ribs and left lung", "heart/aorta", "left lung, rib"])
def test_known_targets_beside_other_texts_are_refused_unless_separated(built_in, text):
    with pytest.raises(SeparatorError):
        parse_prompt(text, "DX", built_in)
    assert len(parse_prompt(f"{text} |", "DX", built_in)) == 1
    assert len(parse_prompt(text.replace(", ", ";").replace(" and ", ";").replace("/", ";"), "DX", built_in)) == 2


@pytest.mark.parametrize("text", ["a mass and a shadow", "mediastinum, hilum and aorta", "T1/T2 lesion"])
def test_a_list_without_known_targets_is_one_free_text(built_in, text):
    assert parse_prompt(text, "DX", built_in) == [TextTarget(text, (text,))]


@pytest.mark.parametrize(
    ("text", "modality", "name"),
    [
        ("Lt lung", "DX", "left lung"),
        ("lung, left", "DX", "left lung"),
        ("RT LUNG", "CT", "right lung"),
        ("R lung", "CT", "right lung"),
        ("lungs bilaterally", "DX", "lungs x-ray"),
        ("b/l lungs", "DX", "lungs x-ray"),
        ("Hearts", "DX", "heart"),
        ("vertebrae", "CT", "spine"),
        ("vertebral bodies", "CT", "spine"),
        ("lung nodules", "CT", "lung nodule"),
        ("tumor of the brain", "MR", "brain tumour"),
        ("brain-tumour", "MR", "brain tumour"),
        ("GBM", "MR", "brain tumour"),
        ("brain mets", "MR", "brain tumour"),
        ("breast ca", "US", "breast tumour"),
        ("show me the heart", "DX", "heart"),
        ("lnugs", "CT", "lungs CT"),
        ("haert", "DX", "heart"),
        ("leftlung", "DX", "left lung"),
        ("cardiac sillhouette", "DX", "heart"),
        ("ventrickles", "MR", "ventricles"),
        ("brian tumor", "MR", "brain tumour"),
        ("brest tumour", "US", "breast tumour"),
    ],
)
def test_abbreviations_plurals_and_typing_errors_mean_the_target(built_in, text, modality, name):
    (found,) = parse_prompt(text, modality, built_in)
    assert found.target is built_in.get(name)
    assert found.captions == built_in.get(name).captions
    assert (found.note == "") == built_in.is_exact(text)
    if found.note:
        assert repr(text) in found.note


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("shin", "US"),
        ("module", "CT"),
        ("scull", "MR"),
        ("spice", "CT"),
        ("drain", "MR"),
        ("light lung", "DX"),
        ("lung mask", "CT"),
        ("liver", "CT"),
        ("lug nut", "CT"),
    ],
)
def test_words_of_their_own_are_no_typing_errors(built_in, text, modality):
    (found,) = parse_prompt(text, modality, built_in)
    assert (found.name, found.captions, found.target) == (text, (text,), None)


def test_a_typing_error_that_may_mean_two_targets_is_not_corrected():
    similar = TargetSet([Target("ileum", 1, ("x",), (), "ileum"), Target("ilium", 2, ("y",), (), "ilium")])
    assert similar.corrected("ilum") is None
    assert similar.corrected("ilieum") is None
    assert names(parse_prompt("ilium", None, similar)) == ["ilium"]
    assert TargetSet([Target("ileum", 1, ("x",))]).corrected("ilium") is None


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("LLL", "left lung"),
        ("rul", "right lung"),
        ("left lower lobe", "left lung"),
        ("Lower left lobe", "left lung"),
        ("Lt lower lobe", "left lung"),
        ("lower lobe of the left lung", "left lung"),
        ("right middle lobe", "right lung"),
        ("lingula", "left lung"),
    ],
)
def test_a_lobe_is_not_widened_to_its_lung(built_in, text, side):
    (found,) = parse_prompt(text, "CT", built_in)
    assert (found.name, found.target) == (text, None)
    assert found.captions != (text,)
    assert side in found.note
    assert side in found.captions[0] or side.split()[0] in found.captions[0]


@pytest.mark.parametrize("text", ["left lower lobe of the lung", "upper lobes", "both lower lobes"])
def test_a_lobe_that_is_written_out_gets_a_hint_of_what_is_known(built_in, text):
    (found,) = parse_prompt(text, "CT", built_in)
    assert (found.name, found.target) == (text, None)
    assert "lungs CT" in found.note
    assert "lungs CT" not in parse_prompt(text, "MR", built_in)[0].note


@pytest.mark.parametrize("text", ["frontal lobe", "left lobe of the liver", "left lung; heart"])
def test_other_lobes_are_none_of_the_lungs(built_in, text):
    assert not any(
        "lobe of the lung" in caption for found in parse_prompt(text, "CT", built_in) for caption in found.captions
    )


@pytest.mark.parametrize(
    "text",
    [
        "no heart",
        "No heart.",
        "heart not visible",
        "heart absent",
        "absence of the heart",
        "without a nodule",
        "lungs w/o nodule",
        "lungs free of nodules",
        "clear of nodules",
        "tumour-free brain",
        "tumor free lung",
        "non-lung",
        "rule out nodule",
        "r/o tumour",
        "negative for nodule",
        "there isn't a heart",
        "the heart isn’t there",
        "is there no heart?",
        "neither heart nor lungs",
        "heart is missing",
        "everything but the heart",
        "nonvisualised heart",
        "left lung, no heart",
    ],
)
def test_a_negation_is_refused_and_not_read_as_its_opposite(built_in, text):
    with pytest.raises(NegationError):
        parse_prompt(text, "CT", built_in)
    with pytest.raises(NegationError):
        parse_prompt(f"left lung; {text}", "CT", built_in)
    assert [target.captions for target in parse_prompt(f"{text} |", None, built_in)] == [(text,)]


@pytest.mark.parametrize(
    "text",
    [
        "CT without contrast",
        "non-contrast chest CT",
        "non small cell carcinoma",
        "mass, not otherwise specified",
        "nodule no. 3",
        "a nodule in the node",
        "unremarkable lung",
        "free fluid",
        "nonspecific shadow",
        "notch of the tibia",
    ],
)
def test_what_only_looks_like_a_negation_is_searched_for(built_in, text):
    assert names(parse_prompt(text, "CT", built_in)) == [text]


def test_a_target_whose_name_is_a_negation_is_found():
    own = TargetSet([Target("no-reflow zone", 1, ("a no-reflow zone",))])
    assert names(parse_prompt("No reflow zone", "MR", own)) == ["no-reflow zone"]


def test_every_built_in_text_can_be_asked_for(built_in):
    for target in built_in:
        for text in (target.name, *target.synonyms, *target.captions):
            for modality in target.modality:
                assert names(parse_prompt(text, modality, built_in)) == [target.name]
        for text in target.absence_captions:
            assert names(parse_prompt(text, None, built_in)) == [text]
