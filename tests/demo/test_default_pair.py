"""The default pair: a CLIP on LiteMedSAM's image embedding.

The bounds lie below what was measured (docs/model-card.md); they guard against broken weights or a broken pipeline.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medclipsam.demo.phantoms import make_phantom
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.weights import REGISTRY, default_pair, resolve_pair
from tools.demo_training.calibrate import DICOM_MODALITY

# Far from the seeds that training and the choice of settings look at.
HELD_OUT = 700_000
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def pair() -> ZeroShot:
    return ZeroShot.load("default")


def held_out(
    modality: str, folder: Path, count: int, first: int = HELD_OUT
) -> list[tuple[dict[str, np.ndarray], MedicalImage]]:
    """Return phantoms with a finding: the masks of their structures, and the images."""
    found = []
    for seed in range(first, first + count):
        phantom = make_phantom(modality, seed, pathology=True)
        path = folder / f"{modality}{seed}.png"
        Image.fromarray(phantom.image).save(path)
        found.append((phantom.masks, read_image(path, modality=DICOM_MODALITY[modality])))
    return found


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def test_it_is_used_where_no_pair_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDCLIPSAM_WEIGHTS_NAME")
    assert default_pair() == "default"
    clip, sam = resolve_pair(default_pair())
    assert (clip.name, sam.name) == ("lite_clip", "lite_medsam")
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS_NAME", "demo")
    assert default_pair() == "demo"


def test_its_file_is_small() -> None:
    assert REGISTRY["lite_clip"].own_path.stat().st_size <= 20 * MEGABYTE


@pytest.mark.parametrize(
    ("modality", "text", "structure", "bound"),
    [
        ("US", "a malignant breast tumour", "breast tumour", 0.6),
        ("MR", "brain tumour", "brain tumour", 0.6),
        ("XR", "both lungs", "lungs", 0.8),
        ("CT", "left lung", "left lung", 0.8),
    ],
)
def test_structures_of_phantoms_are_found(
    pair: ZeroShot, tmp_path: Path, modality: str, text: str, structure: str, bound: float
) -> None:
    scores = [
        dice(pair.segment(image, text).labels[0] > 0, masks[structure])
        for masks, image in held_out(modality, tmp_path, 2)
    ]
    assert np.mean(scores) >= bound


def test_one_embedding_of_a_plane_serves_every_text_and_the_mask(pair: ZeroShot, tmp_path: Path) -> None:
    # one that no other test has embedded
    ((_, image),) = held_out("XR", tmp_path, 1, HELD_OUT + 99)
    before = pair.sam.encoder_runs
    for text in ("both lungs", "heart", "left lung; right lung"):
        pair.segment(image, text)
    assert pair.sam.encoder_runs == before + 1


def test_the_text_of_another_modality_gets_no_mask(pair: ZeroShot, tmp_path: Path) -> None:
    ((_, image),) = held_out("XR", tmp_path, 1)
    assert not pair.segment(image, "brain tumour on MRI").labels.any()
