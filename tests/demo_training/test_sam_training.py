"""The demo SAM's training: examples, prompts, loss, and a run of seconds from end to end."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medclipsam.demo.phantoms import make_phantom
from medclipsam.sam import build_sam, load_sam
from tools.demo_training.sam_examples import (
    SIZE,
    Example,
    coarse_mask,
    draw_box,
    draw_example,
    draw_shapes,
    jitter_box,
    true_box,
)
from tools.demo_training.train_sam import (
    ARCH,
    FIRST_SEED,
    MASK_LOGIT,
    SamRecipe,
    Stage,
    batch_loss,
    correction_clicks,
    mask_loss,
    train_sam,
)

WEIGHTS = Path(__file__).parents[2] / "lib" / "medclipsam" / "demo" / "weights"


def disc(row: int, column: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:200, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_examples_hold_prompts_that_fit_their_image() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for index in range(40):
        example = draw_example(rng, itertools.count(FIRST_SEED + index), prompts=3, shapes=0.3)
        height, width = example.image.shape
        kinds.add(tuple(part is not None for part in (example.boxes, example.points, example.coarse)))
        assert max(height, width) == SIZE
        assert example.image.dtype == np.uint8
        assert example.masks.shape == (3, height, width)
        assert (example.masks.sum(axis=(1, 2)) >= 20).all()
        if example.boxes is not None:
            x0, y0, x1, y1 = example.boxes.T
            assert ((x0 >= 0) & (x0 <= x1) & (x1 <= width - 1) & (y0 >= 0) & (y0 <= y1) & (y1 <= height - 1)).all()
        if example.points is not None and example.labels is not None:
            assert example.labels.shape == example.points.shape[:2]
            assert (example.points >= 0).all()
            assert (example.points <= (width - 1, height - 1)).all()
        if example.boxes is not None and example.coarse is not None:
            assert all((true_box(mask) == box).all() for mask, box in zip(example.coarse, example.boxes, strict=True))
    assert kinds == {(True, False, False), (False, True, False), (True, True, False), (True, False, True)}


def test_a_coarse_mask_is_a_blurred_structure_that_grows_when_it_is_small() -> None:
    rng = np.random.default_rng(0)
    large, small = disc(100, 120, 60), disc(100, 120, 4)
    for _ in range(10):
        coarse = coarse_mask(rng, large)
        assert 2 * (coarse & large).sum() / (coarse.sum() + large.sum()) > 0.7
        coarse = coarse_mask(rng, small)
        assert (coarse & small).any()
        assert coarse.sum() > 1.5 * small.sum()


def test_a_coarse_mask_is_given_as_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the prompt encoder is given has the coarse mask's place, on its own grid, in logits."""
    sam = build_sam(ARCH)
    mask = disc(100, 60, 40)
    box = true_box(mask)[None].astype(float)
    image = np.where(mask, 200, 50).astype(np.uint8)
    given = []
    encode = sam.prompt_encoder.forward

    def watched(points: object, boxes: object, masks: torch.Tensor) -> object:
        given.append(masks)
        return encode(points=points, boxes=boxes, masks=masks)

    monkeypatch.setattr(sam.prompt_encoder, "forward", watched)
    batch_loss(sam, [Example(image, mask[None], box, None, None, mask[None])])
    (logits,) = given
    side = sam.prompt_encoder.mask_input_size[0]
    rows, columns = np.mgrid[:side, :side] * (SIZE / side) + (SIZE / side - 1) / 2
    inside = (rows - 100) ** 2 + (columns - 60) ** 2
    assert logits.shape == (1, 1, side, side)
    assert (logits[0, 0].numpy()[inside < 36**2] == MASK_LOGIT).all()
    assert (logits[0, 0].numpy()[inside > 44**2] == -MASK_LOGIT).all()


def test_examples_follow_from_the_seed() -> None:
    first, again = (draw_example(np.random.default_rng(7), itertools.count(FIRST_SEED), 2, 0.0) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)


def test_the_visible_parts_of_random_shapes_do_not_overlap() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        image, masks = draw_shapes(rng)
        assert masks.shape[1:] == image.shape
        assert masks.sum(axis=0).max(initial=0) <= 1


def test_the_true_box_is_inclusive() -> None:
    np.testing.assert_array_equal(true_box(disc(50, 70, 20)), [50, 30, 90, 70])


def test_jittered_boxes_keep_to_their_limits() -> None:
    mask, rng = disc(100, 120, 20), np.random.default_rng(0)
    boxes = np.stack([jitter_box(rng, mask, 0.85, 1.4, 0.12) for _ in range(200)])
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    assert sides.min() >= 0.85 * 41
    assert sides.max() <= 1.4 * 41
    assert sides.max() - sides.min() > 15
    assert np.abs(centres - [120, 100]).max() <= 0.12 * 41


@pytest.mark.parametrize("mask", [disc(5, 5, 4), disc(199, 255, 6), disc(100, 128, 3), disc(100, 128, 250)])
def test_drawn_boxes_stay_in_the_plane(mask: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        x0, y0, x1, y1 = draw_box(rng, mask)
        assert 0 <= x0 <= x1 <= SIZE - 1
        assert 0 <= y0 <= y1 <= 199


def test_some_boxes_reach_too_far_on_one_side() -> None:
    mask, rng = disc(100, 120, 20), np.random.default_rng(0)
    boxes = np.stack([draw_box(rng, mask) for _ in range(300)])
    beyond = np.stack([80 - boxes[:, 1], boxes[:, 3] - 120, 100 - boxes[:, 0], boxes[:, 2] - 140], axis=1) / 41
    assert (beyond[:, 1] > 0.5).mean() > 0.03
    assert (beyond[:, 1] > 0.5).sum() > (beyond[:, 0] > 0.5).sum()
    assert beyond.max() < 1.2


def test_the_loss_is_that_of_the_single_mask_and_the_best_candidate() -> None:
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 1
    right = (truth * 2 - 1) * 30
    perfect, nothing = right[0, 0], torch.full((16, 16), -30.0)
    overlaps = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    logits = torch.stack([perfect, nothing, perfect, nothing])[None]

    # Two of three candidates miss every pixel: focal 0.25 * 30 on a quarter of the pixels, dice 1 - 1/65.
    wrong = 20 * 0.25 * 30 / 4 + 64 / 65
    assert mask_loss(logits, overlaps, truth).item() == pytest.approx(0.05 * 2 / 3 * wrong, rel=1e-4)
    # A wrong prediction of the overlaps costs its squared error, and a missed single mask the whole of its own.
    assert mask_loss(logits, 1 - overlaps, truth).item() == pytest.approx(0.05 * 2 / 3 * wrong + 1, rel=1e-4)
    missed = torch.stack([nothing, nothing, perfect, nothing])[None]
    overlaps[0, 0] = 0
    assert mask_loss(missed, overlaps, truth).item() == pytest.approx((1 + 0.05 * 2 / 3) * wrong, rel=1e-4)


def test_correction_clicks_lie_where_the_mask_is_wrong() -> None:
    truth = torch.zeros(3, 32, 32)
    truth[:, 8:16, 8:24] = 1
    found = torch.where(truth > 0, 5.0, -5.0)
    found[0, 8:16, 8:16] = -5.0  # the left half is missed
    found[1, 20:28, 4:12] = 5.0  # a piece too many
    (coordinates, labels) = correction_clicks(np.random.default_rng(0), None, found[:, None], truth)
    assert labels[:2, 0].tolist() == [1, 0]
    (x, y), (x_added, y_added) = coordinates[0, 0].tolist(), coordinates[1, 0].tolist()
    assert 8 <= x < 16
    assert 8 <= y < 16
    assert 4 <= x_added < 12
    assert 20 <= y_added < 28
    # Where nothing is wrong the click only says what is right already.
    x, y = map(int, coordinates[2, 0].tolist())
    assert labels[2, 0] == truth[2, y, x]
    earlier = torch.ones(3, 2, 2), torch.ones(3, 2, dtype=torch.int)
    (coordinates, labels) = correction_clicks(np.random.default_rng(0), earlier, found[:, None], truth)
    assert coordinates.shape == (3, 3, 2)
    assert labels.shape == (3, 3)
    assert coordinates[:, :2].eq(1).all()


def test_corrections_train_the_mask_prompt() -> None:
    torch.manual_seed(0)
    sam = build_sam(ARCH).train()
    batch = [draw_example(np.random.default_rng(0), itertools.count(FIRST_SEED), 2, 0.0)]
    for corrected, learns in ((0.0, False), (1.0, True)):
        sam.zero_grad(set_to_none=True)
        batch_loss(sam, batch, np.random.default_rng(0), corrected).backward()
        gradients = [parameter.grad for parameter in sam.prompt_encoder.mask_downscaling.parameters()]
        assert all((gradient is not None and bool(gradient.any())) == learns for gradient in gradients)


def test_a_short_run_writes_weights_that_load_and_follow_from_the_seed(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SamRecipe.quick(), stages=(Stage(1, 8e-4), Stage(1, 8e-4, corrected=1.0)), images=1)
    config = train_sam(tmp_path / "first", recipe, progress=False)
    train_sam(tmp_path / "second", recipe, progress=False)

    assert {path.name for path in (tmp_path / "first").iterdir()} == {"sam.safetensors", "sam.json"}
    assert json.loads((tmp_path / "first" / "sam.json").read_text()) == json.loads(json.dumps(config))
    assert config["provenance"]["training_images"] == recipe.steps * recipe.images == 2
    first, second = (load_file(tmp_path / name / "sam.safetensors") for name in ("first", "second"))
    assert {value.dtype for value in first.values()} == {torch.float16}
    assert all(torch.equal(first[key], second[key]) for key in first)
    model = load_sam(tmp_path / "first" / "sam.safetensors", config["arch"], identity="abc")
    assert model.decode(model.embed(np.zeros((100, 80, 3), np.uint8)), [[5, 5, 60, 70]]).mask.shape == (100, 80)
    assert model.mask_prompts


@pytest.mark.skipif(not (WEIGHTS / "sam.safetensors").exists(), reason="the demo weights have not been trained here")
@pytest.mark.parametrize(
    ("modality", "name", "least"),
    [("US", "breast tumour", 0.75), ("MR", "brain", 0.85), ("XR", "lungs", 0.9), ("CT", "lungs", 0.7)],
)
def test_the_shipped_weights_outline_held_out_structures_from_their_box(modality: str, name: str, least: float) -> None:
    assert (WEIGHTS / "sam.safetensors").stat().st_size <= 8e6
    config = json.loads((WEIGHTS / "sam.json").read_text())
    model = load_sam(WEIGHTS / "sam.safetensors", config["arch"], identity="demo")
    dices = []
    for seed in range(700, 706):
        phantom = make_phantom(modality, seed, pathology=True)
        mask = phantom.masks[name]
        image = phantom.image if phantom.image.ndim == 3 else phantom.image[..., None].repeat(3, axis=2)
        found = model.decode(model.embed(image), true_box(mask)[None]).mask
        dices.append(2 * (found & mask).sum() / (found.sum() + mask.sum()))
    assert np.mean(dices) >= least


@pytest.mark.cuda
def test_a_gpu_trains_as_well(tmp_path: Path) -> None:
    train_sam(tmp_path, SamRecipe.quick(), device="cuda", progress=False)
    config = json.loads((tmp_path / "sam.json").read_text())
    assert load_sam(tmp_path / "sam.safetensors", config["arch"], identity="test").image_size == SIZE
