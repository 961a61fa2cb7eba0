"""SAM 2 against the package's own predictors, with random weights in the published format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from medclipsam.base.errors import InputError, WeightsError
from medclipsam.sam import SamModel, load_sam
from medclipsam.sam.sam2_adapter import ARCHS, Memory, Sam2, build_base
from medclipsam.weights import resolve

SIZE, PLANES = 128, 20


def appearing(base: Any) -> Any:
    """Let random weights see a structure on every plane, without which all masks are the same."""
    with torch.no_grad():
        base.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(4.0)
    return base


@pytest.fixture(scope="module")
def small() -> Sam2:
    torch.manual_seed(0)
    return Sam2(appearing(build_base("medsam2", SIZE))).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def planes() -> list[np.ndarray]:
    """Return uint8 [H, W, 3]: a bright disc that moves and shrinks in noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    made = []
    for number in range(PLANES):
        disc = (y - 60) ** 2 + (x - 40 - 2 * number) ** 2 < (30 - number) ** 2
        made.append(np.clip(60 + 120 * disc + rng.normal(0, 15, disc.shape), 0, 255).astype(np.uint8))
    return [np.repeat(plane[..., None], 3, axis=2) for plane in made]


def video_predictor(base: Any) -> Any:
    """Return the package's video predictor with the same weights."""
    import sam2

    config = OmegaConf.load(Path(next(iter(sam2.__path__))) / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml").model
    config["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    config.image_size = SIZE
    for attention in (config.memory_attention.layer.self_attention, config.memory_attention.layer.cross_attention):
        attention.feat_sizes = [SIZE // 16, SIZE // 16]
    config.sam_mask_decoder_extra_args = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    # as the package's own function builds it; holes are filled on CUDA alone
    config.binarize_mask_from_pts_for_mem_enc = True
    predictor = instantiate(config, _recursive_=True).eval()
    predictor.load_state_dict(base.state_dict())
    return predictor


@pytest.mark.parametrize("direction", [1, -1])
def test_the_memory_gives_the_masks_of_the_package_s_video_predictor(
    small: Sam2, planes: list[np.ndarray], direction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SamModel(small, identity="random", preprocessing="sam2", engine="torch")
    inputs = torch.stack([model.prepare(plane)[0] for plane in planes])
    shape = (SIZE, SIZE)
    monkeypatch.setattr("sam2.sam2_video_predictor.load_video_frames", lambda **given: (inputs, *shape))
    predictor = video_predictor(small.base)
    state = predictor.init_state("planes")
    start = 0 if direction > 0 else PLANES - 1
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[40:80, 30:70] = True
    predictor.add_new_mask(state, start, 1, mask)
    expected = {frame: logits[0, 0] for frame, _, logits in predictor.propagate_in_video(state, reverse=direction < 0)}

    memory = Memory(small, PLANES, direction)
    memory.begin(start, model.embed(planes[start]).features, mask)
    varied = []
    for plane in range(start + direction, PLANES if direction > 0 else -1, direction):
        logits, there = memory.step(plane, model.embed(planes[plane]).features, shape)
        torch.testing.assert_close(logits, expected[plane], rtol=1e-3, atol=1e-3)
        assert 0.5 < there <= 1
        varied.append(float(logits.std()))
        # what is looked back on, and the plane that it began with
        assert memory.remembered <= 17
    assert min(varied) > 1e-3, "masks without any contrast would prove nothing"


def test_masks_of_boxes_and_points_are_those_of_the_package_s_image_predictor(
    small: Sam2, planes: list[np.ndarray]
) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    plane = planes[3][:96]  # not square
    theirs = SAM2ImagePredictor(small.base)
    theirs._bb_feat_sizes = [(SIZE // stride, SIZE // stride) for stride in (4, 8, 16)]
    theirs.set_image(plane)
    ours = SamModel(small, identity="random", preprocessing="sam2", engine="torch")
    embedding = ours.embed(plane)
    torch.testing.assert_close(ours.prepare(plane)[0], theirs._transforms(plane), rtol=0, atol=2e-3)

    box, point = np.array([20.0, 30.0, 70.0, 80.0]), np.array([[40.0, 50.0]])
    for points in (None, point):
        labels = None if points is None else np.ones(1, dtype=int)
        logits, scores, _ = theirs.predict(points, labels, box, multimask_output=False, return_logits=True)
        made = ours.decode(embedding, box[None], points, labels)
        # boxes go to the outer edges of their pixels, and the input of the two is stretched by the same factors
        assert (made.mask != (logits[0] > 0)).mean() < 0.01
        assert made.score == pytest.approx(float(scores[0]), abs=0.01)


@pytest.mark.parametrize("name", ["MedSAM2_latest.pt", "sam2.1_hiera_tiny.pt"])
def test_a_checkpoint_is_recognised_and_loaded_with_its_own_preprocessing(name: str, tmp_path: Path) -> None:
    arch = "medsam2" if name.startswith("Med") else "sam2.1_hiera_tiny"
    torch.manual_seed(1)
    base = build_base(arch)
    torch.save({"model": base.state_dict()}, tmp_path / name)
    found = resolve(str(tmp_path / name))
    assert (found.kind, found.arch) == ("sam", arch)
    model = load_sam(found.path, found.arch, identity=found.sha256, engine="torch")
    assert model.image_size == (512 if arch == "medsam2" else 1024)
    assert (model.preprocessing, model.point_prompts, model.mask_prompts) == (
        "sam2",
        arch != "medsam2",
        arch != "medsam2",
    )
    for key, value in model.network.base.state_dict().items():
        assert torch.equal(value, base.state_dict()[key]), key


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "sam2.1_hiera_tiny.pt")
    with pytest.raises(WeightsError):
        load_sam(tmp_path / "sam2.1_hiera_tiny.pt", "sam2.1_hiera_tiny", identity="x")


def test_only_negative_points_are_refused_by_weights_for_boxes(small: Sam2, planes: list[np.ndarray]) -> None:
    model = SamModel(small, identity="random", preprocessing="sam2", point_prompts=False, engine="torch")
    with pytest.raises(InputError):
        model.decode(model.embed(planes[0]), points=np.array([[5.0, 5.0]]), point_labels=np.array([0]))


def test_every_architecture_is_one_of_the_package() -> None:
    import sam2

    folder = Path(next(iter(sam2.__path__))) / "configs" / "sam2.1"
    assert all((folder / f"{name}.yaml").is_file() for name, _ in ARCHS.values())
