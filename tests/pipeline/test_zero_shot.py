"""The composition, on models that can be reckoned by hand: text "bright ..." is where the plane is bright."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medclipsam.base.errors import CancelledError, InputError, OptionError, TargetError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.pipeline.refine import RefineResult
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.targets import SnomedCode, StructureCode, Target, TargetSet
from medclipsam.training.ensemble import NetworkResult


def disc(shape: tuple[int, int], row: int, col: int, radius: int = 9) -> np.ndarray:
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (cols - col) ** 2 <= radius**2


def picture(folder: Path, array: np.ndarray, name: str = "image.png") -> MedicalImage:
    Image.fromarray(array.astype(np.uint8)).save(folder / name)
    return read_image(folder / name)


def volume(folder: Path, planes: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> MedicalImage:
    """An axial uint8 volume whose display planes are `planes` [N, H, W], first plane lowest."""
    stored = planes[:, ::-1, ::-1].transpose(2, 1, 0)  # x grows to the left, y to the back in LPS; RAS here
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), np.diag([*spacing, 1.0])), folder / "volume.nii.gz")
    return read_image(folder / "volume.nii.gz")


OPTIONS = ZeroShotOptions(saliency="patch_text")


def test_one_target_on_one_plane(pipeline: ZeroShot, tmp_path: Path) -> None:
    truth = disc((80, 120), 30, 90)
    result = pipeline.segment(picture(tmp_path, truth * 255), "something bright", OPTIONS)
    assert result.labels.shape == (1, 80, 120)
    assert result.labels.dtype == np.uint8
    np.testing.assert_array_equal(result.labels[0] > 0, truth)
    assert result.label_names == {"something bright": 201}
    (evidence,) = result.targets
    assert evidence.found
    assert evidence.area_pixels == truth.sum()
    assert evidence.area_mm2 is None  # a PNG knows no millimetres
    assert evidence.sam_score == pytest.approx(0.9)
    x0, y0, x1, y1 = evidence.planes[0].prompt["boxes"][0]
    assert x0 <= 81 <= 99 <= x1
    assert y0 <= 21 <= 39 <= y1


def test_an_absent_target_is_an_empty_mask_with_its_reason(pipeline: ZeroShot, tmp_path: Path) -> None:
    result = pipeline.segment(picture(tmp_path, np.full((60, 60), 20)), "something bright", OPTIONS)
    assert not result.labels.any()
    (evidence,) = result.targets
    assert not evidence.found
    assert evidence.presence_score < evidence.presence_threshold
    assert "not found" in result.sentence
    assert f"{evidence.presence_score:.2f}" in result.sentence
    assert pipeline.sam.boxes == []  # no work was done for it


def test_the_threshold_is_the_targets_own_else_that_of_all_else_free_texts(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = picture(tmp_path, disc((60, 60), 30, 30) * 255)
    pipeline.encoder.defaults = {
        "presence_threshold": 0.3,
        "presence_thresholds": {"breast tumour": 0.7},
        "free_text_threshold": 0.2,
    }
    asked = "breast tumour; brain tumour; something bright"
    result = pipeline.segment(image, asked, OPTIONS)
    assert [target.presence_threshold for target in result.targets] == [0.7, 0.3, 0.2]
    given = ZeroShotOptions(saliency="patch_text", presence_threshold=0.9)
    assert [target.presence_threshold for target in pipeline.segment(image, asked, given).targets] == [0.9] * 3


@pytest.mark.parametrize(
    ("plausible", "doubted"), [(None, False), ((0, 5), False), ((0, 1), True), ((3, 5), True), ((2, 2.5), False)]
)
def test_a_size_that_the_target_cannot_have_is_doubted(
    pipeline: ZeroShot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plausible: tuple[float, float] | None,
    doubted: bool,
) -> None:
    image = volume(tmp_path, np.stack([disc((40, 40), 20, 20) * np.uint8(255)] * 3))
    target = Target("bright thing", 1, ("something bright",), plausible_volume_ml=plausible, plausible_area_mm2=(0, 1))
    monkeypatch.setattr(pipeline, "targets", TargetSet([target]))
    result = pipeline.segment(image, "Bright thign", OPTIONS.replace(presence=False))
    (evidence,) = result.targets
    assert evidence.volume_mm3 == pytest.approx(3.0 * np.count_nonzero(result.labels))
    assert bool(evidence.doubt) == doubted
    assert evidence.name == "bright thing"
    assert "'Bright thign'" in evidence.note
    for part in (evidence.note, evidence.reason, evidence.doubt):
        assert part in result.sentence
    assert " mL" in result.sentence


@pytest.mark.parametrize("category", ["49755003", "91723000"])
def test_findings_have_a_diameter_and_organs_none(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, category: str
) -> None:
    image = volume(tmp_path, np.stack([disc((40, 40), 20, 20) * np.uint8(255)] * 3), (0.5, 0.5, 3.0))
    code = StructureCode(SnomedCode(category, "of this kind"), SnomedCode("1", "Thing"))
    monkeypatch.setattr(pipeline, "targets", TargetSet([Target("bright thing", 1, ("something bright",), code=code)]))
    (evidence,) = pipeline.segment(image, "bright thing", OPTIONS.replace(presence=False)).targets
    if category == "49755003":
        assert evidence.diameter_mm == pytest.approx(9.5, abs=0.3)
        assert " mm" in evidence.reason.partition(" mL")[2]
    else:
        assert evidence.diameter_mm is None


def test_a_free_text_that_means_a_known_target_is_treated_as_it(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(tmp_path, disc((60, 60), 15, 15) * 255 + disc((60, 60), 45, 45) * 255)
    lungs = pipeline.targets.get("lungs CT")
    assert lungs.num_components == 2
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])

    def prototype(captions: Sequence[str]) -> torch.Tensor:
        return near if "bright pair" in captions or tuple(captions) == lungs.captions else far

    monkeypatch.setattr(pipeline.encoder, "text_prototype", prototype)
    (alone,) = pipeline.segment(image, "bright pair", ZeroShotOptions(saliency="patch_text", presence=False)).targets
    assert (alone.known, alone.treated_as) == (False, None)
    pipeline.encoder.defaults = {"same_meaning": 0.9, "presence_thresholds": {"lungs CT": 0.0}}
    (judged,) = pipeline.segment(image, "bright pair", OPTIONS).targets
    assert (judged.known, judged.treated_as, judged.label) == (False, "lungs CT", 201)
    assert judged.presence_threshold == 0.0


def test_presence_alone_is_what_a_mask_would_tell(pipeline: ZeroShot, tmp_path: Path) -> None:
    planes = np.stack([np.uint8(value) * disc((60, 60), 30, 30) for value in (20, 255, 20)])
    image = volume(tmp_path, planes)
    text = "something bright; breast tumour"
    told = pipeline.presence(image, text, ZeroShotOptions(saliency="patch_text", presence=False))
    assert pipeline.sam.boxes == []
    targets = pipeline.segment(image, text, OPTIONS).targets
    assert told == {each.name: (each.presence_score, each.presence_threshold) for each in targets}
    with pytest.raises(CancelledError):
        pipeline.presence(image, text, OPTIONS, cancelled=lambda: True)


def test_a_ring_is_told_from_what_it_encloses_by_its_coarse_mask(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text means the brighter ring; SAM takes the dimmer disc in it too, since it lies in the box."""
    ring = disc((80, 80), 40, 40, 30) & ~disc((80, 80), 40, 40, 18)
    image = picture(tmp_path, np.where(disc((80, 80), 40, 40, 12), 120, ring * 255))
    threshold = {"saliency": "patch_text", "postprocess": "threshold", "threshold": 0.8, "num_components": 9}
    boxed = pipeline.segment(image, "something bright", ZeroShotOptions(**threshold))
    assert boxed.labels[0, 40, 40] > 0
    assert "mask_pixels" not in boxed.targets[0].planes[0].prompt
    masked = pipeline.segment(image, "something bright", ZeroShotOptions(**threshold, visual_prompt="mask"))
    assert masked.labels[0, 40, 40] == 0
    assert masked.labels.any()
    assert masked.targets[0].planes[0].prompt["mask_pixels"] >= (masked.labels > 0).sum()

    target = replace(pipeline.targets.get("breast tumour"), captions=("something bright",), visual_prompt="mask")
    monkeypatch.setattr(pipeline, "targets", TargetSet([target]))
    known = pipeline.segment(image, "breast tumour", ZeroShotOptions(**threshold, presence=False))
    assert known.labels[0, 40, 40] == 0
    said = ZeroShotOptions(**threshold, presence=False, visual_prompt="boxes")
    assert pipeline.segment(image, "breast tumour", said).labels[0, 40, 40] > 0


def test_the_coarse_mask_is_kept_where_sams_mask_is_of_something_else(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAM takes the dimmer disc in the ring for it; how far the two masks may differ is for the weights to say."""
    ring = disc((80, 80), 40, 40, 30) & ~disc((80, 80), 40, 40, 18)
    image = picture(tmp_path, np.where(disc((80, 80), 40, 40, 12), 120, ring * 255))
    target = replace(pipeline.targets.get("breast tumour"), captions=("something bright",))
    monkeypatch.setattr(pipeline, "targets", TargetSet([target]))
    options = ZeroShotOptions(saliency="patch_text", postprocess="threshold", threshold=0.8, presence=False)

    def segment(least: dict[str, float]) -> tuple[np.ndarray, bool, np.ndarray]:
        monkeypatch.setattr(pipeline.encoder, "defaults", {"least_agreement": least})
        masks: dict[str, np.ndarray] = {}
        result = pipeline.segment(
            image, "breast tumour", options, keep_mask=lambda stage, name, plane, mask: masks.update({stage: mask})
        )
        return result.labels[0] > 0, result.targets[0].planes[0].kept_coarse, masks["components"]

    by_sam, kept, coarse = segment({})
    assert not kept
    agreement = 2 * (by_sam & coarse).sum() / (by_sam.sum() + coarse.sum())
    assert 0.5 < agreement < 1
    for least, name in ((agreement - 0.01, "breast tumour"), (1.0, "another target")):
        mask, kept, _ = segment({name: least})
        assert not kept
        np.testing.assert_array_equal(mask, by_sam)
    mask, kept, _ = segment({"breast tumour": agreement + 0.01})
    assert kept
    np.testing.assert_array_equal(mask, coarse)


def test_sam_weights_that_take_no_masks_get_boxes_and_refuse_the_option(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(tmp_path, disc((60, 60), 30, 30) * 255)
    pipeline.sam.mask_prompts = False
    target = replace(pipeline.targets.get("breast tumour"), visual_prompt="mask")
    monkeypatch.setattr(pipeline, "targets", TargetSet([target]))
    result = pipeline.segment(image, "breast tumour", ZeroShotOptions(saliency="patch_text", presence=False))
    assert list(result.targets[0].planes[0].prompt) == ["boxes"]
    with pytest.raises(OptionError, match=r"visual_prompt.*mask.*boxes, points or both"):
        pipeline.segment(image, "breast tumour", ZeroShotOptions(visual_prompt="mask"))


def test_presence_can_be_switched_off(pipeline: ZeroShot, tmp_path: Path) -> None:
    """A dim disc lies below the threshold, but its map has a maximum all the same."""
    dim = picture(tmp_path, disc((60, 60), 30, 30) * 110)
    assert not pipeline.segment(dim, "something bright", OPTIONS).labels.any()
    off = pipeline.segment(dim, "something bright", ZeroShotOptions(saliency="patch_text", presence=False))
    assert off.labels.any()
    assert off.targets[0].presence_score is None


def test_an_empty_text_and_unknown_planes_are_refused(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = picture(tmp_path, np.zeros((20, 20)))
    with pytest.raises(InputError):
        pipeline.segment(image, " ; ", OPTIONS)
    with pytest.raises(OptionError, match="planes"):
        pipeline.segment(image, "bright", ZeroShotOptions(planes="3"))
    with pytest.raises(OptionError, match="layer"):
        pipeline.segment(image, "bright", ZeroShotOptions(layer=4))
    with pytest.raises(OptionError, match="preset"):
        pipeline.segment(image, "bright", ZeroShotOptions(preset="demo"))
    with pytest.raises(TargetError):
        pipeline.segment(image, ";".join(f"bright {n}" for n in range(9)), OPTIONS)


def known(pipeline: ZeroShot, monkeypatch: pytest.MonkeyPatch, overlaps: tuple[str, ...] = ()) -> None:
    """Have the pipeline know "bright one", "bright two" and "bright three"; the first may overlap others."""
    targets = [
        Target(f"bright {name}", label, (f"bright {name}",), meaning=name, overlaps=overlaps if name == "one" else ())
        for label, name in ((7, "one"), (8, "two"), (9, "three"))
    ]
    monkeypatch.setattr(pipeline, "targets", TargetSet(targets))


NO_PRESENCE = OPTIONS.replace(presence=False)


def test_known_targets_that_cannot_overlap_share_no_pixel(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask with the higher SAM score has the pixels of both."""
    known(pipeline, monkeypatch)
    image = picture(tmp_path, disc((60, 60), 30, 30) * 255)
    truth = pipeline.segment(image, "bright one", NO_PRESENCE).labels[0] > 0
    for scores, winner, loser in (([0.6, 0.8], "bright two", "bright one"), ([0.8, 0.6], "bright one", "bright two")):
        pipeline.sam.scores = scores
        result = pipeline.segment(image, "bright one; bright two", NO_PRESENCE)
        assert np.array_equal(result.mask(winner)[0], truth)
        assert not result.mask(loser).any()
        assert not len(result.beneath)
        told = {target.name: target for target in result.targets}
        assert "another target" in told[loser].reason
        assert (told[loser].found, told[loser].area_pixels) == (False, 0)
        assert told[winner].area_pixels == truth.sum()


@pytest.mark.parametrize("text", ["bright one; bright two", "bright one; bright and else", "bright this; bright that"])
def test_targets_that_may_overlap_stay_whole(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """As the vocabulary says of known targets; of free text it knows nothing."""
    known(pipeline, monkeypatch, overlaps=("two",))
    image = picture(tmp_path, disc((60, 60), 30, 30) * 255)
    truth = pipeline.segment(image, "bright one", NO_PRESENCE).labels[0] > 0
    pipeline.sam.scores = [0.6, 0.8]
    result = pipeline.segment(image, text, NO_PRESENCE)
    assert len(result.masks()) == 2
    for name, mask in result.masks().items():
        assert np.array_equal(mask[0], truth)
        (evidence,) = (target for target in result.targets if target.name == name)
        assert (evidence.found, evidence.area_pixels) == (True, truth.sum())
        assert evidence.measurements.n_voxels == truth.sum()
    label = result.label_map(image)
    assert label.overlap_voxels == truth.sum()
    assert all(np.array_equal(label.mask(name), mask) for name, mask in result.masks().items())


def test_of_three_targets_each_keeps_what_it_may(
    pipeline: ZeroShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second, which the third wins over, takes nothing from the first, which overlaps the third alone."""
    known(pipeline, monkeypatch, overlaps=("three",))
    image = picture(tmp_path, disc((60, 60), 30, 30) * 255)
    truth = pipeline.segment(image, "bright one", NO_PRESENCE).labels[0] > 0
    pipeline.sam.scores = [0.5, 0.7, 0.9]
    result = pipeline.segment(image, "bright one; bright two; bright three", NO_PRESENCE)
    assert {name: int(mask.sum()) for name, mask in result.masks().items()} == {
        "bright one": truth.sum(),
        "bright two": 0,
        "bright three": truth.sum(),
    }


def moving_disc(n_planes: int, held: Sequence[int]) -> np.ndarray:
    planes = np.zeros((n_planes, 48, 64), np.uint8)
    for plane in held:
        planes[plane][disc((48, 64), 24, 28 + plane)] = 255
    return planes


def test_only_planes_that_hold_the_target_get_a_mask(pipeline: ZeroShot, tmp_path: Path) -> None:
    planes = moving_disc(12, range(3, 9))
    image = volume(tmp_path, planes)
    result = pipeline.segment(image, "something bright", OPTIONS)
    mask, truth = result.labels > 0, planes > 0
    np.testing.assert_array_equal(mask.any(axis=(1, 2)), truth.any(axis=(1, 2)))
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.98  # boxes of a coarse map cut a pixel or two
    (evidence,) = result.targets
    assert [seen.plane for seen in evidence.planes] == list(range(3, 9))
    assert evidence.volume_mm3 == pytest.approx(mask.sum() * 3.0)
    assert pipeline.encoder.planes_seen <= 3  # memory: never more than a batch of planes at once


def test_single_planes_do_not_flicker(pipeline: ZeroShot, tmp_path: Path) -> None:
    """One plane that lights up alone is dropped; one that goes out among its neighbours is filled."""
    planes = moving_disc(14, [1, 5, 6, 7, 8, 9, 10])
    truth = planes > 0
    pipeline.sam.blind = {3}  # SAM finds nothing on the third plane it is asked about
    result = pipeline.segment(volume(tmp_path, planes), "something bright", OPTIONS)
    assert not result.labels[1].any()
    held = np.flatnonzero(result.labels.any(axis=(1, 2)))
    np.testing.assert_array_equal(held, np.arange(5, 11))
    filled = result.labels[7] > 0
    assert 2 * (filled & truth[7]).sum() / (filled.sum() + truth[7].sum()) > 0.95


def test_the_largest_component_is_chosen_in_3d(pipeline: ZeroShot, tmp_path: Path) -> None:
    """On plane 4 a larger spot lies elsewhere; the target's column through the volume is kept all the same."""
    planes = moving_disc(9, range(2, 8))
    planes[4] = 0
    planes[4][disc((48, 64), 24, 32)] = 255
    planes[3:5][:, disc((48, 64), 10, 8, 6)] = 255
    options = ZeroShotOptions(saliency="patch_text", num_components=1)
    result = pipeline.segment(volume(tmp_path, planes), "something bright", options)
    assert not result.labels[3:5, :20, :16].any()
    assert all(result.labels[plane].any() for plane in range(2, 8))


def test_a_range_of_planes_can_be_asked_for(pipeline: ZeroShot, tmp_path: Path) -> None:
    planes = moving_disc(10, range(1, 9))
    options = ZeroShotOptions(saliency="patch_text", planes="4-6")
    result = pipeline.segment(volume(tmp_path, planes), "something bright", options)
    np.testing.assert_array_equal(np.flatnonzero(result.labels.any(axis=(1, 2))), [4, 5, 6])


def test_batches_of_planes_change_nothing(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = volume(tmp_path, moving_disc(10, range(1, 9)))
    made = []
    for size in (1, 4, 100):
        pipeline.batch_planes = size
        made.append(pipeline.segment(image, "bright", OPTIONS))
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].labels, other.labels)


def test_progress_only_grows_and_the_work_can_be_cancelled(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = volume(tmp_path, moving_disc(10, range(1, 9)))
    seen: list[float] = []
    pipeline.segment(image, "bright", OPTIONS, progress=lambda fraction, message: seen.append(fraction))
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] <= 1
    calls = SimpleNamespace(n=0)

    def cancelled() -> bool:
        calls.n += 1
        return calls.n > 5

    with pytest.raises(CancelledError):
        pipeline.segment(image, "bright", OPTIONS, cancelled=cancelled)


def test_the_result_says_what_made_it_and_is_json(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = picture(tmp_path, disc((60, 60), 30, 30) * 255)
    read = json.loads(
        json.dumps(pipeline.segment(image, "bright", ZeroShotOptions(saliency="patch_text", seed=5)).to_dict())
    )
    assert read["seed"] == 5
    assert read["weights"]["clip"]["sha256"] == "0" * 64
    assert read["options"]["saliency"] == "patch_text"
    assert read["version"]
    assert read["label_names"] == {"bright": 201}
    (target,) = read["targets"]
    assert {"presence", "saliency", "sam_decode"} <= set(target["seconds"])
    assert target["settings"]["source"] == "published"


def test_printed_settings_follow_the_depth_of_the_tower(pipeline: ZeroShot, tmp_path: Path) -> None:
    """Brain tumour: printed beta 2.0, variance 0.3, block 9 of 12: three quarters of this tower's four blocks."""
    image = picture(tmp_path, disc((60, 60), 30, 30) * 255)
    for preset, variance in (("paper", 0.3), ("published", 1.0)):
        options = ZeroShotOptions(saliency="patch_text", preset=preset, presence=False)
        settings = pipeline.segment(image, "brain tumour", options).targets[0].settings
        assert (settings["beta"], settings["variance"], settings["layer"]) == (2.0, variance, 3)
        assert settings["source"] == preset
    mine = ZeroShotOptions(saliency="patch_text", preset="paper", presence=False, variance=0.7, beta=0.4, layer=1)
    settings = pipeline.segment(image, "brain tumour", mine).targets[0].settings
    assert (settings["beta"], settings["variance"], settings["layer"]) == (0.4, 0.7, 1)


def test_maps_are_handed_on_as_they_are_made(pipeline: ZeroShot, tmp_path: Path) -> None:
    planes = np.stack([disc((60, 80), 30, 40) * 255 if n != 2 else np.zeros((60, 80)) for n in range(5)])
    maps: dict[tuple[str, int], np.ndarray] = {}
    result = pipeline.segment(
        volume(tmp_path, planes.astype(np.uint8)),
        "something bright; a bright thing",
        OPTIONS.replace(volume="planes"),
        keep_map=lambda name, plane, saliency: maps.update({(name, plane): saliency.copy()}),
    )
    assert {name for name, _ in maps} == set(result.label_names)
    assert {plane for _, plane in maps} >= {0, 1, 3, 4}
    for saliency in maps.values():
        assert saliency.shape == (60, 80)
        assert saliency.dtype == np.float32
        assert saliency.min() >= 0
        assert saliency.max() <= 1
    assert maps["something bright", 1][30, 40] > 0.9 > 0.1 > maps["something bright", 1][3, 3]


def test_masks_are_handed_on_plane_by_plane_and_again_where_they_are_corrected(
    pipeline: ZeroShot, tmp_path: Path
) -> None:
    planes = np.stack([disc((60, 80), 30, 40) & (n not in (0, 3)) for n in range(6)])
    planes[4] |= disc((60, 80), 8, 8, 5)  # smaller than the disc, and dropped
    image = volume(tmp_path, planes * np.uint8(255))
    calls: list[tuple[str, int]] = []
    latest: dict[tuple[str, int], np.ndarray] = {}

    def keep_partial(name: str, plane: int, mask: np.ndarray) -> None:
        assert mask.dtype == bool
        calls.append((name, plane))
        latest[name, plane] = mask.copy()

    result = pipeline.segment(image, "something bright; a heart", OPTIONS, keep_partial=keep_partial)
    assert {"something bright"} == {name for name, _ in calls}
    built = np.zeros(result.labels.shape, dtype=bool)
    for (_, plane), mask in latest.items():
        built[plane] = mask
    np.testing.assert_array_equal(built, result.labels > 0)
    assert built.any()

    done: list[int] = []
    with pytest.raises(CancelledError):
        pipeline.segment(
            image,
            "something bright",
            OPTIONS,
            keep_partial=lambda name, plane, mask: done.append(plane),
            cancelled=lambda: len(done) >= 2,
        )
    assert len(done) == 2  # no plane is begun once it has been asked to stop


def test_results_and_images_print_in_one_short_line_without_arrays_and_addresses(
    pipeline: ZeroShot, tmp_path: Path
) -> None:
    truth = disc((40, 40), 20, 20)
    flat = picture(tmp_path, truth * 255)
    deep = volume(tmp_path, np.stack([truth * np.uint8(255)] * 3))
    results = [
        pipeline.segment(flat, "something bright", OPTIONS),
        pipeline.segment(deep, "something bright; something else", OPTIONS),
        RefineResult(truth[None].astype(np.uint8), [], {}),
        NetworkResult(truth[None].astype(np.uint8), np.zeros((1, 40, 40), np.float32), scores={"image": 0.25}),
    ]
    for each in (flat, deep, *results):
        shown = repr(each)
        assert len(shown) < 300
        assert "\n" not in shown
        assert re.search(r"array|0x[0-9a-f]+|\[", shown) is None
        assert type(each).__name__ in shown
    # what tells one from another is there
    assert f"{np.count_nonzero(results[0].labels)} voxels" in repr(results[0])
    assert "1 x 40 x 40" in repr(results[0])
    assert "'something bright'" in repr(results[0])
    assert "3 x 40 x 40" in repr(deep)
    assert repr(flat.source.name) in repr(flat)
