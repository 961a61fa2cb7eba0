"""A frozen CLIP: texts and planes to one embedding space, with the vision tower split for saliency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import nn

from medclipsam.base.engine import chosen_engine, compile_forward
from medclipsam.base.errors import InputError
from medclipsam.encoders.fit import Fit, fit_plane
from medclipsam.encoders.sam_clip import EmbeddingInput, check_fit
from medclipsam.encoders.towers import EmbeddingTower, split_tower

Tokenizer = Callable[[list[str]], torch.Tensor]

# A text feature is a few kB; a thousand texts are nothing beside one activation.
_TEXT_CACHE = 1024
# Tokens of a ViT-B plane are 0.6 MB; a second prompt on the same image then skips the first half of the tower.
_PREFIX_CACHE = 32


@dataclass(frozen=True)
class InputMaker:
    """Plane -> the tower's input, by the settings of an encoder; see `Encoder.preprocess`."""

    image_size: int
    mean: torch.Tensor
    std: torch.Tensor
    dtype: torch.dtype
    fit: str = "letterbox"

    def __call__(self, plane: np.ndarray) -> torch.Tensor:
        """Return [3, size, size] on the CPU for uint8 [H, W, 3]."""
        return self.fitted(plane)[0]

    def fitted(self, plane: np.ndarray) -> tuple[torch.Tensor, Fit]:
        """Return the input and the way back to the plane."""
        pixels, geometry = fit_plane(plane, self.image_size, self.fit)
        return ((pixels - self.mean) / self.std).to(self.dtype), geometry


@dataclass(frozen=True)
class PlaneInput:
    """A plane as an encoder sees it.

    Attributes
    ----------
    pixels : numpy.ndarray
        uint8 [H, W, 3], the plane.
    tensor : torch.Tensor
        [3, size, size], see `Encoder.preprocess`.
    fit : Fit
        The way back from the input to the plane.
    digest : bytes
        What identifies plane and fit; part of cache keys, and with the seed what decides M2IB's noise.
    """

    pixels: np.ndarray
    tensor: torch.Tensor
    fit: Fit
    digest: bytes


class _Half(nn.Module):
    """One half of a vision tower, `run`, as a module with the tower's parameters."""

    def __init__(self, visual: nn.Module, run: Callable[[torch.Tensor, int], torch.Tensor], layer: int) -> None:
        super().__init__()
        self.visual = visual
        self._run = run
        self._layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, self._layer)


class Encoder:
    """An open_clip model, frozen, in evaluation mode, with its tokenizer and preprocessing.

    Parameters
    ----------
    model : open_clip.CLIP or open_clip.CustomTextCLIP
        An open_clip model with `visual`, `encode_text` and `logit_scale`.
    tokenizer : callable
        list of str -> int64 [B, context].
    image_size : int
        Side of the square input in pixels.
    mean, std : sequence of float
        Normalisation of the three channels of an input in [0, 1].
    identity : str
        sha256 of the weights; part of every cache key and every result.
    name : str
        Name of the weights.
    defaults : mapping, optional
        What the weights recommend: `saliency` (beta, variance, layer, steps, samples, smooth, clip_percentile,
        contrast), `saliency_targets` (what of it differs for known targets, by name), `least_agreement` (by the
        name of a known target: the Dice of SAM's mask and the coarse mask below which the latter is kept),
        `presence_threshold`, `presence_thresholds` (by the name of a known target, before the former),
        `free_text_threshold`, `volume_thresholds` (by the name of a known target: what the best plane of a volume
        needs before the target is followed), `patch_rivals` (names of known targets: in volumes, a mask whose patches
        are more similar to another structure is dropped), and `same_meaning` (least cosine of a text with a known
        target's captions at which it means that target).
    count_tokens : callable, optional
        Text -> number of tokens before any cut, special tokens included; lets a text beyond the context be refused.
    device : str or torch.device
        Where the model runs.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        identity: str,
        name: str,
        defaults: Mapping[str, Any] | None = None,
        count_tokens: Callable[[str], int] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.identity = identity
        self.name = name
        self.defaults = dict(defaults or {})
        self.tower = split_tower(model.visual)
        self._count_tokens = count_tokens
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)
        self._texts: LRUCache[str, torch.Tensor] = LRUCache(_TEXT_CACHE)
        self._tokens: LRUCache[tuple[bytes, int], torch.Tensor] = LRUCache(_PREFIX_CACHE)
        self._engine: str | None = "torch"
        self._converted: dict[tuple[str, int], Callable[[torch.Tensor], torch.Tensor]] = {}

    def use_engine(self, engine: str | None = None) -> Encoder:
        """Run the vision tower by an engine from now on, where no gradient is needed; return the encoder itself.

        The weights must not change afterwards. The two halves of the first layer that is asked for are converted when
        they first run. Those of other layers stay with torch, since each pair takes memory for the weights once more.

        Parameters
        ----------
        engine : {"auto", "torch", "openvino", "openvino-bf16"}, optional
            See `medclipsam.base.engine`.

        Raises
        ------
        OptionError
            If the engine cannot be used.
        """
        chosen_engine(self.device, engine)
        self._engine = engine
        self._converted.clear()
        return self

    def _half(self, name: str, x: torch.Tensor, layer: int) -> torch.Tensor:
        """Run the tower's "prefix" or "suffix" at a layer on a batch."""
        run = getattr(self.tower, name)
        if self._engine == "torch" or any(layer != used for _, used in self._converted):
            return run(x, layer)
        if (name, layer) not in self._converted:
            self._converted[name, layer] = compile_forward(
                _Half(self.model.visual, run, layer).eval(),
                (x[:1],),
                f"{self.identity}:{name} {layer}",
                name=f"CLIP {self.name}, {name} at layer {layer}",
                device=self.device,
                engine=self._engine,
            )
        return self._converted[name, layer](x)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def logit_scale(self) -> float:
        """The model's own scale of a cosine (CLIP's exp of the learnt temperature)."""
        return float(self.model.logit_scale.exp())

    def double(self) -> Encoder:
        """Turn the model to float64 in place (for exact comparisons) and return self."""
        self.model.double()
        self.forget()
        return self

    def preprocess(self, plane: np.ndarray, fit: str = "letterbox") -> tuple[torch.Tensor, Fit]:
        """Make the tower's input from a plane.

        Parameters
        ----------
        plane : numpy.ndarray
            uint8 [H, W, 3].
        fit : {"letterbox", "squash", "crop"}
            See `fit_plane`.

        Returns
        -------
        tensor : torch.Tensor
            Normalised [3, size, size] on the CPU, in the model's dtype.
        geometry : Fit
            The way back to the plane.
        """
        return self.input_maker(fit).fitted(plane)

    def input_maker(self, fit: str = "letterbox") -> InputMaker | EmbeddingInput:
        """Return what `preprocess` does to a plane, without the model: worker processes can be sent it.

        Raises
        ------
        OptionError
            If the weights take planes in one fit only, and this is another.
        """
        if isinstance(self.tower, EmbeddingTower):
            check_fit(fit)
            return EmbeddingInput(self.tower.embedder.prepare, self.image_size, self.dtype)
        return InputMaker(self.image_size, self._mean, self._std, self.dtype, fit)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts; each text is run once and remembered.

        Parameters
        ----------
        texts : sequence of str
            One caption each.

        Returns
        -------
        torch.Tensor
            [len(texts), E], unit length.

        Raises
        ------
        InputError
            If a text is empty or longer than the model's context.
        """
        for text in texts:
            if not text.strip():
                raise InputError("A text to look for is empty; write what to find, for example 'both lungs'.")
            self._check_length(text)
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        fresh = {}
        if new:
            tokens = self.tokenizer(new).to(self.device)
            features = F.normalize(self.model.encode_text(tokens), dim=-1)
            fresh = dict(zip(new, features, strict=True))
        # Read before the cache is trimmed, so that one large request cannot push out its own texts.
        result = torch.stack([fresh[text] if text in fresh else self._texts[text] for text in texts])
        self._texts.update(fresh)
        return result

    def text_prototype(self, captions: Sequence[str]) -> torch.Tensor:
        """Encode several captions of one thing, average and normalise them (text ensemble): [E]."""
        return F.normalize(self.encode_texts(captions).mean(dim=0), dim=-1)

    @torch.no_grad()
    def encode_images(self, inputs: torch.Tensor) -> torch.Tensor:
        """Encode preprocessed planes [B, 3, size, size] to unit vectors [B, E]."""
        last = self.tower.n_blocks - 1
        return self.features(self.tower.prefix(inputs.to(self.device), last), last)

    @torch.no_grad()
    def prefix_tokens(self, planes: Sequence[PlaneInput], layer: int) -> torch.Tensor:
        """Run planes up to and with a vision block; the latest planes are remembered.

        Parameters
        ----------
        planes : sequence of PlaneInput
            The planes.
        layer : int
            0-based block.

        Returns
        -------
        torch.Tensor
            [B, 1+P, D], on the device.
        """
        keys = [(plane.digest, layer) for plane in planes]
        new = {key: plane for key, plane in zip(keys, planes, strict=True) if key not in self._tokens}
        fresh = {}
        if new:
            if isinstance(self.tower, EmbeddingTower):
                tokens = torch.stack([self.tower.embed(plane.pixels, layer) for plane in new.values()])
            else:
                inputs = torch.stack([plane.tensor for plane in new.values()])
                tokens = self._half("prefix", inputs.to(self.device), layer)
            fresh = {key: row.clone() for key, row in zip(new, tokens, strict=True)}
        result = torch.stack([fresh[key] if key in fresh else self._tokens[key] for key in keys])
        self._tokens.update(fresh)
        return result

    @torch.no_grad()
    def features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        """Run tokens [B, 1+P, D] of a vision block to the end: unit vectors [B, E]."""
        return F.normalize(self._half("suffix", tokens, layer), dim=-1)

    @property
    def context_length(self) -> int:
        """Tokens that a text may have, special tokens included."""
        # The tokenizer's, not the tower's: a BERT has positions for more than its CLIP was trained with.
        return int(self.tokenizer(["a"]).shape[-1])

    def count_tokens(self, text: str) -> int | None:
        """Return how many tokens a text has before any cut; None where the tokenizer does not tell."""
        return None if self._count_tokens is None else self._count_tokens(text)

    def forget_planes(self) -> None:
        """Drop what is remembered of planes; texts are kept."""
        self._tokens.clear()

    def forget(self) -> None:
        """Drop what is remembered of planes and texts, whose features a change of the weights makes wrong."""
        self._tokens.clear()
        self._texts.clear()

    def _check_length(self, text: str) -> None:
        used = self.count_tokens(text)
        if used is not None and used > self.context_length:
            raise InputError(
                f"The text {text[:40]!r}... has {used} tokens; the text encoder {self.name!r} reads at most "
                f"{self.context_length}."
            )
