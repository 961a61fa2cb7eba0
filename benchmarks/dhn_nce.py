"""DHN-NCE against InfoNCE, DCL and HN-NCE, from the same start, on phantoms with captions.

For each seed the shipped demo CLIP gets the end of its vision tower (the block after the bottleneck of the saliency
maps, the last norm, the projection) at random again: what an image shows is still in its tokens, but no longer where
the captions lie. Each loss fine-tunes that end and the text projection from that start, on the same 160 pairs in the
same order at batch 16; what comes before is frozen and computed once. The best epoch by 40 validation pairs is measured
on 200 test pairs (galleries of 50), and in zero-shot Dice on 12 phantoms that `medclipsam evaluate`'s machinery asks
for the paper's four targets (4 noise samples). Each loss has its own published constants, and the learning rate that
was best for it on development phantoms (`--tune`). Differences to DHN-NCE are paired, with bootstrap intervals over
seeds and images.

    python benchmarks/dhn_nce.py --out FOLDER --tune      # the learning rates
    python benchmarks/dhn_nce.py --out FOLDER             # the table; an interrupted run goes on
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medclipsam.base.options import ZeroShotOptions
from medclipsam.demo.data import write_data
from medclipsam.demo.phantoms import MODALITIES, Phantom, make_phantom
from medclipsam.encoders import Encoder
from medclipsam.encoders.folder import write_demo
from medclipsam.evaluation.data import find_cases
from medclipsam.evaluation.predictors import ZeroShotPredictor
from medclipsam.evaluation.runner import Methods, Plan, run
from medclipsam.finetune.data import Listing, Pair, PreparedPairs, prepare
from medclipsam.finetune.model import TunableClip
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.finetune.retrieval import retrieval
from medclipsam.finetune.trainer import features_of
from medclipsam.finetune.trainer import train as learn
from medclipsam.pipeline.zero_shot import ZeroShot, load_encoder
from medclipsam.targets import TargetSet
from medclipsam.weights import resolve

# First phantoms of each modality: development, and those of `medclipsam demo data`'s splits.
DEVELOPMENT = {"train": 600_000, "val": 610_000, "test": 620_000}
MEASURED = {"train": 740_000, "val": 720_000, "test": 700_000}
COUNTS = {"train": 40, "val": 10, "test": 50}
COMPARED = ("dhn-nce", "infonce", "dcl", "hn-nce")
SEEDS = range(5)
EPOCHS = 3
# Block whose tokens are kept; what follows is put at random and trained, with the text projection.
LAYER = 1
TRAINED = ("visual.transformer.resblocks.2.", "visual.ln_post.", "visual.proj", "text_projection")
RATES = (1e-3, 3e-3)
TASKS = ("breast tumour, ultrasound", "brain tumour, MRI", "lungs, x-ray", "lungs, CT")
IMAGES = 3
DRAWS = 4000
_DICOM = {"US": "US", "MR": "MR", "XR": "DX", "CT": "CT"}
_CONTRASTS = {
    "T1 with contrast": "contrast enhanced MRI",
    "T1": "T1 weighted MRI",
    "T2": "T2 weighted MRI",
    "FLAIR": "a FLAIR MRI",
}


def caption(phantom: Phantom, rng: np.random.Generator) -> str:
    """Say what a phantom shows, in words that vary."""

    def pick(*texts: str) -> str:
        return str(rng.choice(texts))

    facts, sick = phantom.facts, bool(phantom.facts.get("pathology"))
    side = facts.get("side")
    if phantom.modality == "US":
        kinds = {"benign": "benign breast tumour", "malignant": "malignant breast tumour", "cyst": "breast cyst"}
        mass = kinds.get(str(facts.get("kind")), "breast mass")
        on = pick("a breast ultrasound", "ultrasound", "a sonogram")
        return f"{mass} on {on}" if sick else f"normal breast tissue with skin and fat on {on}"
    if phantom.modality == "MR":
        on = _CONTRASTS.get(str(facts.get("contrast")), "brain MRI")
        seen = "ventricles" if "ventricles" in phantom.masks else "brain above the ventricles"
        what = f"{pick('brain tumour', 'brain mass', 'glioma')} on the {side} side" if sick else "normal brain"
        return f"{what}, {seen}, on {on}"
    if phantom.modality == "XR":
        on = pick("a chest x-ray", "a chest radiograph", "a frontal chest x-ray")
        return (
            f"{pick('opacity', 'consolidation', 'pneumonia')} in the {side} lung on {on}"
            if sick
            else f"clear lungs and heart on {on}"
        )
    on = pick("a chest CT", "an axial CT slice", "a CT scan")
    if facts.get("region") in ("abdomen", "neck"):
        return f"{facts['region']} on {on}"
    heart = "heart" if "heart" in phantom.masks else "upper chest above the heart"
    return (
        f"{pick('lung nodule', 'pulmonary nodule')} in the {side} lung, {heart}, on {on}"
        if sick
        else f"clear lungs, {heart}, on {on}"
    )


class TowerEnd(TunableClip):
    """The end of the vision tower, on tokens that the rest of it has made, and the text projection."""

    def __init__(self, encoder: Encoder, options: FinetuneOptions) -> None:
        super().__init__(encoder, options)
        self.parameters = {name: p for name, p in self.parameters.items() if name.startswith(TRAINED)}
        encoder.model.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def encode(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and text features of vision tokens [B, 1+P, D] and text tokens."""
        return self.encoder.tower.suffix(images, LAYER), self.encoder.model.encode_text(tokens)


def pairs(folder: Path, first: int, count: int) -> Listing:
    """Draw phantoms with captions, a count of each modality."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = Listing()
    for modality in MODALITIES:
        for seed in range(first, first + count):
            phantom = make_phantom(modality, seed, size=192)
            file = folder / f"{modality.lower()}-{seed}.png"
            if not file.is_file():
                part = file.with_suffix(".part")
                Image.fromarray(phantom.image).save(part, format="png")
                part.replace(file)
            text = caption(phantom, np.random.default_rng(seed))
            listing.pairs.append(Pair(file.name, file, text, modality=_DICOM[modality]))
    return listing


def damaged_start(folder: Path, seed: int) -> Path:
    """Write the demo CLIP with the end of its vision tower at random."""
    if (folder / "clip.json").is_file():
        return folder
    base = resolve("demo_clip")
    encoder = load_encoder(base)
    visual = encoder.model.visual
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (visual.transformer.resblocks[-1], visual.ln_post):
            for name, parameter in part.named_parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
                else:
                    parameter.fill_(1.0 if name in ("weight", "ln_1.weight", "ln_2.weight") else 0.0)
        width = visual.proj.shape[0]
        visual.proj.copy_(torch.randn(visual.proj.shape, generator=generator) * width**-0.5)
    folder.mkdir(parents=True, exist_ok=True)
    write_demo(folder, encoder, base.path.with_suffix(".json"), encoder.defaults, {"what": f"damaged, seed {seed}"})
    return folder


def train(
    start: Path, data: dict[str, PreparedPairs], folder: Path, loss: str, rate: float, seed: int, epochs: int
) -> float:
    """Fine-tune, write the weights into `folder/model`, and return the validation retrieval of the best epoch."""
    done = folder / "done.json"
    if not done.is_file():
        options = FinetuneOptions(loss=loss, epochs=epochs, batch_size=16, learning_rate=rate, seed=seed, warmup=0.1)
        encoder = load_encoder(resolve(str(start)))
        tuned = TowerEnd(encoder, options)
        score = learn(tuned, data["train"], data["val"], folder, options, show=True).best.score
        (folder / "model").mkdir(exist_ok=True)
        described = start / "clip.json"
        write_demo(folder / "model", tuned.close(), described, encoder.defaults, {"what": f"{loss}, seed {seed}"})
        done.write_text(json.dumps(score))
    return float(json.loads(done.read_text()))


def found(encoder: Encoder, prepared: PreparedPairs) -> dict[str, Any]:
    """Return each pair's hits at top-1 and top-2, both ways."""
    features = features_of(TowerEnd(encoder, FinetuneOptions()), prepared)
    return {f"top-{k}": retrieval(*features, top=(k,)).hits.tolist() for k in (1, 2)}


def zero_shot(model: Path, data: Path, out: Path) -> dict[str, float]:
    """Return the Dice of each case, by task and image; presence is not asked."""
    targets = TargetSet.load()
    cases = find_cases(data, targets, only=TASKS)
    pipeline = ZeroShot.load(f"{model}+demo_sam", targets=targets)
    plan = Plan(Methods(ZeroShotPredictor(pipeline, ZeroShotOptions(presence=False, samples=4))))
    return {f"{row['task']}/{row['name']}": float(row["dice"]) for row in run(cases, plan, out)}


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """Return what a file holds, made and written now where there is none."""
    if not file.is_file():
        part = file.with_suffix(".part")
        part.write_text(json.dumps(make()))
        part.replace(file)
    return json.loads(file.read_text())


def difference(values: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values - reference, [seeds, images], and its 95 % interval over seeds and images."""
    gap = values - reference
    rng = np.random.default_rng(0)
    seeds, images = gap.shape
    drawn = [gap[np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, images, images))].mean() for _ in range(DRAWS)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(gap.mean()), float(low), float(high)


def table(results: dict[str, list[dict[str, Any]]], what: Sequence[str]) -> str:
    """Return the figures as Markdown, percent; a result holds for each measure a value for each image."""
    heads = [*what, *(f"{measure}, difference to DHN-NCE" for measure in what)]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, seeds in results.items():
        values = {measure: 100 * np.array([seed[measure] for seed in seeds]) for measure in what}
        cells = [f"{values[measure].mean():.1f}" for measure in what]
        for measure in what:
            reference = 100 * np.array([seed[measure] for seed in results["dhn-nce"]])
            mean, low, high = difference(values[measure], reference)
            cells.append("" if name == "dhn-nce" else f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def prepared(folder: Path, first: dict[str, int]) -> dict[str, PreparedPairs]:
    """Draw all pairs, and keep of each image the tokens that the frozen part of the vision tower makes of it."""
    encoder = load_encoder(resolve("demo_clip"))
    result = {}
    for part in COUNTS:
        data = prepare(pairs(folder / part, first[part], COUNTS[part]), encoder, show=True)
        with torch.no_grad():
            result[part] = data.replaced([encoder.tower.prefix(data[at][0][None], LAYER)[0] for at in range(len(data))])
    return result


def tune(out: Path) -> dict[str, float]:
    """Choose each loss's learning rate by its retrieval on development phantoms."""
    data = prepared(out / "development", DEVELOPMENT)
    start = damaged_start(out / "development" / "start", 100)
    chosen = {}
    for loss in COMPARED:
        scores = {
            rate: train(start, data, out / "development" / f"{loss}-{rate:g}", loss, rate, 100, EPOCHS)
            for rate in RATES
        }
        chosen[loss] = max(scores, key=scores.__getitem__)
        print(loss, {rate: round(score, 4) for rate, score in scores.items()}, flush=True)
    (out / "rates.json").write_text(json.dumps(chosen))
    return chosen


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates, and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.tune:
        tune(given.out)
        return
    rates = json.loads((given.out / "rates.json").read_text())
    data = prepared(given.out / "data", MEASURED)
    if not (given.out / "zero-shot" / "tasks.yaml").is_file():
        write_data(given.out / "zero-shot", IMAGES, absent=0, seed=MEASURED["test"] + 5_000)
    folders = {
        (name, seed): given.out / (f"start-{seed}" if name == "start" else f"run-{name}-{seed}/model")
        for seed in SEEDS
        for name in ("start", *COMPARED)
    }
    found_by: dict[str, list[dict[str, Any]]] = {name: [] for name in ("start", *COMPARED)}
    for (name, seed), model in folders.items():
        start = damaged_start(given.out / f"start-{seed}", seed)
        if name != "start":
            train(start, data, model.parent, name, rates[name], seed, EPOCHS)
        found_by[name].append(
            kept(given.out / f"{name}-{seed}.json", lambda: found(load_encoder(resolve(str(model))), data["test"]))  # noqa: B023
        )
    print(f"{len(SEEDS)} seeds, rates {rates}\n{table(found_by, ('top-1', 'top-2'))}", flush=True)
    numbers = {text: at for at, text in enumerate(dict.fromkeys(data["test"].captions))}
    perfect = torch.eye(len(numbers))[[numbers[text] for text in data["test"].captions]]
    best = {k: 100 * retrieval(perfect, perfect, top=(k,)).score for k in (1, 2)}
    print(
        f"captions: {len(numbers)} of {len(perfect)} differ; perfect features: top-1 {best[1]:.1f}, top-2 {best[2]:.1f}"
    )
    shipped = resolve("demo_clip")
    rows = found(load_encoder(shipped), data["test"])
    print(
        f"the shipped weights: top-1 {100 * np.mean(rows['top-1']):.1f}, top-2 {100 * np.mean(rows['top-2']):.1f}",
        flush=True,
    )
    dice_by: dict[str, list[dict[str, Any]]] = {name: [] for name in found_by}
    for (name, seed), model in folders.items():
        out = given.out / f"evaluation-{name}-{seed}"
        cases = kept(given.out / f"dice-{name}-{seed}.json", lambda: zero_shot(model, given.out / "zero-shot", out))  # noqa: B023
        dice_by[name].append({"Dice": [cases[case] for case in sorted(cases)]})
        if name == COMPARED[-1]:
            print(f"{seed + 1} seeds, zero-shot\n{table(dice_by, ('Dice',))}", flush=True)
    cases = zero_shot(shipped.path, given.out / "zero-shot", given.out / "evaluation-shipped")
    print(f"the shipped weights: Dice {100 * np.mean(list(cases.values())):.1f}")


if __name__ == "__main__":
    main()
