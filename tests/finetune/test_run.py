"""Whole fine-tunings: the folder that comes out, its thresholds, its card, and the command line."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.cli import main as cli
from medclipsam.finetune.calibrate import calibrate
from medclipsam.finetune.data import Listing, Pair, prepare
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.finetune.run import finetune, measure
from medclipsam.pipeline.zero_shot import load_encoder
from medclipsam.targets import TargetSet
from medclipsam.weights import resolve

FAST = FinetuneOptions(epochs=3, batch_size=12, learning_rate=3e-3, gallery=12, validation=0.3)


@pytest.fixture(scope="module")
def done(clip_folder, listing, tmp_path_factory):
    return finetune(str(clip_folder), listing, tmp_path_factory.mktemp("run"), FAST)


def test_the_result_loads_with_open_clip_and_as_weights(done, listing):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{done.folder}")
    weights = resolve(str(done.folder))
    assert (weights.kind, weights.arch) == ("clip", "open_clip")
    encoder = load_encoder(weights)
    image = encoder.preprocess(listing.pairs[0].load()[0])[0][None]
    with torch.no_grad():
        theirs = model.eval().encode_image(image, normalize=True)
    torch.testing.assert_close(encoder.encode_images(image), theirs, atol=1e-6, rtol=0)
    assert encoder.defaults["presence_threshold"] == done.card["presence_threshold"]
    assert 0 <= encoder.defaults["free_text_threshold"] <= 1


def test_the_card_says_what_made_it(done, clip_folder):
    card = json.loads((done.folder / "finetuned.json").read_text())
    assert card == json.loads(json.dumps(done.card))
    assert card["base"]["sha256"] == resolve(str(clip_folder)).sha256
    assert card["options"] | {"loss": "dhn-nce", "temperature": 0.6, "beta1": 0.15} == card["options"]
    assert card["pairs"]["training"] + card["pairs"]["validation"] == 48
    after = card["retrieval"]["after"]
    text = (done.folder / "README.md").read_text()
    for part in (card["pairs"]["digest"], f"{100 * after['rates']['image to text top-1']:.1f}", "dhn-nce", "Research"):
        assert part.lower() in text.lower()
    assert after["score"] > card["retrieval"]["before"]["score"]


def test_the_figures_of_the_card_are_those_that_the_weights_reach(done, clip_folder, listing):
    found, pairs = measure(str(done.folder), listing, gallery=None, runs=1)
    before, _ = measure(str(clip_folder), listing, gallery=None, runs=1)
    assert len(pairs) == 48
    assert found.score > before.score


def test_a_folder_that_holds_something_else_is_not_replaced(clip_folder, listing, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="holds no fine-tuned weights"):
        finetune(str(clip_folder), listing, tmp_path, FinetuneOptions(epochs=1, batch_size=12, gallery=12))
    assert (tmp_path / "model" / "mine.txt").read_text() == "keep"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Listing:
    from medclipsam.demo.phantoms import make_phantom

    folder = tmp_path_factory.mktemp("phantoms")
    says = {
        "US": ("breast tumour on a breast ultrasound", "US"),
        "XR": ("the lungs on a chest x-ray", "DX"),
    }
    pairs = []
    for seed in range(600_000, 600_016):
        for kind, (text, modality) in says.items():
            file = folder / f"{kind}{seed}.png"
            Image.fromarray(make_phantom(kind, seed, size=96, pathology=True).image).save(file)
            pairs.append(Pair(file.name, file, text, modality=modality))
    return Listing(pairs)


def test_the_demo_clip_is_fine_tuned_in_its_own_format(phantoms, tmp_path):
    options = FinetuneOptions(epochs=1, batch_size=8, learning_rate=1e-5, method="heads")
    held = Listing(phantoms.pairs[20:])
    done = finetune("demo_clip", Listing(phantoms.pairs[:20]), tmp_path, options, validation=held)
    weights = resolve(str(done.folder))
    assert weights.arch == "demo"
    encoder, base = load_encoder(weights), load_encoder(resolve("demo_clip"))
    assert encoder.identity == weights.sha256 != base.identity
    assert encoder.defaults["saliency"] == base.defaults["saliency"]
    assert weights.metadata["provenance"]["pairs"]["validation"] == 12


def test_thresholds_let_what_captions_name_through_and_not_the_rest(phantoms):
    encoder = load_encoder(resolve("demo_clip"))
    prepared = prepare(phantoms, encoder)
    images = torch.cat([encoder.encode_images(prepared[at][0][None]) for at in range(len(prepared))])
    found = calibrate(encoder, prepared, images, TargetSet.load())
    assert set(found["presence_thresholds"]) == {"breast tumour", "lungs x-ray"}
    for value in (found["presence_threshold"], found["free_text_threshold"], *found["presence_thresholds"].values()):
        assert 0 < value < 1
    assert 0.5 < found["same_meaning"] < 1
    # shuffled features tell nothing apart: no threshold can keep what is there and refuse what is not
    noise = torch.nn.functional.normalize(torch.randn(images.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    assert calibrate(encoder, prepared, noise, TargetSet.load())["free_text_threshold"] < found["free_text_threshold"]


def table(folder: Path, listing: Listing) -> Path:
    lines = ["filename,Caption", *(f"{pair.path},{pair.caption!r}" for pair in listing.pairs)]
    file = folder / "pairs.csv"
    file.write_text("\n".join(line.replace("'", '"') for line in lines) + "\n")
    return file


def test_the_command_line_fine_tunes_and_measures(clip_folder, listing, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path / "home"))
    file = table(tmp_path, listing)
    run = ["finetune", "run", str(file), "--weights", str(clip_folder), "--out", str(tmp_path / "run")]
    run += ["--epochs", "2", "--batch-size", "12", "--learning-rate", "3e-3", "--device", "cpu", "--gallery", "12"]
    assert cli.main(run) == 0
    assert "pairs for training" in capsys.readouterr().out
    assert cli.main(["weights", "add", "tuned", str(tmp_path / "run" / "model")]) == 0
    capsys.readouterr()
    evaluate = ["finetune", "evaluate", str(file), "--weights", "tuned", "--weights", str(clip_folder), "--json"]
    assert cli.main([*evaluate, "--gallery", "all", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tuned"]["pairs"] == 48
    assert found["tuned"]["score"] > found[str(clip_folder)]["score"]
    assert cli.main(["finetune", "evaluate", str(file), "--weights", "tuned", "--device", "cpu"]) == 0
    assert "image to text top-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "0"], "epochs"),
        (["--temperature", "0"], "temperature"),
        (["--weights", "nothing-of-the-kind"], "no weights"),
        (["--caption-column", "befund"], "befund"),
    ],
)
def test_bad_input_is_one_line(clip_folder, listing, tmp_path, capsys, more, message):
    file = table(tmp_path, listing)
    base = [
        "finetune",
        "run",
        str(file),
        "--weights",
        str(clip_folder),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    assert cli.main([*base, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "model").exists()
