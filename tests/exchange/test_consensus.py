"""Labels of several readers: agreement and consensus, against SimpleITK and plain counting, and the commands."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.cli.main import main
from medclipsam.exchange.consensus import agreement, consensus, least_agreement
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.studies.exchange import FolderLabelStore
from medclipsam.training.collect import read_studies

IMAGE = MedicalImage.from_array(np.zeros((3, 60, 70), np.uint8))
NAMES = {"heart": 13, "left lung": 11}


def _reading(shift: int, *, names: dict[str, int] | None = None, image: MedicalImage = IMAGE) -> LabelMap:
    values = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    values[:, 10 + shift : 30 + shift, 20:40] = 13
    values[:, 35:50, 10 + shift : 30 + shift] = 11
    return LabelMap(values, image, NAMES if names is None else names)


READINGS = {"ada": _reading(0), "bob": _reading(2), "cleo": _reading(3)}


def test_agreement_is_the_dice_of_each_pair_by_simpleitk() -> None:
    found = agreement(READINGS)
    assert found.keys() == NAMES.keys()
    for name, value in NAMES.items():
        assert [pair.readers for pair in found[name].pairs] == [("ada", "bob"), ("ada", "cleo"), ("bob", "cleo")]
        for pair in found[name].pairs:
            overlap = sitk.LabelOverlapMeasuresImageFilter()
            overlap.Execute(
                *(sitk.GetImageFromArray((READINGS[r].values == value).astype(np.uint8)) for r in pair.readers)
            )
            assert pair.dice == pytest.approx(overlap.GetDiceCoefficient(1))
            # the spacing is not known
            assert pair.hd95_mm is None
    worst = [pair.dice for name in NAMES for pair in found[name].pairs if pair.readers == ("ada", "cleo")]
    assert least_agreement(found) == pytest.approx(np.mean(worst))
    # who did not look for a structure is in no pair
    part = {"ada": _reading(0), "bob": _reading(2, names={"heart": 13})}
    assert agreement(part).keys() == {"heart"}
    assert least_agreement({}) is None


def test_kappas_are_those_of_the_readers_votes() -> None:
    found = agreement(READINGS, distances=False)["heart"]
    votes = np.stack([(reading.values == 13).ravel() for reading in READINGS.values()]).astype(int)
    for pair in found.pairs:
        one, other = (votes[list(READINGS).index(reader)] for reader in pair.readers)
        observed = np.mean(one == other)
        chance = sum(np.mean(one == k) * np.mean(other == k) for k in (0, 1))
        assert pair.kappa == pytest.approx((observed - chance) / (1 - chance))
    # as Fleiss has it: of each voxel the share of the pairs of readers who agree
    agreeing = np.mean([votes[a] == votes[b] for a in range(3) for b in range(3) if a != b], axis=0)
    chance = sum(np.mean(votes == k) ** 2 for k in (0, 1))
    assert found.fleiss_kappa == pytest.approx((agreeing.mean() - chance) / (1 - chance))
    # where nobody has marked anything, chance explains all
    nothing = LabelMap(np.zeros_like(READINGS["ada"].values), IMAGE, NAMES)
    none = agreement({"ada": nothing, "bob": nothing, "cleo": nothing})["heart"]
    assert {(pair.dice, pair.kappa) for pair in none.pairs} == {(1.0, None)}
    assert none.fleiss_kappa is None


def test_structures_that_overlap_for_a_reader_overlap_in_the_consensus() -> None:
    masks = {"lung": np.zeros((3, 60, 70), bool), "nodule": np.zeros((3, 60, 70), bool)}
    masks["lung"][:, 10:40, 10:40] = True
    masks["nodule"][:, 20:25, 20:25] = True
    one = LabelMap.from_masks(masks, IMAGE, {"lung": 1, "nodule": 2})
    made = consensus({"ada": one, "bob": one}).label
    for name, mask in masks.items():
        assert np.array_equal(made.mask(name), mask)


def test_a_majority_is_what_more_than_half_have_marked() -> None:
    made = consensus(READINGS, "majority")
    for name, value in NAMES.items():
        votes = sum((reading.values == value).astype(int) for reading in READINGS.values())
        assert np.array_equal(made.label.values == made.label.names[name], votes > 1.5)
    two = consensus({name: READINGS[name] for name in ("ada", "bob")}, "majority")
    both = (READINGS["ada"].values == 13) & (READINGS["bob"].values == 13)
    assert np.array_equal(two.label.values == 13, both)


def test_staple_is_simpleitks_within_the_readers_box() -> None:
    made = consensus(READINGS, "staple")
    assert made.label.names == NAMES
    filter_ = sitk.STAPLEImageFilter()
    filter_.SetForegroundValue(1)
    masks = [(reading.values == 13).astype(np.uint8) for reading in READINGS.values()]
    box = np.s_[0:3, 5:38, 15:45]
    posterior = filter_.Execute([sitk.GetImageFromArray(np.ascontiguousarray(mask[box])) for mask in masks])
    expected = np.zeros(masks[0].shape, bool)
    expected[box] = sitk.GetArrayFromImage(posterior) > 0.5
    assert np.array_equal(made.label.values == 13, expected)
    # the reader in the middle agrees best
    assert max(made.agreement, key=lambda reader: made.agreement[reader]["heart"]) == "bob"
    assert made.agreement["bob"]["heart"] > 0.9


def test_structures_with_one_number_and_structures_nobody_found() -> None:
    one = LabelMap(_reading(0).values, IMAGE, {"heart": 13, "left lung": 11, "a cyst": 7})
    other = LabelMap(np.where(_reading(0).values == 13, 7, 0).astype(np.uint8), IMAGE, {"heart": 7})
    made = consensus({"ada": one, "bob": other})
    assert np.array_equal(made.label.values == made.label.names["heart"], one.values == 13)
    assert len(set(made.label.names.values())) == 3
    assert not (made.label.values == made.label.names["a cyst"]).any()
    # of what one of the two looked for, that one's mask is kept
    assert np.array_equal(made.label.values == made.label.names["left lung"], one.values == 11)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="two readers"):
        consensus({"ada": _reading(0)})
    with pytest.raises(InputError, match="'median'"):
        consensus(READINGS, "median")  # type: ignore[arg-type]
    small = MedicalImage.from_array(np.zeros((3, 60, 71), np.uint8))
    with pytest.raises(InputError, match="shapes"):
        consensus({"ada": _reading(0), "bob": _reading(0, image=small)})


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two pictures; the first has labels of three people, one of them twice, the second of one."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((60, 70), np.uint8)).save(folder / f"{name}.png")
    store = FolderLabelStore(folder)
    image = read_image(folder / "a.png")
    for reader, shift in (("ada", 9), ("bob", 2), ("ada", 0), ("cleo", 3)):
        store.save("a", _reading(shift, image=image), {"saved_by": reader})
    store.save("b", _reading(0, image=read_image(folder / "b.png")), {"saved_by": "ada"})
    return folder


def test_the_commands_show_agreement_and_save_the_consensus_that_is_trained_on(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--studies", str(studies)]
    assert main(["labels", "readers", *where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    image = read_image(studies / "a.png")
    # the last label of each reader counts
    last = {"ada": _reading(0, image=image), "bob": _reading(2, image=image), "cleo": _reading(3, image=image)}
    expected = {name: asdict(structure) for name, structure in agreement(last).items()}
    assert told == {"a": json.loads(json.dumps(expected))}
    assert main(["labels", "readers", *where]) == 0
    assert "ada, bob, cleo" in capsys.readouterr().out
    assert main(["labels", "consensus", *where, "--dry-run"]) == 0
    # before the consensus nothing is trained on
    assert [each.image_id for each in read_studies(studies)] == ["b"]
    store = FolderLabelStore(studies)
    before = store.label("a", image)
    assert before is not None
    assert before[1]["saved_by"] == "cleo"
    assert main(["labels", "consensus", *where]) == 0
    assert "consensus of ada, bob, cleo saved" in capsys.readouterr().out
    after = FolderLabelStore(studies).label("a", image)
    assert after is not None
    assert np.array_equal(after[0].values, consensus(last).label.values)
    assert after[1]["consensus"]["method"] == "staple"
    trained = {each.image_id: each.labels["final"].info["saved_by"] for each in read_studies(studies)}
    assert trained == {"a": "consensus", "b": "ada"}
    # everybody's label is still there, and the same consensus is not saved again
    assert FolderLabelStore(studies).readings("a", image).keys() == {"ada", "bob", "cleo"}
    assert main(["labels", "consensus", *where]) == 0
    assert "nothing to save" in capsys.readouterr().out
    assert main(["labels", "consensus", *where, "--readers", "4"]) == 0
    assert "nothing to save" in capsys.readouterr().out
    assert main(["labels", "consensus", *where, "--readers", "1"]) == 2


def test_images_are_assigned_by_command(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--studies", str(studies), "--workspace", str(tmp_path / "workspace")]
    assert main(["labels", "assign", *where]) == 0
    assert "no such" in capsys.readouterr().out
    assert main(["labels", "assign", "a", "b", "--reader", "ada", "--reader", "bob", *where]) == 0
    capsys.readouterr()
    assert main(["labels", "assign", "--json", "--reader", "ada", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["image"], each["reader"], each["done"]) for each in told] == [
        ("a", "ada", False),
        ("b", "ada", False),
    ]
    assert main(["labels", "assign", "a", "--remove", "--reader", "ada", *where]) == 0
    assert "no longer ada" in capsys.readouterr().out
    for wrong in (
        ["a", "c", "--reader", "ada"],
        ["a"],
        ["--remove"],
        ["a", "--reader", " "],
        ["a", "--reader", "anonymous"],
    ):
        assert main(["labels", "assign", *wrong, *where]) == 2
    capsys.readouterr()
    assert main(["labels", "assign", "--json", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {(each["image"], each["reader"]) for each in told} == {("a", "bob"), ("b", "ada"), ("b", "bob")}
