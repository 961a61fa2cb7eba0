"""The embedded small CLIP: open_clip's classes, a convolutional stem, a vocabulary cut to what it was taught."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medclipsam.encoders.open_clip_adapter import byte_pair_tokenizer, new_clip

if TYPE_CHECKING:
    from open_clip import CLIP

    from medclipsam.encoders.text_tower import TwoTowerClip

PAD, UNKNOWN = 0, 1
_FIRST_WORD = 2


class ConvStem(nn.Module):
    """Convolutions in place of a patch embedding: [B, 3, H, W] to [B, width, H / patch, W / patch].

    A tiny transformer learns edges and speckle from few images only if it need not find convolution by itself.

    Parameters
    ----------
    width : int
        Channels of the output, the transformer's width.
    channels : int
        Channels of the first stage; the second has twice as many.
    patch : int
        Total stride, a multiple of 4.
    """

    def __init__(self, width: int, channels: int, patch: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _convolution(3, channels, 3, 2),
            _convolution(channels, 2 * channels, 3, 2),
            _Residual(2 * channels),
            _convolution(2 * channels, width, 5, patch // 4),
            _Residual(width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed images as a grid of tokens."""
        return self.inner(x)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _convolution(channels, channels, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.GELU()
    )


class CompactTokenizer:
    """open_clip's byte-pair tokenizer with its ids renumbered to the rows that are kept.

    Row 0 is padding and row 1 every byte pair outside the vocabulary. Start and end of text have the two highest
    rows, since open_clip reads the text's feature where the id is greatest.

    Parameters
    ----------
    vocabulary : sequence of str
        Byte pairs as open_clip's tokenizer spells them ("lung</w>"), each once.
    context_length : int
        Tokens a text has, start and end included; a longer one is cut.
    """

    def __init__(self, vocabulary: Sequence[str], context_length: int) -> None:
        self._base = byte_pair_tokenizer(context_length=context_length)
        self.context_length = context_length
        self.vocab_size = vocabulary_rows(vocabulary)
        self._rows = {self._base.encoder[word]: row for row, word in enumerate(vocabulary, start=_FIRST_WORD)}
        self._start, self._end = self.vocab_size - 2, self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Return the rows of a text, without start and end."""
        return [self._rows.get(token, UNKNOWN) for token in self._base.encode(text)]

    def __call__(self, texts: str | Sequence[str]) -> torch.Tensor:
        """Return int64 [len(texts), context_length]."""
        batch = [texts] if isinstance(texts, str) else list(texts)
        rows = torch.full((len(batch), self.context_length), PAD, dtype=torch.long)
        for line, text in zip(rows, batch, strict=True):
            words = self.encode(text)[: self.context_length - 2]
            line[: len(words) + 2] = torch.tensor([self._start, *words, self._end])
        return rows


def vocabulary_rows(vocabulary: Sequence[str]) -> int:
    """Return the number of embedding rows of a vocabulary: its words, padding, unknown, start and end."""
    return len(vocabulary) + _FIRST_WORD + 2


def collect_vocabulary(texts: Sequence[str]) -> list[str]:
    """Return the byte pairs that texts use, in the order of open_clip's own ids."""
    base = byte_pair_tokenizer()
    words = {word for text in texts for word in text.split()}
    return [base.decoder[token] for token in sorted({token for word in words for token in base.encode(word)})]


def build_small_clip(config: Mapping[str, Any]) -> tuple[CLIP, Callable[[list[str]], torch.Tensor]]:
    """Build the small CLIP, without weights.

    Parameters
    ----------
    config : mapping
        `image_size` (int), `vocab` (list of str, see `CompactTokenizer`) and `arch`: `embed_dim`, `patch_size`,
        `width`, `layers`, `heads`, `stem_channels`, `text_width`, `text_layers`, `text_heads`, `context_length`.

    Returns
    -------
    model : open_clip.CLIP
        Vision tower with a convolutional stem as its `conv1` and average pooling.
    tokenizer : callable
        list of str -> int64 [B, context_length].

    Raises
    ------
    KeyError
        If the config lacks an entry.
    """
    arch = config["arch"]
    vocabulary = config["vocab"]
    model = new_clip(
        arch["embed_dim"],
        {
            "image_size": config["image_size"],
            "patch_size": arch["patch_size"],
            "width": arch["width"],
            "layers": arch["layers"],
            "head_width": arch["width"] // arch["heads"],
            "pool_type": "avg",
        },
        {
            "context_length": arch["context_length"],
            "vocab_size": vocabulary_rows(vocabulary),
            "width": arch["text_width"],
            "layers": arch["text_layers"],
            "heads": arch["text_heads"],
        },
    )
    model.visual.conv1 = ConvStem(arch["width"], arch["stem_channels"], arch["patch_size"])
    return model, CompactTokenizer(vocabulary, arch["context_length"])


def build_embedding_clip(config: Mapping[str, Any]) -> tuple[TwoTowerClip, Callable[[list[str]], torch.Tensor]]:
    """Build a CLIP on a SAM's image embedding, without weights; its SAM is attached later.

    Parameters
    ----------
    config : mapping
        `vocab` as in `build_small_clip`; `arch`: the text tower's entries and `embed_dim` as there, and `vision`, see
        `EmbeddingVision`.

    Returns
    -------
    model : TwoTowerClip
    tokenizer : callable
        list of str -> int64 [B, context_length].

    Raises
    ------
    KeyError
        If the config lacks an entry.
    """
    from medclipsam.encoders.sam_clip import EmbeddingVision
    from medclipsam.encoders.text_tower import TwoTowerClip

    arch, vocabulary = config["arch"], config["vocab"]
    model = TwoTowerClip(
        EmbeddingVision({**arch["vision"], "embed_dim": arch["embed_dim"]}),
        embed_dim=arch["embed_dim"],
        context_length=arch["context_length"],
        vocab_size=vocabulary_rows(vocabulary),
        width=arch["text_width"],
        layers=arch["text_layers"],
        heads=arch["text_heads"],
    )
    return model, CompactTokenizer(vocabulary, arch["context_length"])
