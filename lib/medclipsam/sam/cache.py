"""Image embeddings by plane and weights, least recently used out first, bounded in bytes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from cachetools import LRUCache

DEFAULT_MAX_BYTES = 512 * 2**20

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Embedding:
    """One plane as SAM's image encoder sees it, with what is needed to bring masks back to the plane.

    Parameters
    ----------
    features : Tensor
        Float, shape [1, C, h, w].
    plane_shape : tuple of int
        (H, W) of the plane in pixels.
    input_shape : tuple of int
        (H, W) of the plane inside the encoder's square input, before padding.
    """

    features: torch.Tensor
    plane_shape: tuple[int, int]
    input_shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes that the features take."""
        return self.features.element_size() * self.features.nelement()


class EmbeddingCache:
    """Thread-safe LRU cache of embeddings; several models may share one, since a key names the weights.

    Parameters
    ----------
    max_bytes : int
        Upper bound of the bytes kept, 512 MiB by default; 0 keeps nothing. An embedding larger than the bound is
        not kept, and drives out nothing.
    device : str, torch.device or None
        Where entries are kept: "cpu" saves GPU memory for one small copy per decode; None leaves them where they
        were computed.

    Attributes
    ----------
    hits : int
        How often `get` has found an entry.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES, device: str | torch.device | None = None) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes cannot be {max_bytes}; allowed: 0 or more.")
        self.max_bytes = max_bytes
        self.device = None if device is None else torch.device(device)
        self._entries: LRUCache[Key, Embedding] = LRUCache(max_bytes, getsizeof=lambda entry: entry.nbytes)
        self.hits = 0
        self._lock = threading.Lock()

    def get(self, key: Key) -> Embedding | None:
        """Return the entry of `key` and mark it as just used, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self.hits += 1
            return entry

    def put(self, key: Key, embedding: Embedding) -> None:
        """Keep an embedding, dropping the least recently used ones until it fits."""
        if embedding.nbytes > self.max_bytes:
            return
        if self.device is not None:
            features = embedding.features.to(self.device)
            embedding = Embedding(features, embedding.plane_shape, embedding.input_shape)
        with self._lock:
            self._entries[key] = embedding

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()

    @property
    def nbytes(self) -> int:
        """Bytes kept now."""
        return int(self._entries.currsize)

    def keys(self) -> list[Key]:
        """Return the keys kept now."""
        with self._lock:
            return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
