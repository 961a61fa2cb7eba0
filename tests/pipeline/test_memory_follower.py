"""A structure followed by SAM 2's memory, with random weights."""

import numpy as np
import pytest
import torch

from medclipsam import MedicalImage
from medclipsam.pipeline.memory_follower import MemoryFollower
from medclipsam.pipeline.volume import Seed
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.sam import SamModel
from medclipsam.sam.sam2_adapter import Memory, Sam2, build_base

SIZE, PLANES = 64, 8


def model(bias: float) -> SamModel:
    """Return SAM 2 that sees a structure on every plane, or on none."""
    torch.manual_seed(0)
    base = build_base("medsam2", 128)
    with torch.no_grad():
        base.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(bias)
    return SamModel(Sam2(base), identity=f"random {bias}", preprocessing="sam2", engine="torch")


@pytest.fixture(scope="module")
def volume() -> MedicalImage:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = (y - 32) ** 2 + (x - 30) ** 2 < 15**2
    voxels = np.clip(60 + 120 * disc + rng.normal(0, 10, (PLANES, SIZE, SIZE)), 0, 255)
    return MedicalImage.from_array(voxels.astype(np.uint8))


@pytest.fixture(scope="module")
def seed() -> Seed:
    y, x = np.mgrid[:SIZE, :SIZE]
    return Seed(3, (y - 32) ** 2 + (x - 30) ** 2 < 15**2)


@pytest.mark.parametrize("direction", [1, -1])
def test_its_masks_are_those_of_the_memory_until_the_volume_ends(
    volume: MedicalImage, seed: Seed, direction: int
) -> None:
    sam = model(4.0)
    follower = MemoryFollower(sam, volume, None, range(PLANES), None, step_mm=1.0, num_components=SIZE * SIZE)
    # random weights draw large masks: from a plane that is all structure none is too large
    seed = Seed(seed.plane, np.ones_like(seed.mask))
    answers = list(follower.follow(seed, direction))
    steps = [answer for answer in answers if not isinstance(answer, str)]
    assert isinstance(sam.network, Sam2)
    memory = Memory(sam.network, PLANES, direction)
    memory.begin(3, sam.embed(volume.model_plane(3, None)).features, torch.from_numpy(seed.mask))
    for plane, mask in steps:
        features = sam.embed(volume.model_plane(plane, None)).features
        logits, _ = memory.step(plane, features, (SIZE, SIZE))
        np.testing.assert_array_equal(mask, (logits > 0).numpy())
    # what comes last says why it ended
    assert [isinstance(answer, str) for answer in answers] == [False] * len(steps) + [True]
    assert len(steps) == (3 if direction < 0 else PLANES - 4)


def test_it_ends_where_sam_2_sees_the_structure_no_more(volume: MedicalImage, seed: Seed) -> None:
    follower = MemoryFollower(model(-4.0), volume, None, range(PLANES), None, step_mm=1.0)
    (reason,) = follower.follow(seed, 1)
    assert isinstance(reason, str)
    assert "0.0" in reason


def test_it_stops_where_it_is_told_to_and_works_on_no_other_planes(volume: MedicalImage, seed: Seed) -> None:
    follower = MemoryFollower(model(4.0), volume, None, [3, 4], None, step_mm=1.0)
    assert list(follower.follow(seed, 1, stop=lambda plane, mask: "enough")) == ["enough"]
    assert len(list(follower.follow(seed, 1))) <= 2


def test_a_pipeline_with_sam_2_propagates_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from medclipsam.demo.phantoms import make_volume

    followed: list[int] = []
    follow = MemoryFollower.follow

    def noted(self: MemoryFollower, seed: Seed, *given: object, **named: object) -> object:
        followed.append(seed.plane)
        return follow(self, seed, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryFollower, "follow", noted)
    demo = ZeroShot.load("demo")
    pipeline = ZeroShot(demo.encoder, model(4.0), demo.targets)
    image = MedicalImage.from_array(make_volume("CT", 1, 8, size=128)[0], modality="CT")
    result = pipeline.segment(image, "both lungs")
    assert followed
    assert {track.plane for track in result.targets[0].key_planes} <= set(followed)
