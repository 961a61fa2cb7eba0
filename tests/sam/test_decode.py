"""Masks against `segment_anything`'s own predictor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

import medclipsam
from medclipsam.base.errors import InputError, OptionError
from medclipsam.sam import SamModel, build_sam, load_sam, vote

DEMO = Path(medclipsam.__file__).parent / "demo" / "weights"


def scaled_box(plane: np.ndarray, *fractions: float) -> np.ndarray:
    height, width, _ = plane.shape
    return np.floor(np.array(fractions) * [width - 1, height - 1, width - 1, height - 1])


def scaled_points(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width, _ = plane.shape
    return np.array([[0.4, 0.5], [0.6, 0.3], [0.9, 0.1]]) * [width - 1, height - 1], np.array([1, 1, 0])


def assert_same(ours: np.ndarray, reference: np.ndarray) -> None:
    """Equal but for pixels whose logit lies within rounding of 0."""
    assert ours.shape == reference.shape
    assert 0.005 < reference.mean() < 0.995, "an empty or full mask would prove nothing"
    assert (ours != reference).mean() < 1e-3


@pytest.mark.parametrize("prompt", ["box", "points", "both"])
def test_a_prompt_gives_the_mask_and_score_of_sam_predictor(
    model: SamModel, reference_sam: Sam, plane: np.ndarray, prompt: str
) -> None:
    box = scaled_box(plane, 0.2, 0.3, 0.7, 0.8) if prompt != "points" else None
    points, labels = scaled_points(plane) if prompt != "box" else (None, None)
    predictor = SamPredictor(reference_sam)
    predictor.set_image(plane)
    masks, scores, _ = predictor.predict(points, labels, box, multimask_output=False)

    result = model.decode(model.embed(plane), None if box is None else box[None], points, labels)

    assert_same(result.mask, masks[0])
    assert result.score == pytest.approx(float(scores[0]), abs=1e-5)
    assert result.probability.dtype == np.float32
    assert result.mask.dtype == np.bool_


def test_a_mask_prompt_gives_the_mask_of_sam_predictor(model: SamModel, reference_sam: Sam, plane: np.ndarray) -> None:
    model.mask_prompts = True
    height, width, _ = plane.shape
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 3 :] = True
    points, labels = scaled_points(plane)
    predictor = SamPredictor(reference_sam)
    predictor.set_image(plane)
    # the low-resolution logits by nearest neighbours: whole pixels of the padded input
    scale = 64 / max(height, width)
    rows, columns = ((np.arange(16) * 4 + 2) / scale).astype(int), ((np.arange(16) * 4 + 2) / scale).astype(int)
    inside = (rows < height)[:, None] & (columns < width)[None]
    low = np.where(inside, mask[np.ix_(rows.clip(max=height - 1), columns.clip(max=width - 1))], False)
    masks, _, _ = predictor.predict(points, labels, mask_input=low[None] * 20.0 - 10.0, multimask_output=False)

    result = model.decode(model.embed(plane), None, points, labels, mask=mask)
    without = model.decode(model.embed(plane), None, points, labels)

    assert (result.mask != masks[0]).mean() < 0.1
    assert (result.mask != masks[0]).mean() < (without.mask != masks[0]).mean()


def test_a_mask_prompt_is_refused_where_it_cannot_help(model: SamModel, plane: np.ndarray) -> None:
    embedding, points = model.embed(plane), np.array([[1.0, 1.0]])
    with pytest.raises(InputError, match="not trained with masks"):
        model.decode(embedding, None, points, mask=np.zeros(plane.shape[:2], bool))
    model.mask_prompts = True
    with pytest.raises(InputError, match="cannot use a mask"):
        model.decode(embedding, None, points, mask=np.zeros((3, 3), bool))


@pytest.mark.parametrize("voting", ["mrm", "average", "staple"])
def test_votes_are_taken_on_the_three_candidates_of_sam_predictor(
    model: SamModel, reference_sam: Sam, plane: np.ndarray, voting: str
) -> None:
    box = scaled_box(plane, 0.2, 0.3, 0.7, 0.8)
    predictor = SamPredictor(reference_sam)
    predictor.set_image(plane)
    logits, scores, _ = predictor.predict(box=box, multimask_output=True, return_logits=True)
    mask, probability, score = vote(torch.from_numpy(logits), torch.from_numpy(scores), voting)

    result = model.decode(model.embed(plane), box[None], voting=voting)

    assert (result.mask != mask.numpy()).mean() < 1e-3
    assert result.score == pytest.approx(score, abs=1e-5)
    assert np.abs(result.probability - probability.numpy()).mean() < 1e-3


def test_several_boxes_give_the_union_and_the_mean_score(model: SamModel, plane: np.ndarray) -> None:
    embedding = model.embed(plane)
    boxes = np.stack([scaled_box(plane, 0.05, 0.1, 0.4, 0.9), scaled_box(plane, 0.6, 0.1, 0.95, 0.9)])
    alone = [model.decode(embedding, box[None], voting="average") for box in boxes]

    together = model.decode(embedding, boxes, voting="average")

    assert_same(together.mask, alone[0].mask | alone[1].mask)
    assert together.score == pytest.approx((alone[0].score + alone[1].score) / 2, abs=1e-5)
    np.testing.assert_allclose(together.probability, np.maximum(alone[0].probability, alone[1].probability), atol=1e-4)


def test_with_several_boxes_positive_points_go_to_their_box_and_negative_ones_to_all(
    model: SamModel, plane: np.ndarray
) -> None:
    embedding = model.embed(plane)
    left, right = scaled_box(plane, 0.05, 0.1, 0.4, 0.9), scaled_box(plane, 0.6, 0.1, 0.95, 0.9)
    height, width, _ = plane.shape
    points = np.array([[0.2, 0.5], [0.8, 0.5], [0.5, 0.05]]) * [width - 1, height - 1]
    alone = [
        model.decode(embedding, left[None], points[[0, 2]], np.array([1, 0])),
        model.decode(embedding, right[None], points[[1, 2]], np.array([1, 0])),
    ]

    together = model.decode(embedding, np.stack([left, right]), points, np.array([1, 1, 0]))

    assert_same(together.mask, alone[0].mask | alone[1].mask)
    assert together.score == pytest.approx((alone[0].score + alone[1].score) / 2, abs=1e-5)


def test_points_without_labels_are_positive(model: SamModel, plane: np.ndarray) -> None:
    embedding = model.embed(plane)
    points, _ = scaled_points(plane)
    unlabelled = model.decode(embedding, points=points)
    np.testing.assert_array_equal(unlabelled.mask, model.decode(embedding, None, points, np.ones(3)).mask)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "neither boxes nor points"),
        ({"boxes": np.zeros((0, 4))}, "neither boxes nor points"),
        ({"boxes": [[5, 5, 3, 9]]}, "reversed or leaves"),
        ({"boxes": [[-1, 5, 3, 9]]}, "reversed or leaves"),
        ({"boxes": [[0, 0, 64, 10]]}, "reversed or leaves"),
        ({"boxes": [[0, 0, np.nan, 10]]}, "finite numbers"),
        ({"boxes": [[0, 0, 5]]}, r"shape \[K, 4\]"),
        ({"boxes": "left"}, r"shape \[K, 4\]"),
        ({"points": [[64, 1]]}, "leaves the plane of 64 x 64"),
        ({"points": [[1, 1]], "point_labels": [2]}, "Point labels"),
        ({"points": [[1, 1]], "point_labels": [1, 0]}, "Point labels"),
        ({"point_labels": [1]}, "no points"),
        ({"boxes": [[0, 0, 5, 5], [9, 9, 12, 12]], "points": [[30, 30]]}, "none of the 2 boxes"),
    ],
)
def test_unusable_prompts_are_refused_in_a_sentence(model: SamModel, arguments: dict, words: str) -> None:
    embedding = model.embed(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(InputError, match=words):
        model.decode(embedding, **arguments)


def test_a_box_of_one_pixel_is_allowed(model: SamModel) -> None:
    embedding = model.embed(np.zeros((64, 64, 3), np.uint8))
    assert model.decode(embedding, [[3, 4, 3, 4]]).mask.shape == (64, 64)


def test_an_unknown_vote_is_refused(model: SamModel) -> None:
    embedding = model.embed(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(OptionError, match="majority"):
        model.decode(embedding, [[3, 4, 8, 9]], voting="majority")


def test_medsam_sees_the_plane_stretched_and_scaled_to_the_unit_interval(reference_sam: Sam) -> None:
    medsam = SamModel(reference_sam, identity="weights-0", preprocessing="medsam")
    seen: list[torch.Tensor] = []
    reference_sam.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    plane = np.full((40, 80, 3), 50, np.uint8)
    plane[:, 40:] = 200

    embedding = medsam.embed(plane)

    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0].min() == 0
    assert seen[0].max() == 1
    assert (seen[0][..., :30] < 0.05).all()
    assert (seen[0][..., 34:] > 0.95).all()
    assert embedding.input_shape == (64, 64)
    assert medsam.decode(embedding, [[40, 0, 79, 39]]).mask.shape == (40, 80)


@pytest.mark.skipif(not (DEMO / "sam.safetensors").exists(), reason="the demo weights have not been trained here")
def test_the_demo_weights_give_the_masks_of_sam_predictor() -> None:
    arch = json.loads((DEMO / "sam.json").read_text())["arch"]
    model = load_sam(DEMO / "sam.safetensors", arch, identity="demo")
    reference = build_sam(arch)
    reference.load_state_dict(load_file(DEMO / "sam.safetensors"))
    rows, columns = np.mgrid[:200, :300]
    disc = (rows - 90) ** 2 + (columns - 140) ** 2 < 45**2
    plane = np.where(disc, 60, 170).astype(np.uint8)[..., None].repeat(3, axis=2)
    box = np.array([92, 42, 188, 138])
    predictor = SamPredictor(reference)
    predictor.set_image(plane)
    masks, scores, _ = predictor.predict(box=box, multimask_output=False)

    result = model.decode(model.embed(plane), box[None])

    assert_same(result.mask, masks[0])
    assert result.score == pytest.approx(float(scores[0]), abs=1e-4)
