"""LiteMedSAM's image encoder: a TinyViT for 256 pixels, for inference with frozen weights.

The layers and the names of their parameters are those of the published checkpoint (Ma et al., LiteMedSAM; TinyViT after
Wu et al., ECCV 2022, in MobileSAM's variant). The convolutions of stage 0 and of every block are followed by batch
normalisation, which `TinyViT.fold` merges into them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

# Pixels of a side of the input; side and channels of the embedding.
IMAGE_SIZE = 256
GRID = 64
EMBED_DIM = 256

_WIDTHS = (64, 128, 160, 320)
_DEPTHS = (2, 2, 6, 2)
_HEADS = (2, 4, 5, 10)
_WINDOWS = (7, 7, 14, 7)
# Side of the feature maps in each stage; the last one keeps the side of the one before it.
_SIDES = (256, 128, 64, 64)
_EXPANSION = 4


class ConvNorm(nn.Module):
    """Convolution and batch normalisation; after `fold` one convolution with a bias."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        self.bn: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return self.bn(self.c(x))

    def fold(self) -> None:
        """Merge the normalisation's running statistics into the convolution."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.c = fuse_conv_bn_eval(self.c, self.bn)
            self.bn = nn.Identity()


class InvertedBottleneck(nn.Module):
    """Residual block of stage 0: expand, depthwise 3 x 3, project."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim * _EXPANSION
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to the same shape."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Downsample(nn.Module):
    """Transition to the next stage: another width and, with stride 2, half the side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, outputs, H / stride, W / stride]."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Attention inside square windows, with a learned bias for each head and each |row|, |column| distance."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map windows of tokens [B, N, C], N = window * window, to the same shape."""
        batch, count, dim = x.shape
        # The channels of one head are its query, key and value one after the other.
        qkv = self.qkv(self.norm(x)).view(batch, count, self.heads, 3, dim // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias())
        return self.proj(y.transpose(1, 2).reshape(batch, count, dim))

    def bias(self) -> torch.Tensor:
        """Return the bias of every pair of tokens, [heads, N, N]."""
        place = torch.arange(self.window, device=self.attention_biases.device)
        apart = (place[:, None] - place).abs()
        index = apart[:, None, :, None] * self.window + apart[None, :, None, :]
        count = self.window * self.window
        return self.attention_biases[:, index.reshape(count, count)]


class Mlp(nn.Module):
    """Normalisation, then two linear layers with GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * _EXPANSION)
        self.fc2 = nn.Linear(dim * _EXPANSION, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., C] to the same shape."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Window attention, a depthwise 3 x 3 convolution and an MLP on a map of tokens."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.mlp = Mlp(dim)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, H, W, C] to the same shape."""
        x = x + self._attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, dim = x.shape
        window = self.window
        padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = padded.shape[1] // window, padded.shape[2] // window
        windows = padded.view(batch, rows, window, columns, window, dim).transpose(2, 3)
        y = self.attn(windows.reshape(-1, window * window, dim))
        y = y.view(batch, rows, columns, window, window, dim).transpose(2, 3).reshape(padded.shape)
        return y[:, :height, :width]


class Stage(nn.Module):
    """The blocks of one resolution and the transition to the next; stage 0 is convolutional."""

    def __init__(self, number: int) -> None:
        super().__init__()
        dim = _WIDTHS[number]
        self.convolutional = number == 0
        self.blocks = nn.ModuleList(
            InvertedBottleneck(dim) if self.convolutional else Block(dim, _HEADS[number], _WINDOWS[number])
            for _ in range(_DEPTHS[number])
        )
        self.downsample: Downsample | nn.Identity = nn.Identity()
        if number + 1 < len(_WIDTHS):
            self.downsample = Downsample(dim, _WIDTHS[number + 1], _SIDES[number] // _SIDES[number + 1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to the input of the next stage."""
        if self.convolutional:
            for block in self.blocks:
                x = block(x)
        else:
            x = x.permute(0, 2, 3, 1)
            for block in self.blocks:
                x = block(x)
            x = x.permute(0, 3, 1, 2)
        return self.downsample(x)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to the same shape."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """LiteMedSAM's image encoder.

    Attributes
    ----------
    img_size : int
        Side of the square input in pixels, 256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.img_size = IMAGE_SIZE
        stem = nn.Sequential(ConvNorm(3, _WIDTHS[0] // 2), nn.GELU(), ConvNorm(_WIDTHS[0] // 2, _WIDTHS[0]))
        self.patch_embed = nn.Sequential(OrderedDict(seq=stem))
        self.layers = nn.ModuleList(Stage(number) for number in range(len(_WIDTHS)))
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], EMBED_DIM, 1, bias=False),
            ChannelNorm(EMBED_DIM),
            nn.Conv2d(EMBED_DIM, EMBED_DIM, 3, padding=1, bias=False),
            ChannelNorm(EMBED_DIM),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Parameters
        ----------
        x : Tensor
            Float, shape [B, 3, 256, 256], values in [0, 1].

        Returns
        -------
        Tensor
            Float, shape [B, 256, 64, 64].
        """
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.neck(x)

    def fold(self) -> None:
        """Merge every batch normalisation into its convolution, in place; the outputs stay the same up to rounding."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
