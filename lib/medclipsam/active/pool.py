"""The images to choose from, as arrays, kept up to date with the ledger at little cost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from medclipsam.active.ledger import Ledger

# Longer embeddings are projected to this many dimensions, so that 100,000 images take 50 MB and milliseconds.
DIMENSIONS = 128


class Pool:
    """All images of the studies that are here; position k of each array is the k-th image.

    Parameters
    ----------
    ledger : Ledger
        Where images, embeddings, scores, leases and labels come from.
    seed : int
        Of all that is drawn.

    Attributes
    ----------
    images : list of str
        Image ids, ascending.
    validation : numpy.ndarray
        bool [N]: of the validation set.
    presence : numpy.ndarray
        float64 [N]: presence score less its threshold; NaN where it was not asked.
    labelled : numpy.ndarray
        bool [N]: has a final label that is not rejected.
    leased : numpy.ndarray
        bool [N]: held by anyone, see `refresh`.
    batch : numpy.ndarray
        bool [N]: labelled in the open round, or leased: the batch so far.
    total, disagreement : numpy.ndarray
        float64 [N]: scores of the present network; NaN where there is none.
    classes : numpy.ndarray
        float64 [N, C]: scores by structure; NaN where there is none.
    found : numpy.ndarray
        bool [N, C]: which structures the present network finds.
    structures : list of str
        The C names.
    round : int
        The open round, from 1.
    """

    def __init__(self, ledger: Ledger, seed: int = 0) -> None:
        self._ledger = ledger
        self.seed = seed
        self._seen: tuple[int, int] | None = None
        self.refresh()

    def __len__(self) -> int:
        return len(self.images)

    def refresh(self) -> None:
        """Take in what has changed since the last look."""
        seen = self._ledger.version("images"), self._ledger.version("labels")
        if self._seen is None or seen[0] != self._seen[0]:
            self._load_images()
            self._seen = None
        if self._seen is None or seen[1] != self._seen[1]:
            self._load_labels()
        self._seen = seen
        self._load_leases()

    def reserve(self, image: str) -> None:
        """Count an image as leased until the next `refresh`."""
        self.leased[self._place[image]] = True
        self.batch = self._in_round | self.leased

    def planes(self, position: int) -> Sequence[int]:
        """Return the planes of a volume to look at, the most uncertain first."""
        return self._planes.get(self.images[position], ())

    def uniform(self, stream: int) -> np.ndarray:
        """Return random numbers, float64 [N] in (0, 1).

        Each depends on the seed, the open round, the stream and the image's id alone, and not on which other images
        there are or on how often was asked.
        """
        with np.errstate(over="ignore"):
            mixed = self._hashes + np.uint64(0x9E3779B97F4A7C15) * np.uint64(
                1 + stream + 1000 * self.round + 1_000_000_007 * self.seed
            )
            # the finaliser of splitmix64 (Steele et al., OOPSLA 2014)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
        return ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53

    def distance(self, *, batch: bool) -> np.ndarray:
        """Return how far each image is from what was chosen, float64 [N].

        Parameters
        ----------
        batch : bool
            Whether to measure to the batch so far, else to all that is labelled or leased.

        Returns
        -------
        numpy.ndarray
            1 - cosine to the nearest; 2, the most that can be, where nothing was chosen; NaN for images without an
            embedding.
        """
        result = np.where(self.embedded, (self._to_batch if batch else self._to_labelled).near, np.nan)
        held = self._vectors[self.leased & self.embedded]
        if len(held):
            nearest = 1.0 - (self._vectors @ held.T).max(axis=1)
            result = np.fmin(result, np.where(self.embedded, nearest, np.nan))
        return result

    def typicality(self) -> np.ndarray:
        """Return the cosine of each image's embedding to the mean of all, float64 [N]; NaN without an embedding."""
        mean = self._vectors.sum(axis=0)
        norm = float(np.linalg.norm(mean))
        return np.where(self.embedded, self._vectors @ (mean / norm if norm else mean), np.nan)

    def _load_images(self) -> None:
        rows = self._ledger.images()
        self.images = [str(row["image"]) for row in rows]
        self._place = {image: place for place, image in enumerate(self.images)}
        self.validation = np.array([row["validation"] for row in rows], dtype=bool)
        self._finished = np.array([row["finished"] for row in rows], dtype=bool)
        self.presence = np.array([row["presence"] for row in rows], dtype=np.float64)
        digests = b"".join(hashlib.blake2b(image.encode(), digest_size=8).digest() for image in self.images)
        self._hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
        self._load_vectors()
        scores = self._ledger.scores()
        self.structures = sorted({name for score in scores.values() for name in score.classes})
        self.total = np.full(len(rows), np.nan)
        self.disagreement = np.full(len(rows), np.nan)
        self.classes = np.full((len(rows), len(self.structures)), np.nan)
        self.found = np.zeros((len(rows), len(self.structures)), dtype=bool)
        self._planes = {}
        for image, score in scores.items():
            place = self._place.get(image)
            if place is None:
                continue
            self.total[place] = score.total
            if score.disagreement is not None:
                self.disagreement[place] = score.disagreement
            self.classes[place] = [score.classes.get(name, np.nan) for name in self.structures]
            self.found[place] = [name in score.found for name in self.structures]
            self._planes[image] = score.planes

    def _load_vectors(self) -> None:
        found = {image: vector for image, vector in self._ledger.embeddings().items() if image in self._place}
        size = max((len(vector) for vector in found.values()), default=1)
        vectors = np.zeros((len(self.images), size), dtype=np.float32)
        for image, vector in found.items():
            vectors[self._place[image]] = vector
        if size > DIMENSIONS:
            # distances survive a random projection (Johnson and Lindenstrauss, 1984)
            vectors = vectors @ np.random.default_rng(0).normal(size=(size, DIMENSIONS)).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.embedded = norms[:, 0] > 0
        self._vectors = vectors / np.where(norms > 0, norms, 1)
        self._to_labelled, self._to_batch = _Nearest(self._vectors), _Nearest(self._vectors)

    def _load_labels(self) -> None:
        self.round = self._ledger.rounds()[-1].number
        every = [each for each in self._ledger.labels() if each.image in self._place]
        labels = [each for each in every if not each.rejected]
        rejected = self._mark([each.image for each in every if each.rejected])
        self.labelled = self._mark([each.image for each in labels]) | (self._finished & ~rejected)
        self._in_round = self._mark([each.image for each in labels if each.round == self.round])
        self._to_labelled.measure(self.labelled)
        self._to_batch.measure(self._in_round)

    def _load_leases(self) -> None:
        self.leased = self._mark([lease.image for lease in self._ledger.leases() if lease.image in self._place])
        self.batch = self._in_round | self.leased

    def _mark(self, images: Sequence[str]) -> np.ndarray:
        marked = np.zeros(len(self.images), dtype=bool)
        marked[[self._place[image] for image in images]] = True
        return marked


class _Nearest:
    """Distances to the nearest of a set of images that mostly grows, so that only what is new is measured."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors
        self._embedded = vectors.any(axis=1)
        self._chosen = np.zeros(len(vectors), dtype=bool)
        self.near = np.full(len(vectors), 2.0)

    def measure(self, chosen: np.ndarray) -> None:
        """Take in the set as it is now, bool [N]."""
        if (self._chosen & ~chosen).any():
            self._chosen = np.zeros_like(chosen)
            self.near = np.full(len(chosen), 2.0)
        fresh = self._vectors[chosen & ~self._chosen & self._embedded]
        for start in range(0, len(fresh), 64):
            self.near = np.minimum(self.near, 1.0 - (self._vectors @ fresh[start : start + 64].T).max(axis=1))
        self._chosen = chosen.copy()
