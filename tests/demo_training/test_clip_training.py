"""Training of the demo CLIP: what its parts compute, that the command makes weights, what the shipped ones know."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medclipsam
from medclipsam.demo import captions
from medclipsam.demo.phantoms import MODALITIES, make_phantom
from medclipsam.encoders import Encoder, load_demo
from medclipsam.encoders.small_clip import build_small_clip, collect_vocabulary
from medclipsam.presence import PresenceReference, presence_scores
from medclipsam.targets import TargetSet
from tools.demo_training.demo_pair import main
from tools.demo_training.scribbles import draw_nonsense
from tools.demo_training.train_clip import (
    FIRST_SEED,
    ClipRecipe,
    PhantomSet,
    _Answers,
    augment,
    image_states,
    target_captions,
    train_clip,
)

SHIPPED = Path(medclipsam.__file__).parent / "demo" / "weights"


@pytest.fixture(scope="module")
def shipped():
    return load_demo(SHIPPED / "clip.safetensors", SHIPPED / "clip.json")


def encode(encoder, images):
    planes = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    return encoder.encode_images(torch.stack([encoder.preprocess(plane)[0] for plane in planes]))


def test_prototypes_are_unit_and_lungs_are_both_lungs():
    vectors = captions.basis(64)
    lungs, left, heart = (
        captions.prototype(captions.mixture(name), vectors) for name in ("lungs", "left lung", "heart")
    )
    assert np.linalg.norm(lungs) == pytest.approx(1, abs=1e-6)
    assert lungs @ left == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert lungs @ heart == pytest.approx(0, abs=1e-6)


def test_held_out_phrases_are_no_training_texts():
    taught = {text.lower() for text, _, _ in captions.training_texts(target_captions())}
    held_out = [phrase for phrases in captions.HELD_OUT.values() for phrase in phrases]
    assert not taught & set(held_out)


def test_captions_of_the_targets_files_are_taught():
    taught = target_captions()
    assert "a breast tumor on ultrasound" in taught["breast tumour/US"]
    assert "both lungs" in taught["lungs"]
    assert taught["lungs/CT"] != taught["lungs/XR"]


def test_states_of_a_phantom_follow_its_masks_and_facts():
    for seed in range(20):
        phantom = make_phantom("CT", seed, size=96)
        states = image_states(phantom)
        if phantom.facts["region"] == "abdomen":
            assert states == ["abdomen"]
        elif phantom.facts["region"] == "chest":
            assert ("above heart" in states) == ("heart" not in phantom.masks)
            assert ("normal CT" in states) == (not phantom.facts["pathology"])
    assert image_states(make_phantom("US", 0, size=96, pathology=True)) == []
    assert image_states(make_phantom("US", 0, size=96, pathology=False)) == ["normal US"]


def test_packed_masks_lie_on_the_letterboxed_picture():
    data = PhantomSet(dataclasses.replace(ClipRecipe.quick(), images=8))
    phantom = make_phantom("XR", 4, size=192)
    pixels, packed = data.fit(phantom)
    assert pixels.shape == packed.shape == (96, 96)
    assert pixels.dtype == packed.dtype == torch.uint8
    assert (pixels[packed == 0] == 0).all()
    names = [name for name in captions.STRUCTURES if name != "lungs" and "XR" in captions.SEEN_IN[name]]
    share = ((packed >> names.index("heart")) & 1).float().mean() * 96 * 96 / (phantom.masks["heart"].sum() / 4)
    assert share == pytest.approx(1, abs=0.05)


def test_a_cycle_with_fresh_phantoms_sees_others():
    recipe = dataclasses.replace(ClipRecipe.quick(), images=4)
    first, fresh = PhantomSet(recipe), PhantomSet(recipe, first_seed=FIRST_SEED + 4)
    assert not any(torch.equal(first[index][0], fresh[index][0]) for index in range(4))


def test_augmentation_moves_masks_with_the_picture():
    masks = torch.zeros(16, 96, 96, dtype=torch.uint8) + 128
    masks[:, 30:60, 30:60] |= 1
    images = (masks == 129).to(torch.uint8) * 255
    pixels, bits = augment(images, masks, torch.Generator().manual_seed(0))
    inside = (bits & 1).bool()
    assert all(
        p[i].mean() > p[(b & 128).bool() & ~i].mean() + 0.4 for p, i, b in zip(pixels, inside, bits, strict=True)
    )
    assert not torch.equal(bits, masks)
    assert (pixels[bits == 0] == 0).all()


def test_presence_loss_is_the_cross_entropy_of_the_presence_score():
    """Against the score that the pipeline asks with, on images that show a tumour, show none, or are of no concern."""
    recipe = ClipRecipe.quick()
    texts = captions.training_texts(target_captions())
    arch = dict(recipe.arch)
    config = {"arch": arch, "vocab": collect_vocabulary([text for text, _, _ in texts]), "image_size": 96}
    torch.manual_seed(0)
    model, tokenizer = build_small_clip(config)
    answers = _Answers(model, tokenizer, captions.basis(arch["embed_dim"]))
    pooled = torch.randn(4, arch["embed_dim"])
    coverage, holds = torch.zeros(4, 64, 8), torch.zeros(4, len(MODALITIES) + len(captions.STATES))
    tumour = [name for name in captions.STRUCTURES if "US" in captions.SEEN_IN[name]].index("breast tumour")
    coverage[0, 3:6, tumour] = 0.5  # shown
    coverage[2, 3, tumour] = 0.01  # all but cut off: not asked
    holds[:3, MODALITIES.index("US")] = 1  # the fourth is of no modality
    loss = answers.presence_loss(pooled, coverage, holds, 20.0)

    encoder = Encoder(model, tokenizer, image_size=96, mean=[0.35] * 3, std=[0.3] * 3, identity="test", name="test")
    target = next(target for target in TargetSet.load() if target.name == "breast tumour")
    positive, negative = (encoder.text_prototype(list(t)) for t in (target.captions, target.absence_captions))
    reference = PresenceReference(positive, negative[None])
    score = presence_scores(torch.nn.functional.normalize(pooled, dim=-1), reference, 20.0).score
    assert float(loss) == pytest.approx(-(math.log(score[0]) + math.log(1 - score[1])) / 4, rel=1e-4)


def test_quick_command_writes_weights_that_load_and_the_same_seed_the_same_weights(tmp_path):
    assert main(["clip", "--out", str(tmp_path / "first"), "--quick"]) == 0
    again = train_clip(tmp_path / "again", ClipRecipe.quick())
    first, second = (load_file(tmp_path / name / "clip.safetensors") for name in ("first", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(value.dtype in (torch.float16, torch.int64) for value in first.values())
    written = json.loads((tmp_path / "again" / "clip.json").read_text())
    assert written == json.loads(json.dumps(again))
    assert written["provenance"]["recipe"]["seed"] == 0
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["clip.json", "clip.safetensors"]
    encoder = load_demo(tmp_path / "again" / "clip.safetensors", tmp_path / "again" / "clip.json")
    assert encoder.encode_texts(["both lungs"]).shape == (1, ClipRecipe.quick().arch["embed_dim"])


def test_shipped_text_tower_understands_phrases_it_was_not_taught(shipped):
    names = list(captions.STRUCTURES)
    known = torch.stack([shipped.text_prototype(list(captions.STRUCTURES[name])) for name in names])
    wrong = []
    for name, phrases in captions.HELD_OUT.items():
        for phrase in phrases:
            nearest = names[int((known @ shipped.encode_texts([phrase])[0]).argmax())]
            if nearest != name:
                wrong.append((phrase, nearest))
    assert not wrong


def test_shipped_text_tower_keeps_strange_words_away_from_structures(shipped):
    known = torch.stack([shipped.text_prototype(list(phrases)) for phrases in captions.STRUCTURES.values()])
    for text in ("a giraffe in the zoo", "quarterly tax report", "zxqv wrrt"):
        assert float((known @ shipped.encode_texts([text])[0]).max()) < 0.5


def test_british_and_american_spelling_lie_together(shipped):
    british, american = shipped.encode_texts(["a brain tumour on MRI", "a brain tumor on MRI"])
    assert float(british @ american) > 0.95


def test_shipped_clip_tells_the_modalities_apart(shipped):
    texts = torch.stack([shipped.text_prototype(list(words)) for words in captions.MODALITY_WORDS.values()])
    images = [make_phantom(modality, seed).image for modality in MODALITIES for seed in range(900, 906)]
    told = (encode(shipped, images) @ texts.T).argmax(dim=1)
    assert torch.equal(told, torch.arange(4).repeat_interleave(6))


@pytest.mark.parametrize(("modality", "finding"), [("US", "breast tumour"), ("MR", "brain tumour")])
def test_shipped_clip_tells_present_from_absent_and_from_other_pictures(shipped, modality, finding):
    text = shipped.text_prototype(list(captions.STRUCTURES[finding]))
    with_it = [make_phantom(modality, seed, pathology=True).image for seed in range(900, 912)]
    without = [make_phantom(modality, seed, pathology=False).image for seed in range(900, 912)]
    others = [make_phantom(other, 900 + k).image for k in range(3) for other in MODALITIES if other != modality]
    nonsense = [draw_nonsense(seed, 192) for seed in range(4)]
    present = encode(shipped, with_it) @ text
    for absent in (without, others, nonsense):
        scores = encode(shipped, absent) @ text
        auc = (present[:, None] > scores[None]).float().mean()
        assert float(auc) > 0.93


@pytest.mark.cuda
def test_a_gpu_trains_as_well(tmp_path):
    train_clip(tmp_path, ClipRecipe.quick(), device="cuda")
    encoder = load_demo(tmp_path / "clip.safetensors", tmp_path / "clip.json")
    assert encoder.encode_texts(["both lungs"]).shape == (1, ClipRecipe.quick().arch["embed_dim"])
