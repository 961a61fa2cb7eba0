"""Volumes: structures are followed from key planes to their ends, on models that can be reckoned by hand."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medclipsam.base.errors import CancelledError, OptionError
from medclipsam.base.metrics import dice
from medclipsam.base.options import ZeroShotOptions
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.pipeline.volume import Follower, Seed, _Appearance, coarse_to_fine, key_planes, step_in_planes
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.prompting import VisualPrompt
from medclipsam.sam import MaskResult
from medclipsam.targets import TargetSet
from tests.conftest import BoxSam, BrightEncoder

OPTIONS = ZeroShotOptions(saliency="patch_text")
BACKGROUND, INSIDE = 40, 220


Triple = tuple[float, float, float]


def ball(shape: tuple[int, int, int], centre: Triple, radii: Triple) -> np.ndarray:
    grids = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True)) <= 1


def stack(folder: Path, truth: np.ndarray, spacing: Triple = (3.0, 1.0, 1.0), axis: int = 2) -> MedicalImage:
    """Planes [N, H, W] with noise as a NIfTI volume; `axis` is the file's axis that the planes are stacked along."""
    noise = np.random.default_rng(0).normal(0, 4, truth.shape)
    values = np.clip(np.where(truth, INSIDE, BACKGROUND) + noise, 0, 255).astype(np.uint8)
    stored = np.moveaxis(values.transpose(0, 2, 1), 0, axis)
    steps = list(spacing[1:])
    steps.insert(axis, spacing[0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), np.diag([*steps, 1.0])), folder / f"volume{axis}.nii.gz")
    return read_image(folder / f"volume{axis}.nii.gz")


def truth_of(image: MedicalImage) -> np.ndarray:
    return np.stack([image.plane(k)[..., 0] for k in range(image.n_planes)]) > (BACKGROUND + INSIDE) / 2


SHAPE = (24, 64, 64)
BALL = ball(SHAPE, (11, 32, 30), (7, 16, 13))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_structure_is_followed_to_both_ends_in_every_orientation(
    pipeline: ZeroShot, tmp_path: Path, axis: int
) -> None:
    image = stack(tmp_path, BALL, axis=axis)
    truth = truth_of(image)
    assert image.layout.axes[0] == 2 - axis
    result = pipeline.segment(image, "something bright", OPTIONS)
    mask = result.labels > 0
    assert dice(mask, truth) > 0.97
    held, true = (np.flatnonzero(each.any(axis=(1, 2))) for each in (mask, truth))
    assert abs(held[0] - true[0]) <= 1
    assert abs(held[-1] - true[-1]) <= 1
    (evidence,) = result.targets
    (track,) = [each for each in evidence.key_planes if each.kept]
    assert truth[track.plane].any()
    assert (track.first, track.last) == (held[0], held[-1])
    assert track.below
    assert track.above
    told = json.loads(json.dumps(result.to_dict()))["targets"][0]["key_planes"]
    assert [each["plane"] for each in told] == [each.plane for each in evidence.key_planes]


def test_saliency_is_asked_on_key_planes_alone_and_less_than_plane_by_plane(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = stack(tmp_path, BALL)
    maps: dict[str, set[int]] = {"propagate": set(), "planes": set()}
    masks = {}
    for mode, seen in maps.items():
        options = OPTIONS.replace(volume=mode)
        masks[mode] = pipeline.segment(
            image, "something bright", options, keep_map=lambda name, plane, _, seen=seen: seen.add(plane)
        ).labels
    assert 0 < len(maps["propagate"]) <= 5 < len(maps["planes"])
    assert dice(masks["propagate"] > 0, masks["planes"] > 0) > 0.9


def test_thin_planes_are_followed_with_fewer_questions_to_sam(pipeline: ZeroShot, tmp_path: Path) -> None:
    shape = (60, 64, 64)
    truth = ball(shape, (30, 32, 32), (22, 18, 14))
    image = stack(tmp_path, truth, (0.5, 0.5, 0.5))
    assert step_in_planes(image, 3.0) == 6
    result = pipeline.segment(image, "something bright", OPTIONS)
    assert dice(result.labels > 0, truth_of(image)) > 0.97
    assert len(pipeline.sam.boxes) < truth.any(axis=(1, 2)).sum() / 2
    asked = [seen for seen in result.targets[0].planes if seen.prompt]
    between = [seen for seen in result.targets[0].planes if not seen.prompt]
    assert len(asked) < len(between)
    assert all(seen.sam_score is None for seen in between)


def test_what_vanishes_and_returns_is_found_and_two_are_both_found(pipeline: ZeroShot, tmp_path: Path) -> None:
    first, again = ball(SHAPE, (5, 32, 20), (4, 12, 12)), ball(SHAPE, (17, 32, 20), (4, 12, 12))
    other = ball(SHAPE, (17, 30, 45), (4, 12, 12))
    for truth in (first | again, first | other):
        image = stack(tmp_path, truth)
        result = pipeline.segment(image, "something bright", OPTIONS)
        assert dice(result.labels > 0, truth_of(image)) > 0.95
        assert len([track for track in result.targets[0].key_planes if track.kept]) == 2
    # the number of components that was asked for is kept all the same
    alone = pipeline.segment(image, "something bright", OPTIONS.replace(num_components=1))
    assert ndimage.label(alone.labels > 0)[1] == 1


def test_an_absent_target_is_empty_and_costs_no_mask(pipeline: ZeroShot, tmp_path: Path) -> None:
    result = pipeline.segment(stack(tmp_path, np.zeros(SHAPE, bool)), "something bright", OPTIONS)
    assert not result.labels.any()
    assert result.targets[0].key_planes == []
    assert pipeline.sam.boxes == []


def test_two_objects_on_each_plane_are_followed_side_by_side(pipeline: ZeroShot, tmp_path: Path) -> None:
    truth = ball(SHAPE, (11, 32, 15), (8, 14, 8)) | ball(SHAPE, (12, 32, 48), (8, 14, 8))
    image = stack(tmp_path, truth)
    options = OPTIONS.replace(num_components=2, box_per_component=True)
    mask = pipeline.segment(image, "something bright", options).labels > 0
    assert dice(mask, truth_of(image)) > 0.97
    assert ndimage.label(mask)[1] == 2


def test_several_targets_and_a_range_of_planes(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = stack(tmp_path, BALL)
    result = pipeline.segment(image, "something bright; a bright thing", OPTIONS.replace(planes="8-13"))
    assert [target.found for target in result.targets] == [False, True] or result.targets[0].found
    held = np.flatnonzero(result.labels.any(axis=(1, 2)))
    assert held[0] == 8
    assert held[-1] == 13
    ends = {track.above for target in result.targets for track in target.key_planes}
    assert any("asked for" in end for end in ends)


def test_without_presence_the_middle_is_looked_at_first(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = stack(tmp_path, BALL)
    result = pipeline.segment(image, "something bright", OPTIONS.replace(presence=False))
    assert dice(result.labels > 0, truth_of(image)) > 0.95


def test_masks_come_while_the_work_goes_on_and_it_stops_at_any_plane(pipeline: ZeroShot, tmp_path: Path) -> None:
    image = stack(tmp_path, BALL)
    latest: dict[int, np.ndarray] = {}
    order: list[int] = []

    def keep_partial(name: str, plane: int, mask: np.ndarray) -> None:
        order.append(plane)
        latest[plane] = mask.copy()

    result = pipeline.segment(image, "something bright", OPTIONS, keep_partial=keep_partial)
    built = np.zeros(SHAPE, bool)
    for plane, mask in latest.items():
        built[plane] = mask
    np.testing.assert_array_equal(built, result.labels > 0)
    assert BALL[order[0]].any()
    for stop_after in (1, 4, len(order) - 1):
        done: list[int] = []
        with pytest.raises(CancelledError):
            pipeline.segment(
                image,
                "something bright",
                OPTIONS,
                keep_partial=lambda name, plane, mask, done=done: done.append(plane),
                cancelled=lambda done=done, most=stop_after: len(done) >= most,
            )
        assert len(done) == stop_after


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(OptionError, match="propagate, planes"):
        ZeroShotOptions.from_mapping({"volume": "sideways"})


def test_key_planes_are_the_middles_of_plateaus_and_apart() -> None:
    scores = np.array([0, 0.2, 1, 1, 1, 1, 1, 0.3, 0, 0, 0.8, 0.9, 0.8, 0])
    planes = list(range(100, 114))
    nothing = np.zeros(14, bool)
    assert key_planes(planes, scores, 0.5, taken=nothing, most=9)[:1] == [104]
    assert 111 in key_planes(planes, scores, 0.5, taken=nothing, most=9)
    assert key_planes(planes, scores, 0.5, taken=nothing, most=1) == [104]
    covered = nothing.copy()
    covered[2:7] = True
    assert key_planes(planes, scores, 0.5, taken=covered, most=1) == [111]
    assert key_planes(planes, scores, 1.1, taken=nothing, most=9) == []


def test_contrast_is_told_by_brightness_and_by_its_distribution() -> None:
    grey = np.full((40, 40), 90.0, np.float32)
    mask = ball((1, 40, 40), (0, 20, 20), (1, 8, 8))[0]
    grey[mask] = 200
    seed = Seed(0, mask)
    looks = _Appearance.of(seed.mask, grey, 3, 1.0)
    assert looks.contrasts[0] == pytest.approx(110)
    assert looks.contrast_left(mask, grey) == pytest.approx(1.0)
    assert looks.contrast_left(mask, np.full_like(grey, 90)) == pytest.approx(0.0)
    # a structure that is not told from its surroundings says nothing
    dull = _Appearance.of(mask, np.full_like(grey, 90), 3, 1.0)
    assert dull.contrast_left(mask, grey) is None


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_rim_counts_only_where_the_structure_goes_on(tmp_path: Path, goes_on: bool) -> None:
    truth = np.zeros((8, 64, 64), bool)
    truth[1:4, 16:48, 16:48] = True
    # the rim: a quarter of what was there, of which SAM says something else, without being sure
    truth[4, 16:48, 16:24] = True
    truth[5:7, 16:48, 16:24] = goes_on
    image = stack(tmp_path, truth)
    shown = truth_of(image)

    def ask(plane: int, prompt: VisualPrompt) -> MaskResult:
        mask = shown[plane].copy()
        if plane == 4:
            mask[16:48, 24:48] = True
        return MaskResult(mask, 0.75 if plane == 4 else 0.95, np.where(mask, 0.9, 0.1).astype(np.float32))

    follower = Follower(image, None, range(8), ask, step_mm=3.0)
    seed = Seed(2, shown[2], 0.95)
    *steps, reason = follower.follow(seed, 1)
    assert isinstance(reason, str)
    assert [plane for plane, _ in steps] == ([3, 4, 5, 6] if goes_on else [3])
    for plane, mask in steps:
        assert dice(mask, shown[plane]) > 0.9


def test_what_one_plane_alone_shows_counts_only_where_nothing_shows_on_more(pipeline: ZeroShot, tmp_path: Path) -> None:
    alone = np.zeros(SHAPE, bool)
    alone[20, 20:44, 20:44] = True
    both = alone | ball(SHAPE, (8, 32, 32), (4, 14, 14))
    for truth, planes in ((alone, {20}), (both, set(range(4, 13)))):
        held = np.flatnonzero(
            (pipeline.segment(stack(tmp_path, truth), "something bright", OPTIONS).labels > 0).any((1, 2))
        )
        assert set(held.tolist()) <= planes
        assert len(held) >= len(planes) - 2


TARGETS = """
targets:
  - name: bright mass
    label: 151
    meaning: bright-mass
    modality: [MR]
    captions: [a bright mass]
  - name: grey organ
    label: 152
    meaning: grey-organ
    modality: [MR]
    captions: [a grey organ]
"""


@pytest.fixture
def knowing(tmp_path: Path) -> ZeroShot:
    """A pipeline whose weights know a bright mass and a grey organ on MR."""
    (tmp_path / "targets.yaml").write_text(TARGETS)
    targets = TargetSet.load(tmp_path / "targets.yaml")
    made = ZeroShot(BrightEncoder(), BoxSam(), targets)  # type: ignore[arg-type]
    made.encoder.defaults = {"patch_rivals": ["bright mass"]}
    return made


@pytest.mark.parametrize(("brightness", "found"), [(250, True), (130, False)])
def test_a_mask_that_looks_like_another_structure_is_dropped(
    knowing: ZeroShot, tmp_path: Path, brightness: int, found: bool
) -> None:
    values = np.where(BALL, brightness, BACKGROUND).astype(np.uint8)
    image = MedicalImage.from_array(values, modality="MR")
    # every plane may be a key plane
    options = OPTIONS.replace(presence_threshold=0.0)
    assert knowing.segment(image, "bright mass", options).targets[0].found == found
    knowing.encoder.defaults = {}
    assert knowing.segment(image, "bright mass", options).targets[0].found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("{category: [49755003, Morphologically Abnormal Structure], type: [108369006, Neoplasm]}", False),
        ("{category: [91723000, Anatomical Structure], type: [59820001, Blood vessel]}", True),
    ],
)
def test_a_finding_that_is_far_longer_than_wide_is_dropped(tmp_path: Path, code: str, found: bool) -> None:
    """A column of 12 x 12 mm through 17 planes, 3 mm apart, is a vessel."""
    column = np.zeros(SHAPE, bool)
    column[4:21, 26:38, 24:36] = True
    entry = f"targets: [{{name: bright thing, label: 151, captions: [a bright thing], code: {code}}}]"
    (tmp_path / "targets.yaml").write_text(entry)
    targets = TargetSet.load(tmp_path / "targets.yaml")
    made = ZeroShot(BrightEncoder(), BoxSam(), targets)  # type: ignore[arg-type]
    options = OPTIONS.replace(presence_threshold=0.0)
    assert made.segment(stack(tmp_path, column), "bright thing", options).targets[0].found == found


def test_in_a_volume_the_best_plane_needs_what_the_weights_say(knowing: ZeroShot) -> None:
    values = np.where(BALL, INSIDE, BACKGROUND).astype(np.uint8)
    volume, plane = (MedicalImage.from_array(each, modality="MR") for each in (values, values[11]))
    knowing.encoder.defaults = {"presence_thresholds": {"bright mass": 0.1}, "volume_thresholds": {"bright mass": 0.3}}

    def threshold(image: MedicalImage, **options: Any) -> float | None:
        return knowing.segment(image, "bright mass", OPTIONS.replace(**options)).targets[0].presence_threshold

    assert threshold(volume) == 0.3
    assert threshold(volume, presence_threshold=0.2) == 0.2
    assert threshold(volume, volume="planes") == threshold(plane) == 0.1
    assert knowing.segment(volume, "bright mass", OPTIONS).targets[0].found
    knowing.encoder.defaults = {"volume_thresholds": {"bright mass": 1.0}}
    assert not knowing.segment(volume, "bright mass", OPTIONS).labels.any()


@pytest.mark.parametrize("n", [1, 2, 5, 9, 24, 50, 201])
def test_planes_are_looked_at_from_coarse_to_fine(n: int) -> None:
    planes = list(range(10, 10 + 3 * n, 3))
    order = coarse_to_fine(planes, 5)
    assert sorted(order) == planes
    # the first ones are spread: no gap is much larger than those of an even grid, the ends included
    looked = sorted(order[:5])
    gaps = np.diff([planes[0], *looked, planes[-1]])
    assert gaps.max() <= 3 * (2 * n / 5 + 1)
