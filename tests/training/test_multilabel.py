"""Networks whose targets overlap: a disc with a core in it, each a channel of its own."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from PIL import Image
from scipy import ndimage, stats

from medclipsam.base.errors import TrainingError
from medclipsam.base.metrics import dice
from medclipsam.demo.phantoms import make_phantom
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.label_map import LabelMap
from medclipsam.targets import TargetSet
from medclipsam.training.augment import cut, resample
from medclipsam.training.collect import read_studies
from medclipsam.training.compare import score
from medclipsam.training.ensemble import Ensemble
from medclipsam.training.examples import IGNORE, Example, PreparedImage
from medclipsam.training.layers import class_mask, class_masks, close_up
from medclipsam.training.network import Network, SegmentationLoss
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import Plan, make_plan
from medclipsam.training.planes import open_planes
from medclipsam.training.run import train_network
from medclipsam.training.selection import Criteria, select
from medclipsam.training.settings import Request
from medclipsam.training.split import Split
from medclipsam.training.store import Network as StoredNetwork
from medclipsam.training.store import NetworkStore
from medclipsam.training.trainer import Progress, Sampler, read_training, train
from medclipsam.training.uncertainty import image_score, multilabel_welch
from tests.training.untrained import logits_by_hand, untrained

CLASSES = {"disc": 1, "core": 2}


def write_segments(path: Path, segments: dict[str, tuple[int, int, np.ndarray]]) -> Path:
    """Write masks [H, W] as 3D Slicer does: by name the value, the layer and the mask."""
    depth = 1 + max(layer for _, layer, _ in segments.values())
    shape = next(iter(segments.values()))[2].shape
    voxels = np.zeros((depth, shape[1], shape[0], 1), np.uint8)
    header: dict[str, Any] = {"kinds": ["list"] + ["domain"] * 3}
    for number, (name, (value, layer, mask)) in enumerate(segments.items()):
        voxels[layer, mask.T, 0] = value
        header |= {
            f"Segment{number}_ID": f"Segment_{number}",
            f"Segment{number}_Name": name,
            f"Segment{number}_LabelValue": str(value),
            f"Segment{number}_Layer": str(layer),
        }
    if depth == 1:
        voxels, header["kinds"] = voxels[0], ["domain"] * 3
    nrrd.write(str(path), voxels, header)
    return path


def nested(rng: np.random.Generator, side: int = 48) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A disc with a brighter core on grain, uint8 [side, side], and the masks of both; the core is part of the disc."""
    y, x = np.mgrid[:side, :side]
    row, column = rng.uniform(side * 0.4, side * 0.6, 2)
    far = np.hypot(y - row, x - column)
    disc, core = far < side * 0.3, np.hypot(y - row - side * 0.08, x - column) < side * 0.12
    picture = 60 + 70 * disc + 80 * core + rng.normal(0, 8, disc.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), {"disc": disc, "core": core}


@pytest.fixture
def make_nested(tmp_path: Path) -> Callable[..., list[Example]]:
    """Return the function that writes pictures with labels in two layers, both of value 1 as Slicer may number them."""

    def make(count: int = 4, *, side: int = 48, flat: bool = False) -> list[Example]:
        rng = np.random.default_rng(0)
        made = []
        for index in range(count):
            picture, masks = nested(rng, side)
            image, mask = tmp_path / f"{index}.png", tmp_path / f"{index}-mask.seg.nrrd"
            Image.fromarray(picture).save(image)
            if flat:
                mask = tmp_path / f"{index}-mask.png"
                Image.fromarray(masks["disc"].astype(np.uint8) + masks["core"]).save(mask)
            else:
                write_segments(mask, {"disc": (1, 0, masks["disc"]), "core": (2, 1, masks["core"])})
            made.append(Example(str(index), image, mask, "final", modality="US"))
        return made

    return make


# --- labels ---


def test_a_label_in_layers_is_read_whole(make_nested):
    (example,) = make_nested(1)
    _, masks = nested(np.random.default_rng(0))
    image = example.read()
    layers = example.layers(image, 2)
    assert layers.shape == (2, 1, 48, 48)
    np.testing.assert_array_equal(class_masks(layers, 2)[:, 0], [masks["disc"], masks["core"]])
    # who knows one class a pixel gets the smaller one
    np.testing.assert_array_equal(example.labels(image, 2)[0], masks["disc"].astype(int) + masks["core"])
    # a class that is not trained leaves no hole in the one beneath, and nothing overlaps any more
    alone = replace(example, values={1: 1, 2: 0}).layers(image, 1)
    assert alone.shape == (1, 1, 48, 48)
    np.testing.assert_array_equal(alone[0, 0] == 1, masks["disc"])
    both_one = replace(example, values={1: 1, 2: 1}).layers(image, 1)
    np.testing.assert_array_equal(both_one[0, 0] == 1, masks["disc"])


def test_layers_are_closed_up_and_keep_every_class():
    layers = np.random.default_rng(0).integers(0, 4, (4, 500)).astype(np.uint8)
    closed = close_up(layers)
    for value in (1, 2, 3):
        np.testing.assert_array_equal(class_mask(closed, value), class_mask(layers, value))
    for before, after in zip(layers.T, closed.T, strict=True):
        # in their order, each once, without a gap
        assert list(after[after > 0]) == list(dict.fromkeys(before[before > 0]))
        assert not after[np.count_nonzero(after) :].any()
    assert close_up(np.zeros((3, 5), np.uint8)).shape == (1, 5)


# --- loss ---


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, 2, (2, 3, 6, 5), generator=torch.Generator().manual_seed(1))


def test_the_loss_is_monais_dice_and_torchs_binary_cross_entropy(logits, labels):
    expected = DiceLoss(sigmoid=True, batch=True)(logits, labels.float())
    # the cross-entropy of a pixel is the sum over its three classes
    expected = expected + 3 * F.binary_cross_entropy_with_logits(logits, labels.float())
    assert float(SegmentationLoss()([logits], labels)) == pytest.approx(float(expected), rel=1e-4)


def test_unknown_pixels_cost_nothing_and_weights_are_those_of_the_classes(logits, labels):
    labels[0, :, 0] = IGNORE
    y, p = labels.numpy(), 1 / (1 + np.exp(-logits.double().numpy()))
    known, weights = y != IGNORE, np.array([0.5, 1.0, 4.0])
    dices = [
        2 * p[:, c][known[:, c] & (y[:, c] == 1)].sum() / (p[:, c][known[:, c]].sum() + (y[:, c] == 1).sum())
        for c in range(3)
    ]
    share = known * weights[:, None, None]
    entropy = -np.where(y == 1, np.log(p), np.log(1 - p))
    expected = 1 - np.mean(dices) + 3 * (entropy * share).sum() / share.sum()
    assert float(SegmentationLoss(weights=list(weights))([logits], labels)) == pytest.approx(expected, rel=1e-4)
    right = np.where(y == 1, p, 1 - p)
    generalised = ((1 - right**0.3) / 0.3)[known].mean()
    made = SegmentationLoss("dice_gce", q=0.3)([logits], labels)
    assert float(made) == pytest.approx(1 - np.mean(dices) + 3 * generalised, rel=1e-4)


def test_levels_have_labels_of_their_own_resolution(logits, labels):
    loss = SegmentationLoss()
    fine = labels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    upper = F.interpolate(logits, (12, 10))
    expected = (loss([upper], fine) + 0.5 * loss([logits], labels)) / 1.5
    assert float(loss([upper, logits], fine)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["dice_ce", "dice_gce"])
def test_a_patch_wholly_outside_costs_nothing_and_breaks_nothing(kind):
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = SegmentationLoss(kind, weights=[1.0, 2.0])([logits], torch.full((1, 2, 4, 4), IGNORE))
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_outputs_begin_with_the_share_of_their_class(make_nested, small):
    plan = make_plan(make_nested(2), CLASSES, small.replace(deep_supervision=True))
    network = Network(plan).train()
    network.expect([0.25, 0.0])
    with torch.no_grad():
        for parameter in network.body.parameters():
            if parameter.ndim == 4:
                parameter.zero_()
        levels = network(torch.randn(1, 1, 32, 32))
    assert len(levels) > 1
    for logits in levels:
        expected = torch.tensor([0.25, 0.001])[:, None, None].expand(logits.shape[1:])
        torch.testing.assert_close(logits[0].sigmoid(), expected, rtol=1e-4, atol=0)


# --- patches ---


def test_every_channel_is_cut_and_turned_like_a_label_alone():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(1, 20, 30)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 2, (3, 20, 30)).astype(np.uint8))
    ways = (
        lambda given: cut(image, given, (3, 25), (12, 8)),
        lambda given: resample(image, given, (3, 25), (12, 8), 0.4, 1.2, (True, False)),
    )
    for way in ways:
        made, masks = way(label)
        for channel in range(3):
            alone, mask = way(label[channel])
            torch.testing.assert_close(made, alone)
            torch.testing.assert_close(masks[channel], mask)
        assert (masks == IGNORE).any()


def test_a_share_of_each_batch_holds_a_class_that_another_covers(make_nested, small, tmp_path):
    examples = make_nested(2)
    options = small.replace(foreground=1.0, max_side=48, max_patch=16, augment=False).resolved()
    plan = make_plan(examples, CLASSES, options)
    planes = open_planes(examples, plan, tmp_path / "planes.bin", "key")
    assert planes.classes.tolist() == [[True, True, True]] * 2
    _, label = planes[1]
    assert label.shape == (2, 48, 48)
    rng = np.random.default_rng(0)
    nested(rng)
    np.testing.assert_array_equal(label, np.stack(list(nested(rng)[1].values())))
    sampler, seen = Sampler(planes, plan, options, 4), []
    for seed in range(10):
        labels = sampler.batch(np.random.default_rng(seed))[1]
        assert labels.shape == (4, 2, 16, 16)
        assert ((labels == 1).flatten(1).any(dim=1)).all()
        seen.append((labels == 1).flatten(2).any(dim=2))
    # the disc is where the core is, and the core is seen as often as a class alone would be
    assert torch.cat(seen)[:, 1].float().mean() > 0.5


def test_masks_are_brought_to_the_networks_resolution_one_by_one(make_nested, small):
    examples = make_nested(1, side=96)
    plan = make_plan(examples, CLASSES, small)
    image = examples[0].read()
    prepared = PreparedImage(image, plan)
    masks = class_masks(examples[0].layers(image, 2)[:, 0], 2)
    made = prepared.masks(masks).numpy()
    assert made.shape == (2, *prepared.shape)
    for mask, small_mask in zip(masks, made, strict=True):
        shares = ndimage.zoom(mask.astype(float), 1 / 3, order=1, grid_mode=True, mode="grid-constant")
        sure = np.abs(ndimage.uniform_filter(mask.astype(float), 7)[1::3, 1::3] - 0.5) > 0.4
        np.testing.assert_array_equal(small_mask[sure], shares[sure] > 0.5)
    assert (made[0] >= made[1]).all()


# --- plan ---


def test_overlaps_in_a_label_make_a_channel_for_each_class(make_nested, small):
    examples = make_nested(3)
    flat = make_nested(3, flat=True)
    assert not make_plan(flat, CLASSES, small).multilabel
    assert make_plan(flat, CLASSES, small.replace(multilabel="always")).multilabel
    assert make_plan([*flat[:2], examples[2]], CLASSES, small).multilabel
    plan = make_plan(examples, CLASSES, small)
    assert (plan.multilabel, plan.n_outputs) == (True, 2)
    assert tuple(Network(plan).eval()(torch.zeros(1, 1, 32, 32))[0].shape) == (1, 2, 32, 32)
    # what covers a class takes nothing away from it
    rng, masks = np.random.default_rng(0), []
    for _ in examples:
        masks.append(np.stack(list(nested(rng)[1].values())))
    shares = np.mean(masks, axis=(0, 2, 3))
    for share, name in zip(shares, CLASSES, strict=True):
        for key in ("share_of_pixels", "share_of_image", "share_of_plane"):
            assert plan.fingerprint["classes"][name][key] == pytest.approx(share)
    empty = 1 - np.mean(np.any(masks, axis=1))
    assert plan.fingerprint["classes"]["background"]["share_of_pixels"] == pytest.approx(empty)
    # without it the network is the one of the flat labels
    refused = make_plan(examples, CLASSES, small.replace(multilabel="never"))
    assert refused == make_plan(flat, CLASSES, small)


def test_the_plan_carries_the_mode_and_older_plans_have_none(make_nested, small):
    plan = make_plan(make_nested(2), CLASSES, small)
    assert Plan.from_json(plan.to_json()).multilabel
    older = asdict(replace(plan, multilabel=False))
    del older["multilabel"]
    assert Plan.from_json(json.dumps(older)) == replace(plan, multilabel=False)


# --- prediction ---


@pytest.fixture
def plan(make_nested, small):
    return make_plan(make_nested(2), CLASSES, small)


@pytest.fixture
def folder(plan, tmp_path):
    return untrained(plan, tmp_path / "net")


@pytest.fixture
def image():
    return MedicalImage.from_array(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))


def by_hand(folder, plan, image):
    """Return each member's probabilities, float64 [members, planes, classes, h, w], by plain calls."""
    return 1 / (1 + np.exp(-logits_by_hand(folder, plan, image)))


def test_masks_are_where_the_mean_of_the_members_is_above_a_half(folder, plan, image):
    mean = by_hand(folder, plan, image).mean(axis=0)
    made = Ensemble.load(folder, device="cpu").predict(image, probabilities=True, small_parts=True)
    masks = np.stack([made.mask(1), made.mask(2)], axis=1)
    sure = np.abs(mean - 0.5) > 1e-3
    np.testing.assert_array_equal(masks[sure], mean[sure] > 0.5)
    assert (masks.all(axis=1)).any()
    assert len(made.beneath) == 1
    np.testing.assert_allclose(made.probabilities[:, 1:], mean, atol=2e-3)
    np.testing.assert_allclose(made.probabilities[:, 0], 1 - mean.max(axis=1), atol=2e-3)
    # who knows one class a pixel gets the smaller of the two
    smaller = 1 + int(masks[:, 1].sum() < masks[:, 0].sum())
    assert (made.labels[masks.all(axis=1)] == smaller).all()
    np.testing.assert_array_equal(made.labels > 0, masks.any(axis=1))


def test_uncertainty_maps_are_those_of_numpy_and_scipy(folder, plan, image):
    p = by_hand(folder, plan, image)
    mean = p.mean(axis=0)
    ensemble = Ensemble.load(folder, device="cpu")
    classes = np.stack([stats.entropy([mean[:, c], 1 - mean[:, c]]) for c in (0, 1)], axis=1)
    made = ensemble.predict(image)
    np.testing.assert_allclose(made.uncertainty, classes.max(axis=1), atol=1e-4)
    for index, name in enumerate(CLASSES):
        expected = image_score(classes[:, index], made.mask(index + 1))
        assert made.boundary_scores[name] == pytest.approx(expected, rel=1e-3)
    total = ensemble.predict(image, uncertainty="total_entropy").uncertainty
    np.testing.assert_allclose(total, classes.sum(axis=1), atol=1e-4)
    tests = [stats.ttest_ind(p[:, :, c], 1 - p[:, :, c], axis=0, equal_var=False).pvalue for c in (0, 1)]
    np.testing.assert_allclose(
        ensemble.predict(image, uncertainty="welch").uncertainty, np.max(tests, axis=0), atol=2e-3
    )
    alone = multilabel_welch(mean, p.var(axis=0, ddof=1), 3)
    np.testing.assert_allclose(alone, np.max(tests, axis=0), atol=1e-5)


def test_scores_are_the_expected_lack_of_dice_of_whole_masks(folder, plan, image):
    mean = by_hand(folder, plan, image).mean(axis=0)
    made = Ensemble.load(folder, device="cpu").predict(image, small_parts=True)
    scores = []
    for index, name in enumerate(CLASSES):
        probability, mask = mean[:, index], mean[:, index] > 0.5
        usual = plan.fingerprint["classes"][name]["share_of_image"] * mask.size
        scores.append(1 - (2 * (probability * mask).sum() + usual) / (probability.sum() + mask.sum() + usual))
        assert made.scores[name] == pytest.approx(scores[-1], rel=1e-2)
    assert made.scores["image"] == pytest.approx(np.mean(scores), rel=1e-2)


def test_what_lies_outside_the_region_is_in_no_class(folder):
    image = MedicalImage.from_array(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
    image._region = np.broadcast_to(np.arange(32)[None] < 20, (32, 32))
    made = Ensemble.load(folder, device="cpu").predict(image, mirror=True)
    assert not made.layers[..., 20:].any()
    assert not made.uncertainty[..., 20:].any()
    assert made.layers[..., :20].any()


def test_bounded_memory_changes_no_result(folder, image):
    one = Ensemble.load(folder, device="cpu").predict(image, uncertainty="welch")
    few = Ensemble.load(folder, device="cpu", memory=1).predict(image, uncertainty="welch")
    np.testing.assert_array_equal(one.layers, few.layers)
    np.testing.assert_allclose(one.uncertainty, few.uncertainty, atol=1e-3)


def test_small_parts_are_dropped_of_each_class_alone(folder, plan, image):
    from skimage.measure import label, regionprops

    ensemble = Ensemble.load(folder, device="cpu")
    whole, made = ensemble.predict(image, small_parts=True), ensemble.predict(image)
    dropped = 0
    for index, name in enumerate(CLASSES, start=1):
        least = plan.fingerprint["classes"][name]["small_part"] * 32 * 32
        for before, after in zip(whole.mask(index), made.mask(index), strict=True):
            for part in regionprops(label(before, connectivity=1)):
                kept = after[tuple(part.coords.T)]
                assert kept.all() == (part.area >= least)
                assert kept.all() or not kept.any()
                dropped += not kept.any()
    assert dropped


def test_a_network_of_the_other_mode_does_not_fit_the_plan(folder, plan, tmp_path):
    replace(plan, multilabel=False).write(folder)
    with pytest.raises((TrainingError, RuntimeError)):
        Ensemble.load(folder, device="cpu").predict(MedicalImage.from_array(np.zeros((32, 32), np.uint8)))


# --- training ---


@pytest.fixture
def nodules(tmp_path: Path) -> list[Example]:
    """Parts of CT phantoms round a nodule in a lung, with both as segments of 3D Slicer's."""
    made = []
    for seed in range(10):
        phantom = make_phantom("CT", seed, size=128, pathology=True)
        rows, columns = np.nonzero(phantom.masks["nodule"])
        top, left = (int(np.clip(np.mean(at) - 24, 0, 10_000)) for at in (rows, columns))
        part = (slice(top, top + 48), slice(left, left + 48))
        Image.fromarray(phantom.image[part]).save(tmp_path / f"{seed}.png")
        masks = {name: phantom.masks[name][part] for name in ("lungs", "nodule")}
        file = write_segments(
            tmp_path / f"{seed}.seg.nrrd", {"lungs": (1, 0, masks["lungs"]), "nodule": (2, 1, masks["nodule"])}
        )
        made.append(Example(str(seed), tmp_path / f"{seed}.png", file, "final", modality="CT"))
    return made


def test_a_network_learns_a_nodule_and_the_lungs_with_it(nodules, tmp_path):
    classes = {"lungs": 1, "nodule": 2}
    options = TrainingOptions(device="cpu", preset="small", epochs=7, iterations=20, cycles=1, keep=2)
    plan = make_plan(nodules, classes, options)
    assert plan.multilabel
    shown: list[Progress] = []
    made = train(nodules, plan, options, tmp_path / "net", validation=nodules, progress=shown.append)
    ensemble = Ensemble.load(made, device="cpu")
    results = {example.name: ensemble.predict(example.read()) for example in nodules}
    found, covered = (
        sum(int(np.count_nonzero(result.mask(2) & other)) for other, result in pairs)
        for pairs in ([(True, each) for each in results.values()], [(each.mask(1), each) for each in results.values()])
    )
    # the nodule is found, and the lungs go on beneath it
    assert found > 0
    assert covered > 0.5 * found
    scores = score(nodules, classes, lambda image: ensemble.predict(image, uncertainty="none").layers)
    for name in classes:
        assert np.mean([each[name] for each in scores.values()]) > 0.4
    assert shown[-1].dice == pytest.approx(read_training(made)["curve"][-1]["dice"])
    assert shown[-1].dice["lungs"] > 0.6


# --- from labels to a published network ---


def write_studies(folder: Path, count: int = 12, *, pseudo: int = 3) -> Path:
    """Write a studies folder of nested discs, as the server keeps it; the first labels are zero-shot masks."""
    rng = np.random.default_rng(0)
    objects: dict[str, Any] = {}
    for index in range(count):
        picture, masks = nested(rng)
        name, tag = f"im{index:02d}", "original" if index < pseudo else "final"
        (folder / "labels" / tag).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}.png")
        label = LabelMap.from_masks(
            {each: mask[None] for each, mask in masks.items()},
            read_image(folder / f"{name}.png"),
            {"disc": 7, "core": 3},
        )
        label.write(folder / "labels" / tag / f"{name}.seg.nrrd")
        if tag == "original":
            sure = {"found": True, "presence_score": 0.9, "presence_threshold": 0.5, "sam_score": 0.9}
            targets = [{"name": each, "label": value, **sure} for each, value in label.names.items()]
            info = {"model": "text_prompt", "params": {"label_names": dict(label.names), "targets": targets}}
            objects[name] = {"image": {"info": {}}, "labels": {tag: {"ext": ".seg.nrrd", "info": info}}}
    (folder / "datastore_v2.json").write_text(json.dumps({"name": "", "description": "", "objects": objects}))
    return folder


def fit(folder: Path, store: NetworkStore, options: dict[str, Any]) -> StoredNetwork:
    request = Request.from_mapping({**options, "modality": "US", "min_agreement": 0})
    return train_network(lambda: read_studies(folder), TargetSet.load(), store, request, split=Split(share=0.3, seed=1))


def test_a_network_of_a_studies_folder_keeps_final_and_zero_shot_overlaps(tmp_path, tiny):
    folder, store = write_studies(tmp_path / "studies"), NetworkStore(tmp_path / "networks")
    tiny = {**tiny, "max_side": 32, "targets": "disc, core"}
    # a parent by flat labels, in which the core has its voxels alone
    parent = fit(folder, store, {**tiny, "multilabel": "never"})
    assert not Ensemble.load(parent.folder, device="cpu").plan.multilabel
    network = fit(folder, store, tiny)
    assert (network.version, network.labels, network.classes) == (2, {"disc": 7, "core": 3}, {"disc": 1, "core": 2})
    assert network.data["training"]["original"] > 0
    ensemble = Ensemble.load(NetworkStore(tmp_path / "networks").get("network", 2).folder, device="cpu")
    assert ensemble.plan.multilabel
    assert ensemble.identity == network.identity
    report = json.loads((network.folder / "report.json").read_text())
    assert report["multilabel"]
    assert not json.loads((parent.folder / "report.json").read_text())["multilabel"]
    # both are held against whole labels: what the parent takes from the disc counts against it
    chosen = select(read_studies(folder), Criteria(("disc", "core"), "US"), TargetSet.load(), store.split())
    assert chosen.classes == network.classes
    example = chosen.validation[0]
    picture = example.read()
    layers = example.layers(picture, 2)
    assert (class_mask(layers, 1) & class_mask(layers, 2)).any()
    for each in (parent, network):
        made = Ensemble.load(each.folder, device="cpu").predict(picture, uncertainty="none")
        for name, index in each.classes.items():
            expected = dice(made.mask(index), class_mask(layers, index))
            assert each.metrics["images"]["child"][example.name][name] == pytest.approx(expected)
    assert network.metrics["images"]["child"].keys() == parent.metrics["images"]["child"].keys()


def test_networks_of_earlier_versions_are_read_as_before(make_nested, small, tmp_path):
    plan = make_plan(make_nested(2, flat=True), CLASSES, small)
    folder = untrained(plan, tmp_path / "net")
    image = MedicalImage.from_array(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
    before = Ensemble.load(folder, device="cpu").predict(image)
    older = json.loads((folder / "plan.json").read_text())
    del older["multilabel"]
    (folder / "plan.json").write_text(json.dumps(older))
    after = Ensemble.load(folder, device="cpu").predict(image)
    np.testing.assert_array_equal(before.labels, after.labels)
    np.testing.assert_array_equal(before.uncertainty, after.uncertainty)
    assert not len(after.beneath)


def test_labels_of_slicer_alone_name_what_is_trained(tmp_path):
    """Two segments of one value in two layers, which nothing beside the file names."""
    (tmp_path / "labels" / "final").mkdir(parents=True)
    picture, masks = nested(np.random.default_rng(0))
    Image.fromarray(picture).save(tmp_path / "one.png")
    write_segments(
        tmp_path / "labels" / "final" / "one.seg.nrrd", {"disc": (1, 0, masks["disc"]), "core": (1, 1, masks["core"])}
    )
    never = Split(share=0.0)
    chosen = select(read_studies(tmp_path, {1: "heart"}), Criteria((), "US"), TargetSet.load(), never)
    (example,) = chosen.training
    layers = example.layers(example.read(), 2)
    for name, index in chosen.classes.items():
        np.testing.assert_array_equal(class_mask(layers, index)[0], masks[name])
    # one of them alone is whole too
    alone = select(read_studies(tmp_path), Criteria(("disc",), "US"), TargetSet.load(), never)
    (example,) = alone.training
    np.testing.assert_array_equal(example.labels(example.read(), 1)[0] == 1, masks["disc"])
