from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.imaging import read_image
from medclipsam.targets import TargetSet
from medclipsam.training.collect import read_label_map, read_studies
from medclipsam.training.selection import Criteria, Selection, select
from medclipsam.training.split import Split

TARGETS = TargetSet.load()
NOBODY = Split(seed=0, share=0.0)
LABEL = {"label_names": {"breast tumour": 1}}


def choose(studies: Any, *, split: Split = NOBODY, agreement: Any = None, **criteria: Any) -> Selection:
    return select(read_studies(studies.folder), Criteria(**criteria), TARGETS, split, agreement=agreement)


def reasons(selection: Selection) -> dict[str, str]:
    return {each.image: each.reason for each in selection.left_out}


def test_final_labels_go_before_original_ones(studies: Any) -> None:
    studies.add("both", 0, "final", info=LABEL)
    studies.label("both", np.zeros((48, 48), np.uint8), "original", studies.evidence())
    studies.add("original", 1, "original", info=studies.evidence())
    studies.add("unlabelled", 2, None)
    found = choose(studies, final_weight=5.0, original_weight=2.0)
    assert [(each.name, each.kind, each.weight) for each in found.training] == [
        ("both", "final", 5.0),
        ("original", "original", 2.0),
    ]
    assert found.training[0].labels(found.training[0].read(), 1).any()
    assert (found.classes, found.labels, found.modality) == ({"breast tumour": 1}, {"breast tumour": 1}, "US")


def test_an_empty_final_mask_is_a_label(studies: Any) -> None:
    studies.add("there", 0, "final")
    studies.add("absent", 1, "final", absent=True)
    studies.label("corrected", np.zeros((48, 48), np.uint8), "original", studies.evidence())
    studies.add("corrected", 2, "final", absent=True)
    found = choose(studies)
    assert {each.name: int(each.labels(each.read(), 1).max()) for each in found.training} == {
        "absent": 0,
        "corrected": 0,
        "there": 1,
    }


def test_an_image_whose_patient_cannot_be_read_is_neither_trained_on_nor_validated_with(
    studies: Any, hide_patients: set[str]
) -> None:
    for name in ("one", "two", "three"):
        studies.add(name, len(name), "final", info=LABEL)
    hide_patients.add("two")
    for split in (NOBODY, Split(seed=0, share=0.5)):
        found = choose(studies, split=split)
        assert {each.name for each in (*found.training, *found.validation)} == {"one", "three"}
    hide_patients.clear()
    assert {each.name for each in choose(studies).training} == {"one", "two", "three"}


def test_validation_patients_are_never_trained_on(studies: Any) -> None:
    split = Split(seed=0, share=0.3)
    for number in range(30):
        studies.add(
            f"i{number:02d}",
            number,
            "final" if number % 2 else "original",
            info=None if number % 2 else studies.evidence(),
        )
    found = choose(studies, split=split)
    held = {f"i{number:02d}" for number in range(30) if split.holds(f"image:i{number:02d}")}
    assert 4 < len(held) < 15
    assert not held & {each.name for each in found.training}
    assert {each.name for each in found.validation} == {name for name in held if int(name[1:]) % 2}
    assert reasons(found) == {name: "validation" for name in held if int(name[1:]) % 2 == 0}
    assert found.counts()["training"]["original"] == 15 - len(reasons(found))


def test_validation_images_keep_their_zero_shot_masks_and_patients(studies: Any) -> None:
    everybody = Split(seed=0, share=0.5)
    for number in range(12):
        studies.add(f"i{number:02d}", number, "final", info=LABEL)
        if number % 2:
            studies.label(f"i{number:02d}", np.full((48, 48), 3, np.uint8), "original", {"label_names": {"tumour": 3}})
        else:
            studies.label(f"i{number:02d}", np.eye(48, dtype=np.uint8), "original", studies.evidence())
    found = choose(studies, split=everybody)
    held = {each.name for each in found.validation}
    assert 2 < len(held) < 10
    assert found.patients == {name: f"image:{name}" for name in held}
    # a mask of something else says nothing of the network's labels
    assert {each.name for each in found.zero_shot} == {name for name in held if int(name[1:]) % 2 == 0}
    for each in found.zero_shot:
        np.testing.assert_array_equal(each.labels(each.read(), 1)[0], np.eye(48))


@pytest.mark.parametrize(
    ("changed", "criteria", "reason"),
    [
        ({"presence_score": 0.4}, {}, "presence"),
        ({"presence_score": 0.6}, {"min_presence": 0.7}, "presence"),
        ({"presence_score": None, "presence_threshold": None}, {"min_presence": 0.1}, "presence"),
        ({"found": False, "sam_score": None}, {"min_presence": 0.0}, "presence"),
        ({"sam_score": 0.4}, {}, "sam_score"),
        ({"sam_score": None}, {}, "sam_score"),
        ({"name": "heart"}, {}, "no evidence"),
    ],
)
def test_weak_pseudo_labels_are_left_out(
    studies: Any, changed: dict[str, Any], criteria: dict[str, Any], reason: str
) -> None:
    studies.add("good", 0, "original", info=studies.evidence())
    info = studies.evidence()
    info["params"]["targets"][0].update(changed)
    studies.add("weak", 1, "original", info=info)
    found = choose(studies, **criteria)
    assert [each.name for each in found.training] == ["good"]
    assert reasons(found) == {"weak": reason}
    assert found.left_out[0].sentence.endswith(".")


def test_thresholds_can_let_everything_in(studies: Any) -> None:
    weak = studies.evidence(presence_score=0.6, sam_score=0.01)
    studies.add("weak", 0, "original", info=weak)
    assert len(choose(studies, min_presence=0.0, min_sam_score=0.0).training) == 1


def test_a_sure_absence_is_a_pseudo_label_on_request(studies: Any) -> None:
    studies.add("there", 0, "original", info=studies.evidence())
    absent = studies.evidence(presence_score=0.02, found=False, sam_score=None)
    studies.add("absent", 1, "original", info=absent, absent=True)
    assert reasons(choose(studies)) == {"absent": "presence"}
    assert [each.name for each in choose(studies, absent_below=0.05).training] == ["absent", "there"]


def test_pseudo_labels_must_agree_with_the_network(studies: Any) -> None:
    for number, name in enumerate("abc"):
        studies.add(name, number, "original", info=studies.evidence())
    studies.add("final", 9, "final")
    asked = []

    def agreement(example: Any, classes: Any) -> float:
        asked.append((example.name, dict(classes)))
        return {"a": 0.9, "b": 0.49, "c": 0.5}[example.name]

    found = choose(studies, agreement=agreement)
    assert [each.name for each in found.training] == ["a", "c", "final"]
    assert reasons(found) == {"b": "agreement"}
    assert asked == [(name, {"breast tumour": 1}) for name in "abc"]


def test_ids_that_nothing_names_are_an_error(studies: Any) -> None:
    studies.add("known", 0, "final")
    studies.label("strange", np.full((48, 48), 77, np.uint8), "final")
    studies.add("strange", 1, None)
    with pytest.raises(InputError, match=r"strange \(final, strange\.png\).* 77"):
        choose(studies)
    studies.label("strange", np.full((48, 48), 77, np.uint8), "final", {"label_info": [{"name": "cyst", "idx": 77}]})
    assert reasons(choose(studies, labels=("breast tumour",))) == {"strange": "incomplete"}
    cysts = choose(studies, labels=("cyst",))
    assert (cysts.labels, [each.name for each in cysts.training]) == ({"cyst": 77}, ["strange"])


def test_labels_are_the_ones_that_files_name(studies: Any) -> None:
    studies.add("known", 0, "final")
    with pytest.raises(InputError, match="No label file holds or names 'hart'; labels found: breast tumour"):
        choose(studies, labels=("hart",))
    # synonyms and spellings of a known target are that target
    assert choose(studies, labels=("breast mass",)).classes == {"breast tumour": 1}


def test_each_file_has_its_own_values(studies: Any) -> None:
    picture, mask = studies.draw(0)
    for name, value in (("one", 5), ("two", 9)):
        Image.fromarray(picture).save(studies.folder / f"{name}.png")
        studies.label(name, mask * value, "final", {"label_info": [{"name": "Cyst", "idx": value}]})
    found = choose(studies)
    assert found.classes == {"cyst": 1}
    for example in found.training:
        assert np.array_equal(example.labels(example.read(), 1)[0], mask)


@pytest.mark.parametrize(
    "info",
    [
        {"label_names": {"heart": 13}, "label_info": [{"name": "heart", "idx": 14}]},
        {"label_info": [{"name": "cyst", "idx": 7}, {"name": "vessel", "idx": 7}]},
    ],
)
def test_contradictory_descriptions_are_left_out(studies: Any, info: dict[str, Any]) -> None:
    studies.add("known", 0, "final", info=LABEL)
    studies.add("torn", 1, "final", info=info)
    assert reasons(choose(studies)) == {"torn": "contradictory"}


def test_a_label_that_speaks_of_another_structure_is_left_out(studies: Any) -> None:
    studies.add("tumour", 0, "final", info=LABEL)
    studies.add("skin", 1, "original", info={"params": {"label_names": {"skin": 19}}}, absent=True)
    assert reasons(choose(studies, labels=("breast tumour",))) == {"skin": "incomplete"}


def test_structures_beside_the_wanted_ones_are_background(studies: Any) -> None:
    mask = studies.draw(0)[1]
    mask[0, 0] = 19
    studies.add("both", 0, None)
    studies.label("both", mask, "final")
    (example,) = choose(studies, labels=("breast tumour",)).training
    assert example.labels(example.read(), 1)[0, 0, 0] == 0
    assert choose(studies).classes == {"breast tumour": 1, "skin": 2}


def test_files_that_do_not_fit_are_left_out(studies: Any) -> None:
    studies.add("good", 0, "final")
    studies.add("small", 1, None)
    studies.label("small", np.zeros((20, 48), np.uint8), "final")
    studies.add("broken", 2, None)
    studies.label("broken", np.zeros((48, 48), np.uint8), "final").write_bytes(b"x")
    found = choose(studies)
    assert reasons(found) == {"small": "unreadable", "broken": "unreadable"}
    assert "20" in next(each.sentence for each in found.left_out if each.image == "small")


def test_kinds_of_images_are_not_mixed(studies: Any, write_radiograph: Callable[[np.ndarray, Path], None]) -> None:
    studies.add("breast", 0, "final", info=LABEL)
    write_radiograph(np.full((40, 60), 90, np.uint8), studies.folder / "film.dcm")
    place = studies.label("film", np.zeros((40, 60), np.uint8), "final", {"label_names": {"heart": 13}})
    assert place.is_file()
    with pytest.raises(InputError, match=r"several kinds: DX \(1\), US \(1\).*option modality"):
        choose(studies)
    films = choose(studies, modality="CR")
    assert (films.modality, films.classes, reasons(films)) == ("DX", {"heart": 1}, {"breast": "modality"})
    # the labels that are asked for say which kind is meant, too
    assert choose(studies, labels=("breast tumour",)).modality == "US"


def test_nothing_to_train_on_says_why(studies: Any) -> None:
    studies.add("unlabelled", 0, None)
    with pytest.raises(InputError, match="no image has a label"):
        choose(studies)
    studies.add("weak", 1, "original", info=studies.evidence(sam_score=0.1))
    with pytest.raises(InputError, match=r"sam_score.*weak"):
        choose(studies)


def test_the_digest_is_of_the_labels(studies: Any) -> None:
    studies.add("a", 0, "final")
    studies.add("b", 1, "final")
    before = choose(studies).digest
    assert choose(studies).digest == before
    studies.label("b", studies.draw(5)[1], "final")
    assert choose(studies).digest != before
    assert choose(studies, split=Split(seed=0, share=0.5)).digest != choose(studies).digest


def test_studies_are_read_as_the_server_lists_them(
    studies: Any, write_series: Callable[..., Path], tmp_path: Path
) -> None:
    series = write_series(np.zeros((3, 16, 16), np.uint8), studies.folder / "case" / "ct", uid="listed")
    (studies.folder / "sub").mkdir()
    Image.fromarray(studies.draw(0)[0]).save(studies.folder / "sub" / "deep.png")
    import pydicom

    uid = str(pydicom.dcmread(next(series.iterdir())).SeriesInstanceUID)
    for name, shape in ((uid, (16, 16)), ("deep", (48, 48)), ("gone", (4, 4))):
        studies.label(name, np.zeros(shape, np.uint8), "final", {"user": "x"})
    found = {each.image_id: each for each in read_studies(studies.folder)}
    assert found.keys() == {uid, "deep"}
    assert found[uid].image == series
    assert found[uid].modality == "CT"
    assert found["deep"].labels["final"].info == {"user": "x"}
    Image.fromarray(studies.draw(0)[0]).save(studies.folder / "deep.png")
    # which of the two files the label belongs to is not known: it is given to neither
    assert {each.image_id for each in read_studies(studies.folder)} == {uid}
    (studies.folder / "datastore_v2.json").write_text("[]")
    (studies.folder / "deep.png").unlink()
    with pytest.raises(InputError, match=r"datastore_v2\.json"):
        read_studies(studies.folder)


def test_labels_of_validation_patients_alone_are_named_where_nothing_is_left(studies: Any) -> None:
    held = next(split for split in (Split(seed=seed, share=0.5) for seed in range(99)) if split.holds("image:only"))
    studies.add("only", 0, "final", info=LABEL)
    with pytest.raises(InputError, match=r"1 of the labels .*validation.*only"):
        choose(studies, split=held)
    studies.label("torn", np.zeros((48, 48), np.uint8), "final", LABEL)
    studies.add("torn", 1, None)
    (studies.folder / "labels" / "final" / "torn.png").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"unreadable.*torn"):
        choose(studies, split=held)


def test_values_without_names_are_refused_before_any_image_is_read(
    studies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        studies.add(f"i{number}", number, None)
        studies.label(f"i{number}", np.full((48, 48), 255, np.uint8), "final")
    read: list[Path] = []
    monkeypatch.setattr(
        "medclipsam.training.selection.read_image", lambda path, **_: read.append(path) or read_image(path)
    )
    with pytest.raises(InputError, match=r"i0\.png.*255.*--label-map"):
        choose(studies, labels=("lungs x-ray",))
    assert [path.parent.name for path in read] == ["final"]
    for number in range(3):
        studies.label(f"i{number}", np.full((48, 48), 1, np.uint8), "final")
    read.clear()
    with pytest.raises(InputError, match=r"'lungs x-ray'.*i0\.png.* 1 .*--label-map"):
        choose(studies, labels=("lungs x-ray",))
    assert {path.parent.name for path in read} == {"final"}


def test_a_label_map_names_values_that_were_saved_without_names(studies: Any) -> None:
    studies.add("bare", 0, None)
    studies.label("bare", np.full((48, 48), 255, np.uint8), "final")
    studies.add("named", 1, None)
    studies.label("named", np.full((48, 48), 3, np.uint8), "final", {"label_names": {"cyst": 3}})
    found = select(read_studies(studies.folder, {255: "cyst"}), Criteria(), TARGETS, NOBODY)
    assert [each.name for each in found.training] == ["bare", "named"]
    for each in found.training:
        assert (each.labels(each.read(), 1) == 1).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, {1: "left lung", 255: "heart"}),
        ("1: left lung\n255: heart\n", {1: "left lung", 255: "heart"}),
        ('{"1": "left lung", "255": "heart"}', {1: "left lung", 255: "heart"}),
        ('{"left lung": 1, "heart": 255}', {1: "left lung", 255: "heart"}),
    ],
)
def test_label_maps_of_arguments_and_files(tmp_path: Path, content: str | None, expected: dict[int, str]) -> None:
    file = tmp_path / "map.yaml"
    entries = ["1=left lung", "255= heart"] if content is None else [str(file)]
    file.write_text(content or "")
    assert read_label_map(entries) == expected


@pytest.mark.parametrize(
    "entries",
    [
        ["0=a"],
        ["256=a"],
        ["1.5=a"],
        ["a=1"],
        ["1="],
        ["1=a", "1=b"],
        ["1=a", "2=a"],
        ["nothing.yaml"],
        ["-1=a"],
        ["²=a"],
    ],
)
def test_label_maps_that_make_no_sense_are_refused(entries: list[str]) -> None:
    with pytest.raises(InputError, match="label map"):
        read_label_map(entries)


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: b", "{", "1: ''", "true: a", "1: a\n2: a"])
def test_label_map_files_that_make_no_sense_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(InputError, match="label map"):
        read_label_map([str(tmp_path / "map.yaml")])
