"""What is used of open_clip; part of it is not its public interface, so that its version is bounded.

open_clip takes seconds to import, and is imported when it is used. A module of it that needs torch alone is imported
without the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from medclipsam.base.errors import WeightsError
from medclipsam.base.imports import import_part
from medclipsam.encoders.towers import SplitTower

if TYPE_CHECKING:
    from open_clip import CLIP

# Beginnings of the names of the parameters that project features into the common space.
PROJECTIONS = ("visual.proj", "visual.head.", "text_projection", "text.proj.", "text.text_projection")


class OpenClipTower(SplitTower):
    """open_clip's own `VisionTransformer`, split at a block."""

    def __init__(self, visual: Any) -> None:
        if getattr(visual, "attn_pool", None) is not None:
            raise WeightsError(
                "The vision tower pools by attention; only class-token and average pooling are supported."
            )
        self._visual = visual
        self._blocks: Sequence[Any] = visual.transformer.resblocks
        self._batch_first = bool(visual.transformer.batch_first)
        self.n_blocks = len(self._blocks)
        self.n_prefix_tokens = 1
        self.grid = tuple(visual.grid_size)

    def prefix(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        return self._run(self._visual._embeds(x), 0, layer + 1)

    def suffix(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        pooled, _ = self._visual._pool(self._run(tokens, layer + 1, self.n_blocks))
        return pooled if self._visual.proj is None else pooled @ self._visual.proj

    def patch_features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        patches = self._visual.ln_post(self._run(tokens, layer + 1, self.n_blocks))[:, 1:]
        return patches if self._visual.proj is None else patches @ self._visual.proj

    def _run(self, tokens: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if not self._batch_first:
            tokens = tokens.transpose(0, 1)
        for block in self._blocks[start:stop]:
            tokens = block(tokens)
        return tokens if self._batch_first else tokens.transpose(0, 1)


def load_model(source: str, *, pretrained: str | None = None, **overrides: Any) -> tuple[Any, Any]:
    """Return an open_clip model and its tokenizer.

    Parameters
    ----------
    source : str
        A name of `open_clip.list_models()`, `hf-hub:OWNER/REPOSITORY`, or `local-dir:FOLDER`.
    pretrained : str, optional
        A file of weights or one of open_clip's tags.
    **overrides
        Of `open_clip.create_model`.
    """
    import open_clip

    model = open_clip.create_model(source, pretrained=pretrained, **overrides)
    return model, open_clip.get_tokenizer(source)


def new_clip(embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> CLIP:
    """Return open_clip's CLIP with random weights; `vision` and `text` are fields of its two configurations."""
    import open_clip
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return open_clip.CLIP(embed_dim=embed_dim, vision_cfg=CLIPVisionCfg(**vision), text_cfg=CLIPTextCfg(**text))


def is_own_transformer(visual: Any) -> bool:
    """Return whether a vision tower is open_clip's own transformer."""
    from open_clip.transformer import VisionTransformer

    return isinstance(visual, VisionTransformer)


def wraps_timm(visual: Any) -> bool:
    """Return whether a vision tower is open_clip's wrapper round a model of timm, its `trunk`."""
    from open_clip.timm_model import TimmModel

    return isinstance(visual, TimmModel)


def input_settings(model: Any) -> tuple[int, Sequence[float], Sequence[float]]:
    """Return a model's image size in pixels, and the mean and standard deviation that its input is normalised by."""
    from open_clip.transform import PreprocessCfg

    settings = PreprocessCfg(**model.visual.preprocess_cfg)
    size = settings.size if isinstance(settings.size, int) else settings.size[0]
    return int(size), settings.mean, settings.std


def byte_pair_tokenizer(**options: Any) -> Any:
    """Return open_clip's `SimpleTokenizer`."""
    return import_part("open_clip", "tokenizer").SimpleTokenizer(**options)


def token_counter(tokenizer: Any) -> Callable[[str], int] | None:
    """Return how to count a text's tokens before the tokenizer cuts them at the context length; None if unknown."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None:  # open_clip's HFTokenizer round a transformers tokenizer
        return lambda text: len(inner(text)["input_ids"])
    if hasattr(tokenizer, "encode"):  # open_clip's SimpleTokenizer; start and end are added later
        return lambda text: len(tokenizer.encode(text)) + 2
    return None
