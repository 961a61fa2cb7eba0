"""Training of the demo CLIP on phantoms, from scratch.

1. The text tower learns where each caption lies (`medclipsam.demo.captions`) and is frozen.
2. The vision tower learns to answer an image with the sum of the captions of what can be seen in it, each weighted by
   the visible share of its structure. A second copy of every image passes a random information bottleneck (the one
   that M2IB puts into the tower later): tokens fade into noise and the answer has to fade with them. So the similarity
   to a caption follows how much of the structure is left, which is what M2IB's optimisation measures.
3. The same goes on while the gradient that M2IB follows is itself made part of the loss: under its bottleneck, more
   signal has to raise the similarity where the structure is, and nowhere else.

The phantoms' masks are used in steps 2 and 3: this is a model to show and test the pipeline with, no evidence about any
clinical image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from medclipsam import __version__
from medclipsam.base.progress import ProgressBar
from medclipsam.demo import captions
from medclipsam.demo.phantoms import MODALITIES, Phantom, make_phantom
from medclipsam.encoders import Encoder
from medclipsam.encoders.fit import fit_plane
from medclipsam.encoders.open_clip_adapter import OpenClipTower
from medclipsam.encoders.small_clip import build_small_clip, collect_vocabulary
from medclipsam.targets import TargetSet
from tools.demo_training.calibrate import calibrate
from tools.demo_training.files import write_weights
from tools.demo_training.scribbles import draw_nonsense

# Training phantoms take seeds from here on; smaller ones are for tests, examples and measurements.
FIRST_SEED = 1_000_000
NONSENSE = "NONE"

# Bit k of a pixel of the packed masks.
_BITS: dict[str, tuple[str, ...]] = {
    modality: tuple(name for name in captions.STRUCTURES if name != "lungs" and modality in captions.SEEN_IN[name])
    for modality in MODALITIES
}
_BODY_BIT = 7


@dataclass(frozen=True)
class Sharpening:
    """One cycle of the third stage.

    Attributes
    ----------
    steps, rate : int, float
        Steps and greatest learning rate.
    findings : float
        How much more often a finding is asked for than anatomy.
    images : int
        Images of each batch whose gradient is looked at, the costly part.
    fresh : bool
        Whether the cycle has phantoms of its own, rather than those of the stage before it.
    presence : float
        Weight of the loss that asks for each finding whether it is there.
    chest_ct : float
        How much more often a CT is drawn than another modality: its nodules are the hardest to see.
    """

    steps: int
    rate: float
    findings: float = 1.0
    images: int = 16
    fresh: bool = False
    presence: float = 0.0
    chest_ct: float = 1.0


@dataclass(frozen=True)
class ClipRecipe:
    """Everything that decides the demo CLIP."""

    seed: int = 0
    images: int = 7200
    steps: int = 1500
    batch: int = 16
    learning_rate: float = 1.2e-3
    sharpen: tuple[Sharpening, ...] = (
        Sharpening(250, 5e-4),
        Sharpening(420, 7e-4, findings=3.0, images=8),
        Sharpening(700, 8e-4, findings=3.0, images=8),
        Sharpening(1500, 8e-4, findings=3.0, images=8, fresh=True),
        Sharpening(1500, 6e-4, findings=3.0, images=8),
        Sharpening(2200, 8e-4, findings=3.0, images=8, fresh=True, presence=0.5, chest_ct=2.0),
        Sharpening(1600, 6e-4, findings=3.0, images=8, fresh=True, presence=0.5, chest_ct=2.0),
    )
    text_steps: int = 900
    text_batch: int = 96
    image_size: int = 192
    layer: int = 1
    arch: Mapping[str, int] = field(
        default_factory=lambda: {
            "embed_dim": 128,
            "patch_size": 12,
            "width": 128,
            "layers": 3,
            "heads": 4,
            "stem_channels": 24,
            "text_width": 128,
            "text_layers": 3,
            "text_heads": 4,
            "context_length": 24,
        }
    )
    saliency: Mapping[str, float] = field(
        default_factory=lambda: {
            "beta": 3.0,
            "variance": 1.0,
            "layer": 1,
            "smooth": 1,
            "clip_percentile": 99.0,
            "contrast": 0.0,
        }
    )
    # Texts of one structure lie above 0.95, of two structures below 0.8; "lungs" and "left lung" at 0.71.
    same_meaning: float = 0.85
    development: int = 200
    logit_scale: float = 20.0
    workers: int = 2

    @classmethod
    def quick(cls) -> ClipRecipe:
        """Return a recipe of seconds, to try the code and not to get a model."""
        arch = dict(cls().arch) | {"width": 32, "heads": 2, "embed_dim": 64, "text_width": 32, "stem_channels": 8}
        return cls(
            images=24,
            steps=3,
            sharpen=(Sharpening(1, 5e-4), Sharpening(1, 5e-4, findings=3.0, images=4, fresh=True, presence=0.5)),
            batch=8,
            text_steps=4,
            text_batch=16,
            image_size=96,
            arch=arch,
            development=4,
            workers=0,
        )


def train_clip(folder: Path, recipe: ClipRecipe | None = None, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Train the demo CLIP and write `clip.safetensors` and `clip.json`.

    Parameters
    ----------
    folder : pathlib.Path
        Where to write; made if needed.
    recipe : ClipRecipe, optional
        The shipped weights' recipe by default.
    device : str or torch.device
        Where to train. Random numbers are drawn there: the same recipe gives other weights on another device.

    Returns
    -------
    dict
        What `clip.json` holds.
    """
    recipe = recipe or ClipRecipe()
    start = time.monotonic()
    torch.manual_seed(recipe.seed)
    texts = captions.training_texts(target_captions())
    config: dict[str, Any] = {
        "arch": dict(recipe.arch),
        "vocab": collect_vocabulary([text.replace(captions.STRANGE, "") for text, _, _ in texts]),
        "mean": [0.35, 0.35, 0.35],
        "std": [0.3, 0.3, 0.3],
        "image_size": recipe.image_size,
        "saliency": dict(recipe.saliency),
        "same_meaning": recipe.same_meaning,
    }
    model, tokenizer = build_small_clip(config)
    model.to(device)
    vectors = captions.basis(recipe.arch["embed_dim"])
    model.logit_scale.data.fill_(math.log(recipe.logit_scale))
    train_text(model, tokenizer, texts, vectors, recipe)
    data = _load_phantoms(PhantomSet(recipe), model.logit_scale.device)
    answers = _Answers(model, tokenizer, vectors)
    train_vision(model, answers, data, recipe, config)
    sharpen_vision(model, answers, data, recipe, config)
    config |= calibrate_shipped(model, config, recipe.development)
    config["provenance"] = {
        "what": "trained from scratch on procedural phantoms with their masks; no patient data",
        "version": __version__,
        "recipe": asdict(recipe),
        "training_images": recipe.images * (1 + sum(cycle.fresh for cycle in recipe.sharpen)),
        "seconds": round(time.monotonic() - start),
    }
    return write_weights(folder, "clip", model.state_dict(), config)


def calibrate_shipped(model: CLIP, config: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return presence thresholds of the weights as they are written, in half precision; see `calibrate`."""
    shipped, tokenizer = build_small_clip(config)
    shipped.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    encoder = Encoder(
        shipped,
        tokenizer,
        image_size=config["image_size"],
        mean=config["mean"],
        std=config["std"],
        identity="just trained",
        name="demo",
    )
    return calibrate(encoder, n)


def target_captions() -> dict[str, list[str]]:
    """Return the targets files' captions and synonyms as "structure/modality" -> texts, for what phantoms show."""
    families = {"US": "US", "MR": "MR", "CT": "CT", "CR": "XR", "DX": "XR"}
    found: dict[str, list[str]] = {}
    for target in TargetSet.load():
        name = captions.structure_of(target)
        if name not in captions.STRUCTURES:
            continue
        seen = {families[code] for code in target.modality if code in families}
        # A target of several modalities names now one, now the other: those captions are in the grammar already.
        if len(seen) == 1:
            found.setdefault(f"{name}/{seen.pop()}", []).extend(target.captions)
        found.setdefault(name, []).extend([target.name, *target.synonyms])
    return found


def train_text(
    model: CLIP,
    tokenizer: Any,
    texts: list[tuple[str, dict[str, float], float]],
    vectors: Mapping[str, np.ndarray],
    recipe: ClipRecipe,
) -> None:
    """Teach the text tower each caption's prototype, then freeze it."""
    device = model.logit_scale.device
    generator = torch.Generator().manual_seed(recipe.seed)
    shares = torch.tensor([share for _, _, share in texts])
    mixtures = {id(parts): parts for _, parts, _ in texts}
    goals = {key: torch.from_numpy(captions.prototype(parts, vectors)) for key, parts in mixtures.items()}
    tower = [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]
    optimiser = torch.optim.AdamW(tower, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=recipe.text_steps, pct_start=0.1)
    model.train()
    for _ in ProgressBar(range(recipe.text_steps), desc="text tower", unit="step"):
        chosen = torch.multinomial(shares, recipe.text_batch, replacement=True, generator=generator).tolist()
        lines = [_strange_words(texts[row][0], generator) for row in chosen]
        goal = torch.stack([goals[id(texts[row][1])] for row in chosen])
        strangers = recipe.text_batch // 16
        lines[:strangers] = [_strange_words("", generator, at_least=1) for _ in range(strangers)]
        goal[:strangers] = torch.from_numpy(vectors["generic"])
        features = F.normalize(model.encode_text(tokenizer(lines).to(device)), dim=-1)
        loss = (1 - (features * goal.to(device)).sum(dim=-1)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    for parameter in tower:
        parameter.requires_grad_(False)


def _strange_words(text: str, generator: torch.Generator, at_least: int = 0) -> str:
    """Put words that the vocabulary does not know between a caption's words, now and then."""
    words = text.split()
    extra = at_least + int(torch.rand(1, generator=generator) < 0.2) * int(
        torch.randint(1, 3, (1,), generator=generator)
    )
    for _ in range(extra):
        words.insert(int(torch.randint(0, len(words) + 1, (1,), generator=generator)), captions.STRANGE)
    return " ".join(words)


def image_states(phantom: Phantom) -> list[str]:
    """Return which of `captions.STATES` hold for a phantom."""
    modality, facts, masks = phantom.modality, phantom.facts, phantom.masks
    if facts.get("region") in ("abdomen", "neck"):
        return [str(facts["region"])]
    states = []
    if facts.get("pathology") is False:
        states.append(f"normal {modality}")
    elif modality == "XR":
        states.append("opacity")
    if modality == "CT" and "heart" not in masks:
        states.append("above heart")
    if modality == "MR" and "ventricles" not in masks:
        states.append("above ventricles")
    return states


class PhantomSet(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Phantoms as the encoder will see them: letterboxed grey image, packed masks, and what holds for the whole.

    The last is float [modalities + states], 1 for its modality and each of its states; all 0 for what is no phantom.

    Every 25th picture is no medical image.
    """

    def __init__(self, recipe: ClipRecipe, first_seed: int = FIRST_SEED) -> None:
        self.recipe = recipe
        self.first_seed = first_seed

    def __len__(self) -> int:
        return self.recipe.images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seed = self.first_seed + index
        size = (192, 256, 320)[index % 3]
        holds = torch.zeros(len(MODALITIES) + len(captions.STATES))
        if index % 25 == 24:
            phantom = Phantom(draw_nonsense(seed, size), NONSENSE, {})
        else:
            phantom = make_phantom(MODALITIES[index % len(MODALITIES)], seed, size=size)
            holds[MODALITIES.index(phantom.modality)] = 1
            for name in image_states(phantom):
                holds[len(MODALITIES) + list(captions.STATES).index(name)] = 1
        return *self.fit(phantom), holds

    def fit(self, phantom: Phantom) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 [size, size] each: the picture and its packed masks (bit 7: inside the picture)."""
        image = phantom.image if phantom.image.ndim == 3 else np.repeat(phantom.image[..., None], 3, axis=2)
        tensor, geometry = fit_plane(image, self.recipe.image_size)
        r0, r1, c0, c1 = geometry.target
        bits = np.full(image.shape[:2], 1 << _BODY_BIT, dtype=np.uint8)
        for bit, name in enumerate(_BITS.get(phantom.modality, ())):
            if name in phantom.masks:
                bits[phantom.masks[name]] |= 1 << bit
        inner = F.interpolate(torch.from_numpy(bits)[None, None].float(), size=(r1 - r0, c1 - c0), mode="nearest-exact")
        packed = torch.zeros(self.recipe.image_size, self.recipe.image_size, dtype=torch.uint8)
        packed[r0:r1, c0:c1] = inner[0, 0].to(torch.uint8)
        return (tensor.mean(dim=0) * 255).round().to(torch.uint8), packed


# How much of an image's answer its state, its modality and the part that stands for nothing have, beside 1 a structure.
_STATE_SHARE, _MODALITY_SHARE, _REST_SHARE = 0.7, 0.5, 1.2
# A structure that covers as many tokens counts fully.
_LEAST_TOKENS = 0.25
# M2IB's beta that the sharpening has in mind.
_TYPICAL_BETA = 0.5


_Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def train_vision(model: CLIP, answers: _Answers, data: _Data, recipe: ClipRecipe, config: Mapping[str, Any]) -> None:
    """Teach the vision tower to answer images with the captions of what they show."""
    stage = _Stage(model, answers, data, recipe, config, seed=recipe.seed + 1)
    stage.run("vision tower", recipe.steps, recipe.learning_rate)


def sharpen_vision(model: CLIP, answers: _Answers, data: _Data, recipe: ClipRecipe, config: Mapping[str, Any]) -> None:
    """Go on while M2IB's own gradient is taught to point at the structure."""
    for number, cycle in enumerate(recipe.sharpen):
        seed = recipe.seed + 2 + number
        if cycle.fresh:
            phantoms = PhantomSet(recipe, first_seed=FIRST_SEED + (1 + number) * recipe.images)
            data = _load_phantoms(phantoms, model.logit_scale.device)
        torch.manual_seed(seed)
        stage = _Stage(model, answers, data, recipe, config, seed=seed)
        stage.run(f"sharpening, cycle {number + 1}", cycle.steps, cycle.rate, cycle)


class _Stage:
    """One stretch of training of the vision tower with an optimiser and random numbers of its own."""

    def __init__(
        self,
        model: CLIP,
        answers: _Answers,
        data: _Data,
        recipe: ClipRecipe,
        config: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.model, self.answers, self.data, self.recipe = model, answers, data, recipe
        self.tower = OpenClipTower(model.visual)
        self.device = model.logit_scale.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.mean, self.std = config["mean"][0], config["std"][0]

    def run(self, name: str, steps: int, rate: float, sharpen: Sharpening | None = None) -> None:
        visual = self.model.visual
        groups = [
            {"params": [p for p in visual.parameters() if p.ndim > 1], "weight_decay": 0.03},
            {"params": [p for p in visual.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.08)
        self.model.train()
        progress = ProgressBar(range(steps), desc=name, unit="step")
        for _ in progress:
            loss, parts = self._loss(sharpen)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            progress.set_postfix({name: f"{value:.3f}" for name, value in parts.items()}, refresh=False)
        self.model.eval()

    def _loss(self, sharpen: Sharpening | None) -> tuple[torch.Tensor, dict[str, float]]:
        recipe, generator = self.recipe, self.generator
        images, masks, holds = self.data
        often = torch.ones(recipe.images, device=self.device)
        often[holds[:, MODALITIES.index("CT")] > 0] = sharpen.chest_ct if sharpen else 1.0
        rows = torch.multinomial(often, recipe.batch, replacement=True, generator=generator)
        pixels, bits = augment(images[rows], masks[rows], generator)
        coverage = _coverage(bits, recipe.arch["patch_size"])
        inputs = ((pixels - self.mean) / self.std)[:, None].expand(-1, 3, -1, -1)
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens = self.tower.prefix(inputs, recipe.layer).float()
            kept = _random_bottleneck(coverage, tokens, generator)
            noise = _normal(tokens.shape, generator)
            noisy = kept * tokens + (1 - kept) * noise
            patches = self.tower.patch_features(torch.cat([tokens, noisy]), recipe.layer).float()
        shares = torch.cat([torch.ones_like(coverage[..., 0]), kept[:, 1:].mean(dim=-1)])
        loss, parts = self.answers.loss(patches, coverage.repeat(2, 1, 1), shares, holds[rows].repeat(2, 1))
        # The bottleneck's noise has unit variance: tokens of another size would drown in it or never feel it.
        loss = loss + 0.1 * tokens.square().mean(dim=-1).clamp_min(1e-6).log().square().mean()
        if sharpen:
            asked = slice(sharpen.images)
            sharp = self._sharpness(tokens[asked], coverage[asked], holds[rows[asked]], sharpen.findings)
            loss = loss + sharp
            parts["sharp"] = float(sharp.detach())
            if sharpen.presence:
                whole = patches[: recipe.batch].mean(dim=1)
                presence = self.answers.presence_loss(whole, coverage, holds[rows], recipe.logit_scale)
                loss = loss + sharpen.presence * presence
                parts["presence"] = float(presence.detach())
        return loss, parts

    def _sharpness(
        self, tokens: torch.Tensor, coverage: torch.Tensor, holds: torch.Tensor, findings: float
    ) -> torch.Tensor:
        """Return how far M2IB's gradient is from pointing at one structure of each image, from 0 to 1.

        The gradient of the similarity to lambda is taken at a random stage of M2IB's optimisation. What exceeds the
        pull of the compression term is summed over a token's elements, as M2IB would keep them; the cosine distance
        between these sums and the structure's share of each token is the loss.
        """
        generator = self.generator
        texts, wanted, rows = [], [], []
        for row in range(len(tokens)):
            asked = self.answers.ask(coverage[row], holds[row], generator, findings)
            if asked is not None:
                texts.append(asked[0])
                wanted.append(asked[1])
                rows.append(row)
        if not rows:
            return tokens.new_zeros(())
        z, text, share = tokens[rows], torch.stack(texts), torch.stack(wanted)
        batch, n_tokens, _ = z.shape

        def draw(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * _uniform((batch, 1), generator)

        # Early in the optimisation all tokens have faded alike; late, the structure stands out.
        level = draw(0.15, 0.9).expand(-1, n_tokens)
        late = torch.cat([draw(0.0, 1.0), torch.where(share > 0.25, draw(0.4, 0.95), draw(0.02, 0.4))], dim=1)
        level = torch.where(draw(0, 1) < 0.5, level, late)
        jitter = _normal(z.shape, generator) * draw(0.0, 1.5)[..., None]
        kept = torch.sigmoid(torch.logit(level.clamp(0.01, 0.99))[..., None] + jitter).requires_grad_(True)
        samples = 2
        noise = _normal((samples, *z.shape), generator)
        noisy = kept * z + (1 - kept) * noise
        # Only the plain kernel can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            features = F.normalize(self.tower.suffix(noisy.flatten(0, 1), self.recipe.layer), dim=-1)
            similarity = (features.unflatten(0, (samples, batch)) * text).sum() / samples
            (slope,) = torch.autograd.grad(similarity, kept, create_graph=True)
        pull = 2 * _TYPICAL_BETA / kept[0].numel()
        strength = F.softplus((slope[:, 1:] - pull) / pull).sum(dim=-1)
        return (1 - F.cosine_similarity(strength, share, dim=-1)).mean()


def _uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device)


def _normal(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, device=generator.device)


def _load_phantoms(phantoms: PhantomSet, device: torch.device) -> _Data:
    loader = DataLoader(phantoms, batch_size=50, num_workers=phantoms.recipe.workers)
    images, masks, holds = zip(*ProgressBar(loader, desc="phantoms", unit="batch"), strict=True)
    return torch.cat(images).to(device), torch.cat(masks).to(device), torch.cat(holds).to(device)


def augment(images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Move, zoom and re-tone letterboxed images.

    Parameters
    ----------
    images, masks : torch.Tensor
        uint8 [B, S, S]; masks packed.
    generator : torch.Generator
        On the images' device.

    Returns
    -------
    torch.Tensor, torch.Tensor
        float32 [B, S, S] in [0, 1] and the masks moved with them.
    """
    batch = len(images)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * _uniform((batch,), generator)

    moved = draw(0, 1) < 0.75
    # Above 1 shows more than the picture (a smaller body), below 1 a part of it.
    zoom = torch.where(draw(0, 1) < 0.5, draw(0.6, 1.0), draw(1.0, 1.3))
    angle = draw(-0.25, 0.25)
    stretch = draw(0.88, 1.14)
    room = (1 - zoom).abs() + 0.06
    theta = torch.zeros(batch, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 1] = zoom * stretch * angle.cos(), zoom * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = -zoom * angle.sin(), zoom / stretch * angle.cos()
    theta[:, 0, 2], theta[:, 1, 2] = draw(-1, 1) * room, draw(-1, 1) * room
    theta[~moved] = torch.eye(2, 3, device=images.device)
    grid = F.affine_grid(theta, [batch, 1, *images.shape[1:]], align_corners=False)
    pixels = F.grid_sample(images[:, None].float() / 255, grid, align_corners=False)[:, 0]
    bits = F.grid_sample(masks[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0].to(torch.uint8)

    toned = (draw(0, 1) < 0.7).float()[:, None, None]
    gamma = torch.exp(draw(-0.5, 0.5))[:, None, None]
    gain, offset = draw(0.7, 1.2)[:, None, None], draw(-0.1, 0.15)[:, None, None]
    changed = pixels.clamp(1e-4, 1) ** gamma * gain + offset
    grain = _normal(pixels.shape, generator) * draw(0, 0.06)[:, None, None]
    changed = changed + grain
    soft = F.avg_pool2d(changed[:, None], 3, 1, 1)[:, 0]
    changed = torch.where((draw(0, 1) < 0.25)[:, None, None], soft, changed)
    pixels = torch.where(toned.bool(), changed, pixels).clamp(0, 1)
    # Padding stays black: letterboxing puts nothing there.
    return pixels * (bits > 0), bits


def _coverage(bits: torch.Tensor, patch: int) -> torch.Tensor:
    """Return the share of each token that each bit covers: [B, P, 8]."""
    planes = torch.stack([(bits >> bit) & 1 for bit in range(8)], dim=1).float()
    return F.avg_pool2d(planes, patch).flatten(2).transpose(1, 2)


def _random_bottleneck(coverage: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return lambda [B, 1+P, D]: structures kept or removed, smooth blobs, or everything faded alike."""
    batch, n_patches, _ = coverage.shape
    side = math.isqrt(n_patches)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * _uniform((batch, 1), generator)

    kind = _uniform((batch,), generator)
    present = coverage[:, :, :_BODY_BIT].sum(dim=1) > 0.5
    weights = present.float() + 1e-6
    chosen = torch.multinomial(weights, 1, generator=generator)
    pair = chosen.clone()
    second = (draw(0, 1) < 0.3).long() * torch.multinomial(weights, 1, generator=generator)
    pair = torch.where(second > 0, second, pair)
    inside = coverage.gather(2, chosen[:, None].expand(-1, n_patches, 1))[..., 0]
    inside = torch.maximum(inside, coverage.gather(2, pair[:, None].expand(-1, n_patches, 1))[..., 0])
    inside = (inside > 0.25).float()
    high, low = draw(0.35, 1.0), draw(0.0, 0.12)
    blobs = F.interpolate(_normal((batch, 1, 5, 5), generator), size=(side, side), mode="bicubic")
    blobs = torch.sigmoid(6 * blobs.flatten(1) + draw(-3, 3))
    # Part of a structure: its tokens fade by blobs, so that a half is worth half.
    part = inside * blobs
    level = torch.where((kind < 0.3)[:, None], inside, 1 - inside)
    level = torch.where(((kind >= 0.45) & (kind < 0.65))[:, None], part, level)
    level = torch.where(((kind >= 0.65) & (kind < 0.85))[:, None], blobs, level)
    level = low + (high - low) * level
    level = torch.where((kind >= 0.85)[:, None], draw(0.05, 1.0).expand(-1, n_patches), level)
    level = torch.cat([draw(0.0, 1.0), level], dim=1).clamp(0.005, 0.995)
    jitter = _normal(tokens.shape, generator) * draw(0.0, 1.5)[..., None]
    return torch.sigmoid(torch.logit(level)[..., None] + jitter)


class _Answers:
    """The answers that the vision tower has to give, from the frozen text tower."""

    _VARIANTS = 48

    def __init__(self, model: CLIP, tokenizer: Any, vectors: Mapping[str, np.ndarray]) -> None:
        rng = np.random.default_rng(0)

        def encode(texts: list[str]) -> torch.Tensor:
            picked = [texts[i] for i in rng.permutation(len(texts))[: self._VARIANTS]]
            with torch.no_grad():
                return F.normalize(model.encode_text(tokenizer(picked).to(device)), dim=-1)

        device = model.logit_scale.device
        model.eval()
        self.rest = torch.from_numpy(vectors["rest"]).to(device)
        self.structures = {
            (modality, name): encode(
                [*captions.structure_captions(name, modality), *list(captions.structure_captions(name)) * 4]
            )
            for modality in MODALITIES
            for name in _BITS[modality]
        }
        self.states = {name: encode(list(phrases)) for name, phrases in captions.STATES.items()}
        self.generic = encode(list(captions.GENERIC))
        self.modalities = {name: encode(list(words)) for name, words in captions.MODALITY_WORDS.items()}
        self.lungs = {name: encode(list(captions.structure_captions("lungs", name))) for name in ("XR", "CT")}
        known = (*self.structures.values(), *self.states.values())
        self.findings = {
            captions.structure_of(target): tuple(
                F.normalize(encode(list(texts)).mean(dim=0), dim=0)
                for texts in (target.captions, target.absence_captions)
            )
            for target in TargetSet.load()
            if captions.structure_of(target) in captions.FINDINGS
        }
        self.probes = F.normalize(torch.stack([features.mean(dim=0) for features in known]), dim=-1)

    def ask(
        self, coverage: torch.Tensor, holds: torch.Tensor, generator: torch.Generator, findings: float
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Draw a structure that an image shows: a caption's feature [E] and the share of each token [P] it covers."""
        modality = next((name for name, held in zip(MODALITIES, holds, strict=False) if held), None)
        if modality is None:
            return None
        names = _BITS[modality]
        present = (coverage[:, : len(names)].sum(dim=0) > _LEAST_TOKENS).float()
        if not present.any():
            return None
        often = [findings if name in captions.FINDINGS else 1.0 for name in names]
        present = present * torch.tensor(often, device=present.device)
        name = names[int(torch.multinomial(present, 1, generator=generator))]
        share = coverage[:, names.index(name)]
        if name.endswith(" lung") and _uniform((1,), generator) < 0.5:
            both = [names.index(side) for side in ("left lung", "right lung")]
            return _pick(self.lungs[modality]), coverage[:, both].sum(dim=1)
        return _pick(self.structures[modality, name]), share

    def loss(
        self, patches: torch.Tensor, coverage: torch.Tensor, shares: torch.Tensor, holds: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of patch features [B, P, E] whose tokens kept `shares` [B, P] of their content."""
        goal = self._goals(coverage, shares, holds)
        whole = F.normalize(goal.mean(dim=1), dim=-1)
        pooled = F.normalize(patches.mean(dim=1), dim=-1)
        image_loss = (1 - (pooled * whole).sum(dim=-1)).mean()
        probe_loss = ((pooled - whole) @ self.probes.T).square().sum(dim=-1).mean()
        # Every structure, however small, weighs as much as the next, and so does the rest of the image: else each
        # token would answer with what its modality holds on average, and nothing would have a place.
        parts = torch.cat(
            [coverage[..., :_BODY_BIT], (1 - coverage[..., :_BODY_BIT].amax(dim=-1, keepdim=True))], dim=-1
        )
        weight = (parts / parts.sum(dim=1, keepdim=True).clamp_min(_LEAST_TOKENS)).sum(dim=-1)
        weight = weight / weight.sum(dim=1, keepdim=True)
        direction = 1 - F.cosine_similarity(patches, goal, dim=-1)
        length = (patches.norm(dim=-1).clamp_min(1e-4).log() - goal.norm(dim=-1).log()).square()
        patch_loss = ((direction + 0.1 * length) * weight).sum(dim=1).mean()
        loss = image_loss + 0.5 * probe_loss + 2 * patch_loss
        losses = {"image": image_loss, "probe": probe_loss, "patch": patch_loss}
        return loss, {name: float(part.detach()) for name, part in losses.items()}

    def presence_loss(
        self, pooled: torch.Tensor, coverage: torch.Tensor, holds: torch.Tensor, logit_scale: float
    ) -> torch.Tensor:
        """Return the cross-entropy of each finding's presence, summed over the images of its modality, divided by B.

        The score is that of `medclipsam.presence`: the finding's captions against its absence captions.

        Parameters
        ----------
        pooled : torch.Tensor
            float [B, E], image features of any length.
        coverage : torch.Tensor
            float [B, P, 8], the share of each token that each structure covers.
        holds : torch.Tensor
            float [B, modalities + states], as `PhantomSet` gives it.
        logit_scale : float
            Of the similarities' difference.

        Returns
        -------
        torch.Tensor
            A scalar; 0 where no image is of a finding's modality.
        """
        features = F.normalize(pooled, dim=-1)
        losses = []
        for name, (positive, negative) in self.findings.items():
            (modality,) = captions.SEEN_IN[name]
            tokens = coverage[..., _BITS[modality].index(name)].sum(dim=1)
            # What the augmentation has all but cut off is neither there nor not.
            asked = (holds[:, MODALITIES.index(modality)] > 0) & ((tokens == 0) | (tokens > _LEAST_TOKENS / 2))
            logits = logit_scale * (features[asked] @ (positive - negative))
            losses.append(F.binary_cross_entropy_with_logits(logits, (tokens[asked] > 0).float(), reduction="sum"))
        return torch.stack(losses).sum() / len(pooled)

    def _goals(self, coverage: torch.Tensor, shares: torch.Tensor, holds: torch.Tensor) -> torch.Tensor:
        """Return what each patch should answer, [B, P, E]; their mean is the image's answer."""
        batch, n_patches, _ = coverage.shape
        # What is next to nothing is not to be found for certain: it has a share of a whole structure's part.
        amount = n_patches * coverage / coverage.sum(dim=1, keepdim=True).clamp_min(_LEAST_TOKENS) * shares[..., None]
        visible = (shares * coverage[..., _BODY_BIT]).sum(dim=1) / coverage[..., _BODY_BIT].sum(dim=1).clamp_min(1)
        goals = []
        for row in range(batch):
            goal = _REST_SHARE * self.rest.expand(n_patches, -1)
            for held in holds[row].nonzero()[:, 0].tolist():
                if held < len(MODALITIES):
                    names = _BITS[MODALITIES[held]]
                    meant = torch.stack([_pick(self.structures[MODALITIES[held], name]) for name in names])
                    goal = goal + amount[row, :, : len(names)] @ meant
                    goal = goal + _MODALITY_SHARE * _pick(self.modalities[MODALITIES[held]])
                else:
                    state = list(captions.STATES)[held - len(MODALITIES)]
                    goal = goal + _STATE_SHARE * visible[row] * _pick(self.states[state])
            if not holds[row].any():
                goal = goal + _pick(self.generic)
            goals.append(goal)
        return torch.stack(goals)


def _pick(features: torch.Tensor) -> torch.Tensor:
    return features[int(torch.randint(len(features), (1,)))]
