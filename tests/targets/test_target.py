import itertools
from pathlib import Path

import pytest

from medclipsam.base.errors import TargetError
from medclipsam.targets import MAX_LABEL, Target, TargetSet, normalise
from medclipsam.targets.target import read_targets


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def entry(**changes: str) -> str:
    """Return a targets file of one sound target, with keys changed or (None) left out."""
    keys = {"name": "kidney", "label": "190", "modality": "[CT]", "captions": "[a kidney on CT]"} | changes
    lines = [f"{key}: {value}" for key, value in keys.items() if value is not None]
    return "targets:\n  - " + "\n    ".join(lines) + "\n"


@pytest.fixture(scope="module")
def known() -> TargetSet:
    return TargetSet.load()


def test_the_papers_four_tasks_have_their_labels_and_modalities(known):
    tasks = {target.name: (target.label, target.modality) for target in known if target.label <= 4}
    assert tasks == {
        "breast tumour": (1, ("US",)),
        "brain tumour": (2, ("MR",)),
        "lungs x-ray": (3, ("CR", "DX")),
        "lungs CT": (4, ("CT",)),
    }


def test_the_printed_saliency_settings_are_kept(known):
    assert known.get("breast tumour").saliency["paper"] == {"beta": 1.0, "variance": 1.0, "layer": 9}
    assert known.get("brain tumour").saliency["paper"] == {"beta": 2.0, "variance": 0.3, "layer": 9}


def test_lungs_are_two_components_with_a_box_each_and_ct_has_the_lung_window(known):
    for name in ("lungs x-ray", "lungs CT"):
        target = known.get(name)
        assert (target.meaning, target.num_components, target.box_per_component) == ("lungs", 2, True)
    assert known.get("lungs CT").window == (-600.0, 1500.0)
    assert known.get("lungs x-ray").window is None


def test_built_in_labels_are_unique_and_below_the_findings(known):
    labels = [target.label for target in known]
    assert len(set(labels)) == len(labels)
    assert all(1 <= label <= MAX_LABEL for label in labels)


def test_no_built_in_caption_is_a_negation(known):
    for target in known:
        for caption in itertools.chain(target.captions, target.absence_captions):
            words = set(normalise(caption).split())
            assert not words & {"no", "not", "without", "absent"}, f"CLIP reads {caption!r} as presence"


@pytest.mark.parametrize(
    ("text", "modality", "name"),
    [
        ("both lungs", "CR", "lungs x-ray"),
        ("both lungs", "DX", "lungs x-ray"),
        ("both lungs", "dx", "lungs x-ray"),
        ("both lungs", "CT", "lungs CT"),
        ("Lung", "CT", "lungs CT"),
        ("  THE LUNGS. ", "CR", "lungs x-ray"),
        ("lungs CT", None, "lungs CT"),
        ("lungs_xray", None, "lungs x-ray"),
        ("lungs CT", "DX", "lungs x-ray"),
        ("both lungs on a chest x-ray", "DX", "lungs x-ray"),
        ("both lungs on chest Xray", "DX", "lungs x-ray"),
        ("a malignant breast tumour", "US", "breast tumour"),
        ("a malignant breast tumor", "US", "breast tumour"),
        ("breast tumors", None, "breast tumour"),
        ("brain tumour", "MR", "brain tumour"),
        ("Glioma", "MR", "brain tumour"),
    ],
)
def test_a_text_that_means_a_target_finds_it(known, text, modality, name):
    assert known.match(text, modality).name == name


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("heart of the lungs", "CR"),
        ("no lungs", "CR"),
        ("lungs without disease", "CT"),
        ("a lung transplant", "CT"),
        ("tumour", "US"),
        ("normal breast tissue on ultrasound", "US"),
        ("brain tumour", "US"),
        ("both lungs", "US"),
        ("purple banana", "CR"),
        ("the", None),
        ("", None),
        ("?!", None),
    ],
)
def test_a_text_that_means_no_target_of_the_modality_finds_none(known, text, modality):
    assert known.match(text, modality) is None


def test_one_lung_is_not_both(known):
    for modality in ("CR", "DX", "CT", None):
        found = known.match("left lung", modality)
        assert found is None or found.meaning != "lungs"


def test_without_a_modality_a_text_of_two_meanings_is_left_open():
    mass_in_breast = Target("breast mass", 1, ("x",), ("US",), "breast-mass", synonyms=("mass",))
    mass_in_brain = Target("brain mass", 2, ("y",), ("MR",), "brain-mass", synonyms=("mass",))
    both = TargetSet([mass_in_breast, mass_in_brain])
    assert both.match("mass") is None
    assert both.match("mass", "US") is mass_in_breast
    assert both.match("mass", "MR") is mass_in_brain


def test_a_last_letter_a_is_no_article():
    assert normalise("hepatitis A") == "hepatitis a" != normalise("hepatitis")


def test_get_takes_any_case_and_names_what_is_known(known):
    assert known.get("Lungs ct").label == 4
    with pytest.raises(TargetError, match=r"no target 'spleen'; known targets: breast tumour, brain tumour"):
        known.get("spleen")


def test_targets_can_be_keys_of_a_dictionary(known):
    assert len({target: target.label for target in known}) == len(known)


def test_an_own_file_adds_and_replaces_targets(tmp_path):
    file = write(
        tmp_path,
        "targets:\n"
        "  - {name: kidney, label: 190, modality: [CT], captions: [a kidney on CT], window: [40, 400]}\n"
        "  - {name: Lungs CT, label: 4, modality: [CT], meaning: lungs, captions: [lungs], synonyms: [wind bags]}\n",
    )
    known = TargetSet.load(file)
    assert known.get("kidney") == Target("kidney", 190, ("a kidney on CT",), ("CT",), "kidney", window=(40.0, 400.0))
    assert known.match("wind bags", "CT").label == 4
    assert known.match("both lungs on a chest CT", "CT") is None
    assert known.names().count("Lungs CT") == 1
    assert "lungs CT" not in known.names()


def test_defaults_are_those_of_the_format(tmp_path):
    (target,) = read_targets(write(tmp_path, entry(name="left Kidney", modality=None)))
    assert target.meaning == "left-kidney"
    assert target.in_modality("US")
    assert (target.num_components, target.box_per_component, target.window) == (1, False, None)
    assert target.visual_prompt == "boxes"
    assert (target.modality, target.synonyms, target.overlaps, target.saliency) == ((), (), (), {})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "''"}, r"name cannot be ''"),
        ({"name": "yes"}, r"name cannot be True"),
        ({"name": "'a;b'"}, r"name cannot be 'a;b'"),
        ({"name": "finding 3"}, r"other than 'finding N'"),
        ({"name": None}, r"target 1: the key 'name' is missing"),
        ({"label": None}, r"target 'kidney': the key 'label' is missing"),
        ({"captions": None}, r"the key 'captions' is missing"),
        ({"label": "0"}, r"label cannot be 0; allowed: a whole number from 1 to 200"),
        ({"label": "201"}, r"label cannot be 201"),
        ({"label": "'5'"}, r"label cannot be '5'"),
        ({"label": "true"}, r"label cannot be True"),
        ({"captions": "[]"}, r"captions cannot be \[\]; allowed: a list of texts, at least one"),
        ({"captions": "a kidney"}, r"captions cannot be 'a kidney'"),
        ({"captions": "['']"}, r"captions cannot be ''"),
        ({"captions": "['...']"}, r"texts with a word"),
        ({"captions": "[x, x]"}, r"each text once"),
        ({"captions": "[12]"}, r"captions cannot be 12"),
        ({"modality": "CT"}, r"modality cannot be 'CT'; allowed: a list"),
        ({"modality": "[ct]"}, r"modality cannot be 'ct'; allowed: a list of DICOM modalities"),
        ({"synonyms": "{a: b}"}, r"synonyms cannot be"),
        ({"overlaps": "[Left Lung]"}, r"overlaps cannot be 'Left Lung'"),
        ({"meaning": "Left Kidney"}, r"meaning cannot be 'Left Kidney'"),
        ({"window": "[40]"}, r"window cannot be \[40\]; allowed: two numbers"),
        ({"window": "[40, wide]"}, r"window cannot be"),
        ({"window": "[40, 0]"}, r"width above 0"),
        ({"window": "[.nan, 400]"}, r"window cannot be"),
        ({"window": "[40, 400]", "modality": "[MR]"}, r"a window only where modality has CT"),
        ({"num_components": "0"}, r"num_components cannot be 0"),
        ({"num_components": "1.5"}, r"num_components cannot be 1.5"),
        ({"box_per_component": "'no'"}, r"box_per_component cannot be 'no'; allowed: true or false"),
        ({"visual_prompt": "auto"}, r"visual_prompt cannot be 'auto'; allowed: one of boxes, points, both, mask"),
        ({"visual_prompt": "[mask]"}, r"visual_prompt cannot be \['mask'\]"),
        ({"saliency": "[1]"}, r"saliency cannot be \[1\]"),
        ({"saliency": "{auto: {beta: 1, variance: 1, layer: 9}}"}, r"the presets published, paper, demo"),
        ({"saliency": "{paper: {beta: 1}}"}, r"saliency.paper cannot be {'beta': 1}; allowed: .*beta, variance"),
        ({"saliency": "{paper: {beta: 1, variance: 1, layer: 7.5}}"}, r"saliency.paper.layer cannot be 7.5"),
        ({"saliency": "{paper: {beta: -1, variance: 1, layer: 7}}"}, r"saliency.paper.beta cannot be -1"),
        ({"saliency": "{paper: {beta: 1, variance: x, layer: 7}}"}, r"saliency.paper.variance cannot be 'x'"),
        ({"color": "red"}, r"the key 'color' is unknown; allowed: .*captions"),
        ({"captions": "[a]\n    captions: [b]"}, r"the key 'captions' stands twice"),
    ],
)
def test_a_malformed_target_is_refused_with_file_target_and_key(tmp_path, changes, complaint):
    file = write(tmp_path, entry(**changes))
    with pytest.raises(TargetError, match=complaint) as caught:
        read_targets(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "one key 'targets'"),
        ("targets: []", "at least one target"),
        ("targets: {name: x}", "a list of at least one target"),
        ("targets: [x]", "target 1: 'x' is"),
        ("targets: []\nmore: 1", "one key 'targets'"),
        ("targets: [", "not valid YAML"),
        ("targets: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_targets_file_is_refused(tmp_path, text, complaint):
    with pytest.raises(TargetError, match=complaint):
        read_targets(write(tmp_path, text))


def test_a_missing_file_and_a_binary_file_are_refused(tmp_path):
    with pytest.raises(TargetError, match=r"none\.yaml cannot be read: No such file"):
        TargetSet.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(TargetError, match="not valid YAML"):
        TargetSet.load(tmp_path / "binary.yaml")


def test_two_targets_of_one_file_with_the_same_name_are_refused(tmp_path):
    text = "targets:\n  - {name: a, label: 190, captions: [x]}\n  - {name: A., label: 191, captions: [y]}\n"
    with pytest.raises(TargetError, match=r"own\.yaml: Target 'A\.' has the name of another target"):
        read_targets(write(tmp_path, text))


def test_a_label_of_a_built_in_target_is_refused(tmp_path):
    with pytest.raises(TargetError, match=r"'kidney' has label 4, which 'lungs CT' has already"):
        TargetSet.load(write(tmp_path, entry(label="4")))


def test_a_synonym_of_another_target_of_the_modality_is_refused(tmp_path):
    with pytest.raises(TargetError, match=r"'Both Lungs' means the targets 'lungs CT' and 'kidney' in one modality"):
        TargetSet.load(write(tmp_path, entry(synonyms="[Both Lungs]")))
    TargetSet.load(write(tmp_path, entry(modality="[US]", synonyms="[Both Lungs]")))


def test_the_worked_example_of_the_documentation_is_sound(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "targets.md"
    example = page.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    targets = TargetSet.load(write(tmp_path, example))
    assert targets.match("The left kidney", "CT").label == 120
    assert targets.get("left kidney").saliency["paper"]["layer"] == 9


def test_a_plausible_size_is_a_range(tmp_path):
    (target,) = read_targets(write(tmp_path, entry(plausible_volume_ml="[0, 30]", plausible_area_mm2="[5, 9.5]")))
    assert (target.plausible_volume_ml, target.plausible_area_mm2) == ((0, 30), (5, 9.5))
    for wrong in ("30", "[30]", "[30, 3]", "[3, 3]", "[-1, 3]", "[a, 3]", "[true, 3]"):
        with pytest.raises(TargetError, match="plausible_volume_ml"):
            read_targets(write(tmp_path, entry(plausible_volume_ml=wrong)))


def test_an_unknown_name_is_answered_with_the_likely_one(known):
    with pytest.raises(TargetError, match="'left lung'"):
        known.get("Lt lung")


def test_findings_are_what_their_codes_call_abnormal() -> None:
    assert {target.name for target in TargetSet.load() if target.is_finding} == {
        "breast tumour",
        "brain tumour",
        "lung nodule",
    }
    assert not Target("thing", 1, ("a thing",)).is_finding
