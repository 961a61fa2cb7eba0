import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medclipsam.encoders import Encoder, load_demo
from medclipsam.presence import calibrate_threshold, presence_reference, presence_scores
from medclipsam.targets import TargetSet
from medclipsam.weights import resolve
from tools.demo_training.augment import augment
from tools.demo_training.calibrate_lite import calibrate
from tools.demo_training.embeddings import SIDE, Batch, Embedded, coverage, embed_queue
from tools.demo_training.lite_clip import Questions, Recipe, Trainer, dense_loss, random_bottleneck
from tools.demo_training.sources import (
    FINDING,
    FIRST_SEED,
    STATES,
    STRUCTURES,
    Job,
    draw,
    draw_volume_plane,
    lung_sides,
    queue,
    training_images,
    validation_groups,
)

LUNGS = [STRUCTURES.index("left lung"), STRUCTURES.index("right lung")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty small images in the layout of the real ones, ten a task, one of each in the test part."""
    folder = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    rows = []
    for task in ("breast_tumors", "brain_tumors", "lung_xray"):
        for number in range(10):
            present = task != "breast_tumors" or number % 3 > 0
            split = "test" if number == 9 else "train"
            file = f"x_{number}_{number % 2}.png"
            mask = np.zeros((48, 64), np.uint8)
            if present:
                mask[10:30, 5:25] = mask[10:30, 40:60] = 255
            for kind, picture in (("images", rng.integers(0, 255, (48, 64), dtype=np.uint8)), ("masks", mask)):
                (folder / task / f"{split}_{kind}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / task / f"{split}_{kind}" / file)
            rows.append((task, split, file, "s", f"{task}-{number // 2}", "present" if present else "absent"))
    with (folder / "manifest.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("task", "split", "file", "source", "group", "target"), *rows])
    return folder


@pytest.fixture(scope="module")
def text() -> Encoder:
    clip = resolve("demo_clip")
    return load_demo(clip.path, clip.path.with_suffix(".json"))


def fake_embed(plane: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """Grey values on a grid, in 256 channels with random gains."""
    rows, columns = (round(side * 256 / max(plane.shape[:2])) for side in plane.shape[:2])
    grey = torch.from_numpy(plane[..., :1].copy()).permute(2, 0, 1)[None].float() / 255
    padded = F.pad(F.interpolate(grey, (rows, columns)), (0, 256 - columns, 0, 256 - rows))
    gains = torch.linspace(-1, 1, 256)[None, :, None, None]
    return F.avg_pool2d(padded, 4) * gains, (rows, columns)


def test_no_test_image_and_no_group_in_two_parts(data: Path) -> None:
    images = training_images(data)
    assert {image.file for image in images if image.file.startswith("x_9")} == set()
    held_out = validation_groups(images)
    jobs = [job for job in queue(data) if job.image is not None]
    for job in jobs:
        assert job.image is not None
        assert job.validation == (job.image.group in held_out)
    assert {job.modality for job in jobs if job.validation} == {"US", "MR", "XR"}


def test_only_what_the_source_says_is_known(data: Path) -> None:
    rng = np.random.default_rng(0)
    for image in training_images(data)[::4]:
        plane = draw(data, Job("real", image.modality, image, validation=True), rng)
        known = {name for name, sure in zip(STRUCTURES, plane.known, strict=True) if sure}
        shown = {name for name, mask in zip(STRUCTURES, plane.masks, strict=True) if mask.any()}
        own = {"US": {"breast tumour"}, "MR": {"brain tumour"}, "XR": {"left lung", "right lung"}}[image.modality]
        assert own <= known
        assert shown == (own if image.present else set())
        unknown = {"US": "breast gland", "MR": "brain", "XR": "heart"}[image.modality]
        assert unknown not in known


def test_a_healthy_brain_has_no_tumour_left(data: Path) -> None:
    image = next(image for image in training_images(data) if image.modality == "MR")
    healthy = draw(data, Job("real", "MR", image, healthy=True), np.random.default_rng(0))
    sick = draw(data, Job("real", "MR", image, validation=True), np.random.default_rng(0))
    assert not healthy.masks.any()
    tumour = sick.masks[STRUCTURES.index("brain tumour")]
    assert np.abs(healthy.image.astype(int) - sick.image.astype(int))[tumour].mean() > 5


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_planes_of_a_volume_are_whole_known_and_show_its_ends(modality: str) -> None:
    finding = STRUCTURES.index(FINDING[modality])
    planes = [draw_volume_plane(modality, FIRST_SEED + k, np.random.default_rng(k)) for k in range(30)]
    for plane in planes:
        assert plane.known.all()
        assert plane.image.dtype == np.uint8
        assert plane.masks.shape[1:] == plane.image.shape
        # a plane with its finding is not normal
        assert not plane.masks[finding].any() or plane.states[STATES.index(f"normal {modality}")] == 0
    shown = [plane.masks[finding].any() for plane in planes]
    assert 3 < sum(shown) < 27
    body = STRUCTURES.index("ventricles" if modality == "MR" else "left lung")
    assert any(not plane.masks[body].any() for plane in planes)


def test_the_lung_at_the_left_of_the_image_is_the_right_one() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:30, 5:20], mask[8:25, 38:55] = True, True
    left, right = lung_sides(mask)
    assert np.array_equal(right, mask & (np.arange(60) < 30))
    assert np.array_equal(left, mask & (np.arange(60) >= 30))
    joined = mask.copy()
    joined[15:18] |= (np.arange(60) > 5) & (np.arange(60) < 55)
    left, right = lung_sides(joined)
    assert np.array_equal(left | right, joined)
    assert not (left & right).any()


@pytest.mark.parametrize("modality", ["US", "MR", "XR", "CT"])
def test_masks_move_with_their_image(modality: str) -> None:
    """A mask that marks what is bright still does so, whatever was done to the geometry."""
    image = np.full((96, 128), 20, np.uint8)
    image[30:60, 40:90] = 230
    mask = image[None] > 100
    agreed = []
    for seed in range(12):
        changed, masks = augment(image, mask, modality, np.random.default_rng(seed), untouched=0.0)
        assert masks.shape[1:] == changed.shape
        if masks.any() and not masks.all():
            inside, outside = changed[masks[0]].mean(), changed[~masks[0]].mean()
            agreed.append(abs(inside - outside) > 25)
    assert np.mean(agreed) > 0.8


def test_coverage_is_the_share_of_each_token() -> None:
    mask = np.zeros((1, 256, 128), bool)
    mask[0, 0:4, 8:16] = True
    shares = coverage(mask, (256, 128), 256)
    expected = np.zeros((SIDE, SIDE), int)
    expected[0, 1] = 128
    assert np.abs(shares[0].astype(int) - expected).max() <= 1


def test_embedding_goes_on_where_it_ended(data: Path, tmp_path: Path) -> None:
    jobs = [job for job in queue(data) if job.kind in ("real", "nonsense")][:6]
    runs = []

    def embed(plane: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        runs.append(plane.shape)
        return fake_embed(plane)

    assert embed_queue(tmp_path / "a", data, jobs, embed, 256, seconds=0) == 0
    for part in (0, 1):
        embed_queue(tmp_path / "a", data, jobs, embed, 256, part=part, parts=2)
    assert len(runs) == 6
    embed_queue(tmp_path / "a", data, jobs, embed, 256, part=0, parts=2)
    assert len(runs) == 6
    embed_queue(tmp_path / "b", data, jobs, embed, 256)
    one, two = Embedded(tmp_path / "b"), Embedded(tmp_path / "a")
    whole = one.take(sorted(one.training + one.validation, key=lambda row: row[1]))
    parts = {str(row.job): two.take([(p, k, row)]) for p, k, row in two.training + two.validation}
    for index, (_, _, row) in enumerate(sorted(one.training + one.validation, key=lambda row: row[1])):
        assert torch.equal(whole.embeddings[index], parts[str(row.job)].embeddings[0])
        assert torch.equal(whole.coverage[index], parts[str(row.job)].coverage[0])


def batch(text_seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(text_seed)
    shares = torch.zeros(2, len(STRUCTURES), SIDE, SIDE)
    shares[0, 0, 4:8, 4:8] = 1
    shares[1, LUNGS[0], 10:20, 20:28] = 1
    known = torch.ones(2, len(STRUCTURES), dtype=torch.bool)
    known[1, STRUCTURES.index("heart")] = False
    states = torch.full((2, 9), -1)
    return Batch(torch.randn(2, 256, SIDE, SIDE, generator=generator), shares, known, states, ["US", "XR"])


def test_dense_loss_is_that_of_a_double_loop() -> None:
    made = batch()
    logits = torch.randn(2, len(STRUCTURES), SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    total, counted = 0.0, 0
    for b in range(2):
        for k in range(len(STRUCTURES)):
            if not made.known[b, k]:
                continue
            p, t = torch.sigmoid(logits[b, k]).double(), made.coverage[b, k].double()
            entropy = -(t * p.log() + (1 - t) * (1 - p).log())
            n = float(t.sum())
            loss = float((entropy * (1 - t)).sum()) / max(float((1 - t).sum()), 1)
            loss += (0.2 if n > 0.3 else 1) * float((entropy * (1 - t) * (p > 0.2)).sum()) / (n + 8)
            if n > 0.3:
                dice = (2 * float((p * t).sum()) + 0.5) / (float((p * p).sum() + (t * t).sum()) + 0.5)
                loss += 1.5 * float((entropy * t).sum()) / max(n, 1) + 2 * (1 - dice)
            total += loss
            counted += 1
    assert float(dense_loss(logits, made.coverage, made.known)) == pytest.approx(total / counted, rel=1e-4)


def test_what_is_unknown_costs_nothing() -> None:
    made = batch()
    logits = torch.zeros(2, len(STRUCTURES), SIDE, SIDE, requires_grad=True)
    dense_loss(logits, made.coverage, made.known).backward()
    assert logits.grad is not None
    heart = STRUCTURES.index("heart")
    assert float(logits.grad[1, heart].abs().max()) == 0
    assert float(logits.grad[0, heart].abs().max()) > 0


def test_a_bottleneck_lies_between_nothing_and_everything() -> None:
    made = batch()
    tokens = made.embeddings.flatten(2).transpose(1, 2)
    kept = random_bottleneck(made.coverage, tokens, torch.Generator().manual_seed(0))
    assert kept.shape == tokens.shape
    assert 0 < float(kept.min()) < float(kept.max()) < 1


def test_answers_of_targets(text: Encoder) -> None:
    questions = Questions(text)
    by_name = {target.name: row for row, target in enumerate(questions.targets)}
    made = batch()
    there, weight = questions.answers(made.coverage[0].sum(dim=(1, 2)), made.known[0], "US")
    assert there[by_name["breast tumour"]] == 1
    assert weight[by_name["breast tumour"]] > weight[by_name["skin"]] > 0
    assert there[by_name["brain tumour"]] == 0
    there, weight = questions.answers(made.coverage[1].sum(dim=(1, 2)), made.known[1], "XR")
    assert there[by_name["lungs x-ray"]] == 1
    # lungs by CT's name on an X-ray are neither there nor not, and so is a heart that nobody has outlined
    assert weight[by_name["lungs CT"]] == 0
    assert weight[by_name["breast tumour"]] > 0


def test_a_resumed_training_is_the_uninterrupted_one(data: Path, text: Encoder, tmp_path: Path) -> None:
    jobs = [job for job in queue(data) if job.kind == "real"][:14]
    embed_queue(tmp_path, data, jobs, fake_embed, 256)
    recipe = Recipe(steps=4, batch=2, sharpen_from=0.5, widths=(8, 8, 8))

    whole = Trainer(Embedded(tmp_path), text, recipe)
    whole.run(tmp_path / "whole.pt")
    first = Trainer(Embedded(tmp_path), text, recipe)
    first.recipe = replace(recipe, steps=2, sharpen_from=1.0)
    first.run(tmp_path / "cut.pt")
    second = Trainer(Embedded(tmp_path), text, recipe)
    second.run(tmp_path / "cut.pt")
    assert second.step == whole.step == 4
    for name, value in whole.vision.state_dict().items():
        assert torch.equal(value, second.vision.state_dict()[name]), name


def test_thresholds_are_those_of_the_presence_scores(data: Path, text: Encoder, tmp_path: Path) -> None:
    jobs = [job for job in queue(data) if job.validation and job.kind == "volume" and job.modality == "MR"][:16]
    embed_queue(tmp_path, data, jobs, fake_embed, 256)
    embedded, targets = Embedded(tmp_path), TargetSet.load()
    torch.manual_seed(0)
    recipe = Recipe(widths=(8, 8, 8))
    vision = Trainer(embedded_for_training(data, tmp_path / "training"), text, recipe).vision.eval()
    found = calibrate(vision, text, embedded, embedded.validation)
    tumour = targets.get("brain tumour")
    asked = presence_reference(text, tumour.captions, tumour, targets, "MR")
    present, absent = [], []
    for row in embedded.validation:
        plane = embedded.take([row])
        feature = F.normalize(vision.feature(*vision.logits(vision.tokens(plane.embeddings))), dim=-1)
        (score,) = presence_scores(feature.detach(), asked, 20.0).score.tolist()
        (present if plane.coverage[0, STRUCTURES.index("brain tumour")].sum() > 0.3 else absent).append(score)
    assert present
    assert absent
    scores = np.array(present), np.array(absent)
    expected = calibrate_threshold(*scores, sensitivity=0.93)
    assert found["presence_thresholds"]["brain tumour"] == pytest.approx(expected, abs=2e-4)


def embedded_for_training(data: Path, folder: Path) -> Embedded:
    """A few real planes, from which the scales are taken that a training begins with."""
    jobs = [job for job in queue(data) if job.kind == "real" and not job.validation][:6]
    embed_queue(folder, data, jobs, fake_embed, 256)
    return Embedded(folder)
