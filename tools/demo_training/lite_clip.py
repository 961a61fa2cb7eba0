"""Training of `lite_clip`, the small CLIP on LiteMedSAM's image embedding.

The text tower is that of the phantoms' CLIP, taught each caption's prototype and frozen. The blocks on the embedding
learn, on planes and on copies that passed a random information bottleneck (tokens fade into noise as in M2IB):

- how much of each token each structure covers, times how much of the token is left;
- which modality and state the image is of;
- presence, as `medclipsam.presence` asks it;
- later on, that the gradient that M2IB follows points at the structure and nowhere else.

Masks of real images take part in all of this: figures on images of the same sources are no zero-shot figures.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tqdm import tqdm

from medclipsam.demo import captions
from medclipsam.encoders import Encoder
from medclipsam.encoders.sam_clip import EmbeddingVision
from medclipsam.presence import PresenceReference, presence_reference
from medclipsam.targets import Target, TargetSet
from tools.demo_training.embeddings import CHANNELS, SIDE, Batch, Embedded
from tools.demo_training.sources import MODALITIES, NONSENSE, SEEN_IN, STATES, STRUCTURES

GLOBALS = (*(f"modality {name}" for name in MODALITIES), *STATES, "generic")
# DICOM modality by the phantoms' name, and back.
DICOM = {"US": "US", "MR": "MR", "XR": "DX", "CT": "CT"}
_FAMILY = {"US": "US", "MR": "MR", "CT": "CT", "CR": "XR", "DX": "XR"}
# Structures that X-rays and CT both show: by the other modality's name they are neither there nor not.
_SHARED = frozenset({"lungs", "left lung", "right lung", "heart"})
# Modalities in which no structure is called left or right.
_SIDELESS = frozenset({"US", "MR"})
# Tokens below which a structure is neither there nor not, and above which it is there.
_LEAST, _ENOUGH = 0.02, 0.3
# M2IB's beta that the sharpening has in mind.
_TYPICAL_BETA = 0.5


@dataclass(frozen=True)
class Recipe:
    """Everything beside the embeddings, and the weights that are trained on, that decides the weights."""

    seed: int = 0
    steps: int = 2400
    batch: int = 14
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    sharpen_from: float = 0.3
    # Share of the embedding's channels that half of the planes lack, against learning planes by heart.
    dropped: float = 0.15
    sharpened: int = 6
    logit_scale: float = 20.0
    # Shares of planes whose embedding is mirrored (where no structure has a side), moved and scaled.
    mirrored: float = 0.35
    moved: float = 0.55
    scaled: float = 0.4
    # What is kept is a running mean of the weights, over about 1 / (1 - memory) steps.
    memory: float = 0.995
    widths: tuple[int, int, int] = (64, 128, 160)
    depths: tuple[int, int, int, int, int] = (1, 3, 4, 2, 2)
    # How often each source is drawn: kind, modality, whether a real image shows its target.
    shares: Mapping[tuple[str, str, bool], float] = field(
        default_factory=lambda: {
            ("real", "US", True): 0.20,
            ("real", "US", False): 0.10,
            ("real", "MR", True): 0.19,
            ("real", "MR", False): 0.10,
            ("real", "XR", True): 0.08,
            ("pasted", "CT", True): 0.12,
            ("ct", "CT", True): 0.08,
            ("phantom", "CT", True): 0.09,
            ("phantom", "US", True): 0.05,
            ("phantom", "MR", True): 0.055,
            ("phantom", "XR", True): 0.05,
            ("volume", "MR", True): 0.08,
            ("volume", "CT", True): 0.07,
            ("nonsense", NONSENSE, True): 0.04,
        }
    )


# For weights that are trained on with more planes.
TRAINED_ON = Recipe(seed=1, steps=1600, learning_rate=6e-4, sharpen_from=0.0)


def blocks_of(weights: Path) -> dict[str, torch.Tensor]:
    """Return the state of the blocks on the embedding in a file of weights."""
    state = load_file(weights)
    prefix = "visual."
    return {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}


def vision_config(recipe: Recipe) -> dict[str, Any]:
    """Return the `vision` entry of the description; see `EmbeddingVision`."""
    return {
        "channels": CHANNELS,
        "side": SIDE,
        "widths": list(recipe.widths),
        "depths": list(recipe.depths),
        "structures": list(STRUCTURES),
        "globals": list(GLOBALS),
        "global_shares": [0.5] * len(MODALITIES) + [0.7] * len(STATES) + [1.0],
        "rest_share": 0.8,
    }


class Questions:
    """The known targets as presence asks for them, for every modality that an image may state."""

    def __init__(self, text: Encoder) -> None:
        targets = TargetSet.load()
        self.targets: list[Target] = [t for t in targets if captions.structure_of(t) in captions.STRUCTURES]
        self.structures = [captions.structure_of(target) for target in self.targets]
        self._references: dict[str | None, list[PresenceReference]] = {
            modality: [presence_reference(text, t.captions, t, targets, modality) for t in self.targets]
            for modality in (*DICOM.values(), None)
        }
        self.findings = torch.tensor([name in captions.FINDINGS for name in self.structures])
        self._channels = [
            [STRUCTURES.index(part) for part in (("left lung", "right lung") if name == "lungs" else (name,))]
            for name in self.structures
        ]

    def amount(self, row: int, tokens: torch.Tensor) -> float:
        """Return how many tokens a target's structure covers, of the tokens [K] that each structure covers."""
        return float(tokens[self._channels[row]].sum())

    def logits(self, feature: torch.Tensor, modality: str | None, scale: float) -> torch.Tensor:
        """Return the logit of each target's presence [T] for an image feature [E] of unit length."""
        asked = self._references[modality]
        return torch.stack([scale * (r.positive @ feature - (r.negatives @ feature).max()) for r in asked])

    def answers(self, tokens: torch.Tensor, known: torch.Tensor, modality: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return for each target whether it is there [T], and the weight of that answer [T] (0: not known).

        Parameters
        ----------
        tokens : torch.Tensor
            float [K], tokens that each structure covers.
        known : torch.Tensor
            bool [K].
        modality : str
            Of the image.
        """
        there, weight = torch.zeros(len(self.targets)), torch.ones(len(self.targets))
        for row, (name, channels) in enumerate(zip(self.structures, self._channels, strict=True)):
            amount, sure = self.amount(row, tokens), bool(known[channels].all())
            finding = bool(self.findings[row])
            if modality in {_FAMILY.get(code) for code in self.targets[row].modality}:
                there[row] = float(amount >= _ENOUGH)
                weight[row] = 3.0 if finding else 1.0 if there[row] else 0.5
                if not sure or _LEAST < amount < _ENOUGH:
                    weight[row] = 0
            else:
                weight[row] = 0.5
                if (modality != NONSENSE and not sure) or amount > _LEAST:
                    weight[row] = 0
                if name in _SHARED and modality in ("XR", "CT"):
                    weight[row] = 0
        return there, weight


class Trainer:
    """One training of the blocks on the embedding.

    Parameters
    ----------
    data : Embedded
        Planes; looked up again now and then, since others may still be embedding.
    text : Encoder
        A CLIP with the frozen text tower.
    recipe : Recipe
        What to do.
    begin : mapping, optional
        State of the blocks that are trained on; by default they begin at random.
    """

    def __init__(
        self, data: Embedded, text: Encoder, recipe: Recipe, begin: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.data, self.text, self.recipe = data, text, recipe
        self.generator = torch.Generator().manual_seed(recipe.seed + 1)
        self.questions = Questions(text)
        embed_dim = int(text.text_prototype(["a"]).shape[0])
        self.vision = EmbeddingVision({**vision_config(recipe), "embed_dim": embed_dim})
        self._captions = {name: self._encode(captions.structure_captions(name)) for name in captions.STRUCTURES}
        self._placed = {
            (name, modality): self._encode(captions.structure_captions(name, modality))
            for name in captions.STRUCTURES
            for modality in captions.SEEN_IN[name]
        }
        if begin is None:
            self._begin(captions.basis(embed_dim))
        else:
            self.vision.load_state_dict(begin)
        decayed = [p for p in self.vision.parameters() if p.ndim > 1]
        others = [p for p in self.vision.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.06
        )
        self.averaged = {name: value.clone() for name, value in self.vision.state_dict().items()}
        self.step = 0

    def _encode(self, texts: Any) -> torch.Tensor:
        return self.text.encode_texts(list(texts)[::3][:48])

    @torch.no_grad()
    def _begin(self, directions: Mapping[str, np.ndarray]) -> None:
        """Set what is measured rather than learnt: the scale of tokens and the usual size of each structure."""
        vision, data = self.vision, self.data
        batch = data.take(self._sample(min(400, len(data.training))))
        vision.mean.copy_(batch.embeddings.mean(dim=(0, 2, 3)))
        vision.deviation.copy_(batch.embeddings.std(dim=(0, 2, 3)).clamp_min(1e-3))
        rows = [directions[name] for name in (*STRUCTURES, *GLOBALS, "rest")]
        vision.directions.copy_(torch.from_numpy(np.stack(rows)))
        amounts = batch.coverage.square().sum(dim=(2, 3))
        for k in range(len(STRUCTURES)):
            shown = amounts[amounts[:, k] > _ENOUGH, k]
            vision.sizes[k] = max(1.0, float(shown.median())) if len(shown) else 4.0
        torch.nn.init.constant_(vision.local[1].bias, math.log(0.02 / 0.98))
        torch.nn.init.constant_(vision.whole.bias, math.log(0.1 / 0.9))

    def _sample(self, n: int) -> list[Any]:
        keys = [row.key for *_, row in self.data.training]
        counts = Counter(keys)
        weights = torch.tensor([self.recipe.shares[key] / counts[key] for key in keys])
        chosen = torch.multinomial(weights, n, replacement=True, generator=self.generator)
        return [self.data.training[index] for index in chosen.tolist()]

    def run(self, checkpoint: Path) -> None:
        """Train to the end; resumes at `checkpoint` where it is there, and keeps it up to date."""
        if checkpoint.is_file():
            self.load_state(torch.load(checkpoint, weights_only=True))
        saved = time.monotonic()
        with tqdm(total=self.recipe.steps, initial=self.step, desc="lite_clip", unit="step") as bar:
            while self.step < self.recipe.steps:
                if self.step % 150 == 0:
                    self.data.refresh()
                parts = self._advance()
                bar.update()
                bar.set_postfix({name: f"{value:.3f}" for name, value in parts.items()}, refresh=False)
                if time.monotonic() - saved > 120 or self.step == self.recipe.steps:
                    part = checkpoint.with_suffix(".part")
                    torch.save(self.state(), part)
                    os.replace(part, checkpoint)
                    saved = time.monotonic()
        self.vision.load_state_dict(self.averaged)
        self.vision.eval()

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed training needs."""
        return {
            "vision": self.vision.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a training where `state` left it."""
        self.vision.load_state_dict(state["vision"])
        self.averaged = {name: value.clone() for name, value in state["averaged"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.step = int(state["step"])

    def _advance(self) -> dict[str, float]:
        parts = self.losses(self.data.take(self._sample(self.recipe.batch)))
        loss = torch.stack(list(parts.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vision.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        # The first steps' weights are forgotten sooner.
        memory = min(self.recipe.memory, self.step / (self.step + 19))
        for name, value in self.vision.state_dict().items():
            self.averaged[name].lerp_(value, 1 - memory)
        return {name: float(part.detach()) for name, part in parts.items()}

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the weighted parts of the loss of a batch."""
        vision, generator = self.vision, self.generator
        n = len(batch.modalities)
        batch = move(batch, self.recipe, generator)
        tokens = vision.tokens(batch.embeddings)
        if self._chance(0.5):
            tokens = tokens + 0.15 * torch.randn(tokens.shape, generator=generator)
        tokens = drop_channels(tokens, self.recipe.dropped, generator)
        kept = random_bottleneck(batch.coverage, tokens, generator)
        noisy = kept * tokens + (1 - kept) * torch.randn(tokens.shape, generator=generator)
        local, whole = vision.logits(torch.cat([tokens, noisy]))
        visible = kept.mean(dim=2).view(n, 1, SIDE, SIDE)
        goal, sure = self._global_goals(batch)
        fading = kept.mean(dim=(1, 2))[:, None]
        features = F.normalize(vision.feature(local[:n], whole[:n]), dim=-1)
        parts = {
            "dense": 3 * dense_loss(local[:n], batch.coverage, batch.known),
            "noisy": 1.5 * dense_loss(local[n:], batch.coverage * visible, batch.known),
            "globals": 0.5 * _cross_entropy(whole[:n], goal, sure)
            + 0.15 * _cross_entropy(whole[n:], goal * fading, sure),
            "presence": 0.25 * self._presence_loss(features, batch),
        }
        if self.step >= self.recipe.sharpen_from * self.recipe.steps:
            parts["sharp"] = self._sharpness(tokens.detach(), batch)
        return parts

    def _chance(self, share: float) -> bool:
        return float(torch.rand(1, generator=self.generator)) < share

    def _global_goals(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        goal = torch.zeros(len(batch.modalities), len(GLOBALS))
        sure = torch.ones_like(goal)
        for row, modality in enumerate(batch.modalities):
            goal[row, GLOBALS.index("generic" if modality == NONSENSE else f"modality {modality}")] = 1
        states = slice(len(MODALITIES), len(MODALITIES) + len(STATES))
        goal[:, states] = batch.states.clamp_min(0).float()
        sure[:, states] = (batch.states >= 0).float()
        return goal, sure

    def _presence_loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        total = features.new_zeros(())
        amounts = batch.coverage.sum(dim=(2, 3))
        for row, modality in enumerate(batch.modalities):
            # A picture file states no modality; nonsense may state any.
            stated = DICOM.get(modality) or list(DICOM.values())[int(torch.randint(4, (1,), generator=self.generator))]
            asked = None if self._chance(0.3) else stated
            logits = self.questions.logits(features[row], asked, self.recipe.logit_scale)
            there, weight = self.questions.answers(amounts[row], batch.known[row], modality)
            total = total + (F.binary_cross_entropy_with_logits(logits, there, reduction="none") * weight).sum()
        return total / len(batch.modalities)

    def _sharpness(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return how far M2IB's gradient is from pointing at one structure of each of a few images, from 0 to 1.

        The gradient of the similarity to lambda is taken at a random stage of M2IB's optimisation; what exceeds the
        pull of the compression term is summed over a token's elements, as M2IB would keep them.
        """
        rows, texts, shares = self._asked(batch)
        if not rows:
            return tokens.new_zeros(())
        z, text, share = tokens[rows], torch.stack(texts), torch.stack(shares)
        count, generator = len(rows), self.generator

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, 1, generator=generator)

        # Early in the optimisation all tokens have faded alike; late, the structure stands out.
        late = torch.where(share > 0.25, uniform(0.4, 0.95), uniform(0.02, 0.4))
        level = torch.where(uniform(0, 1) < 0.5, uniform(0.15, 0.9).expand_as(late), late).clamp(0.01, 0.99)
        jitter = torch.randn(z.shape, generator=generator) * uniform(0, 1.5)[..., None]
        kept = torch.sigmoid(torch.logit(level)[..., None] + jitter).requires_grad_(True)
        noisy = kept * z + (1 - kept) * torch.randn(z.shape, generator=generator)
        feature = self.vision.feature(*self.vision.logits(noisy))
        similarity = (F.normalize(feature, dim=-1) * text).sum()
        (slope,) = torch.autograd.grad(similarity, kept, create_graph=True)
        pull = 2 * _TYPICAL_BETA / kept[0].numel()
        strength = F.softplus((slope - pull) / pull).sum(dim=-1)
        return (1 - F.cosine_similarity(strength, share, dim=-1)).mean()

    def _asked(self, batch: Batch) -> tuple[list[int], list[torch.Tensor], list[torch.Tensor]]:
        """Draw for some images a structure that they show: row, a caption's feature [E], its share of tokens [P]."""
        rows, texts, shares = [], [], []
        amounts = batch.coverage.sum(dim=(2, 3))
        for row, modality in enumerate(batch.modalities):
            names = [
                name
                for name in SEEN_IN.get(modality, ())
                if batch.known[row, STRUCTURES.index(name)] and amounts[row, STRUCTURES.index(name)] > 0.5
            ]
            if not names or len(rows) == self.recipe.sharpened:
                continue
            often = torch.tensor([3.0 if name in captions.FINDINGS else 1.0 for name in names])
            name = names[int(torch.multinomial(often, 1, generator=self.generator))]
            share = batch.coverage[row, STRUCTURES.index(name)]
            if name.endswith(" lung") and self._chance(0.6):
                name = "lungs"
                sides = [STRUCTURES.index(side) for side in ("left lung", "right lung")]
                share = batch.coverage[row, sides].sum(dim=0).clamp_max(1)
            known = self._captions[name] if self._chance(0.4) else self._placed[name, modality]
            rows.append(row)
            texts.append(known[int(torch.randint(len(known), (1,), generator=self.generator))])
            shares.append(share.flatten())
        return rows, texts, shares


def _cross_entropy(logits: torch.Tensor, goal: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
    return (F.binary_cross_entropy_with_logits(logits, goal, reduction="none") * sure).sum(dim=1).mean()


def dense_loss(local: torch.Tensor, coverage: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy and soft Dice of each known structure, every structure weighing alike however small it is.

    Parameters
    ----------
    local : torch.Tensor
        Logits [B, K, rows, cols].
    coverage : torch.Tensor
        float [B, K, rows, cols], the share of each token that the structure covers.
    known : torch.Tensor
        bool [B, K].
    """
    goal, logits, counted = coverage.flatten(2), local.flatten(2), known.float()
    found = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    amount = goal.sum(dim=2)
    there = (amount > _ENOUGH).float()
    inside = (entropy * goal).sum(dim=2) / amount.clamp_min(1)
    outside = (entropy * (1 - goal)).sum(dim=2) / (1 - goal).sum(dim=2).clamp_min(1)
    # A few false tokens would vanish in the mean over a thousand.
    wrong = (entropy * (1 - goal) * (found.detach() > 0.2)).sum(dim=2) / (amount + 8)
    overlap = (2 * (found * goal).sum(dim=2) + 0.5) / (found.square().sum(dim=2) + goal.square().sum(dim=2) + 0.5)
    loss = (1.5 * inside + 2 * (1 - overlap)) * there + outside + (1 - 0.8 * there) * wrong
    return (loss * counted).sum() / counted.sum().clamp_min(1)


def move(batch: Batch, recipe: Recipe, generator: torch.Generator) -> Batch:
    """Return a batch whose embeddings and coverage are mirrored, moved and scaled alike, each plane in its own way.

    An embedding that is moved is not that of the moved image (their correlation is 0.6 to 0.9), but near enough to
    keep the blocks from learning planes by heart.
    """
    n = len(batch.modalities)

    def drawn() -> torch.Tensor:
        return torch.rand(n, generator=generator)

    sideless = torch.tensor([modality in _SIDELESS for modality in batch.modalities])
    mirrored = (drawn() < recipe.mirrored) & sideless
    moved, scaled = drawn() < recipe.moved, drawn() < recipe.scaled
    width = torch.where(scaled, torch.exp((drawn() - 0.5) * 0.5), 1.0)
    height = width * torch.where(scaled, torch.exp((drawn() - 0.5) * 0.2), 1.0)
    placed = torch.zeros(n, 2, 3)
    placed[:, 0, 0] = torch.where(mirrored, -width, width)
    placed[:, 1, 1] = height
    placed[:, 0, 2] = torch.where(moved, (drawn() - 0.5) * 0.3, 0.0)
    placed[:, 1, 2] = torch.where(moved, (drawn() - 0.5) * 0.3, 0.0)
    grid = F.affine_grid(placed, [n, 1, SIDE, SIDE], align_corners=False)
    embeddings = F.grid_sample(batch.embeddings, grid, padding_mode="border", align_corners=False)
    return replace(batch, embeddings=embeddings, coverage=F.grid_sample(batch.coverage, grid, align_corners=False))


def drop_channels(tokens: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return tokens [B, P, C] in which about half of the planes lack a share of the channels."""
    planes, _, channels = tokens.shape
    kept = torch.rand(planes, 1, channels, generator=generator) > share
    whole = torch.rand(planes, 1, 1, generator=generator) < 0.5
    return tokens * (kept | whole)


def random_bottleneck(coverage: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return lambda [B, P, C]: structures kept or removed, parts of them, smooth blobs, or everything faded alike.

    Parameters
    ----------
    coverage : torch.Tensor
        float [B, K, rows, cols].
    tokens : torch.Tensor
        float [B, P, C].
    generator : torch.Generator
        Decides everything.
    """
    batch, n_tokens, _ = tokens.shape
    side = coverage.shape[-1]

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, 1, generator=generator)

    flat = coverage.flatten(2)
    present = (flat.sum(dim=2) > 0.5).float() + 1e-6
    first = torch.multinomial(present, 1, generator=generator)
    second = torch.where(uniform(0, 1) < 0.3, torch.multinomial(present, 1, generator=generator), first)

    def of(chosen: torch.Tensor) -> torch.Tensor:
        return flat.gather(1, chosen[..., None].expand(-1, 1, n_tokens))[:, 0]

    inside = (torch.maximum(of(first), of(second)) > 0.25).float()
    grown = F.max_pool2d(inside.view(batch, 1, side, side), 3, 1, 1).flatten(1)
    inside = torch.where(uniform(0, 1) < 0.4, grown, inside)
    knots = torch.randn(batch, 1, 5, 5, generator=generator)
    blobs = F.interpolate(knots, size=(side, side), mode="bicubic").flatten(1)
    blobs = torch.sigmoid(6 * blobs + uniform(-3, 3))
    kind = torch.rand(batch, 1, generator=generator)
    level = torch.where(kind < 0.35, inside, 1 - inside)
    level = torch.where((kind >= 0.45) & (kind < 0.65), inside * blobs, level)
    level = torch.where((kind >= 0.65) & (kind < 0.85), blobs, level)
    high, low = uniform(0.35, 1.0), uniform(0.0, 0.12)
    level = low + (high - low) * level
    level = torch.where(kind >= 0.85, uniform(0.05, 1.0).expand(-1, n_tokens), level).clamp(0.005, 0.995)
    jitter = torch.randn(tokens.shape, generator=generator) * uniform(0, 1.5)[..., None]
    return torch.sigmoid(torch.logit(level)[..., None] + jitter)
