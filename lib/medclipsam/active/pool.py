"""The images to choose from, as arrays, kept up to date with the ledger at little cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medclipsam.active.ledger import Ledger, Score

# Longer embeddings are projected to this many dimensions, so that 100,000 images take 50 MB and milliseconds.
DIMENSIONS = 128
# Changes of no more images than this are taken in one by one.
_FEW = 2000


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
        bool [N]: has a final label that is not rejected, or several that wait for a consensus.
    leased : numpy.ndarray
        bool [N]: held by anyone, see `refresh`.
    closed : numpy.ndarray
        bool [N]: kept from whoever asks, see `close`.
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

    def refresh(self, *, reload: bool = True) -> bool:
        """Take in what has changed since the last look, and return whether that was all of it.

        Parameters
        ----------
        reload : bool
            Whether images that came or went, and changes of very many, may be taken in too, which takes seconds for
            100,000 images; else they wait for the next look.
        """
        seen, complete = (self._ledger.version("images"), self._ledger.version("labels")), True
        if self._seen is None:
            self._load_images()
        elif seen[0] != self._seen[0] and not self._update(self._seen[0]):
            if reload:
                self._load_images()
                self._seen = None
            else:
                seen, complete = (self._seen[0], seen[1]), False
        if self._seen is None or seen[1] != self._seen[1]:
            self._load_labels()
        self._seen = seen
        self.close(())
        self._load_leases()
        return complete

    def reserve(self, image: str) -> None:
        """Count an image as leased until the next `refresh`."""
        self.leased[self._place[image]] = True
        self._measure()

    def close(self, images: Iterable[str]) -> None:
        """Keep images, and no others, from whoever asks now."""
        self.closed = self._mark([image for image in images if image in self._place])

    def holds(self, image: str) -> bool:
        """Return whether an image is here."""
        return image in self._place

    def is_leased(self, image: str) -> bool:
        """Return whether anyone holds an image that is here."""
        return bool(self.leased[self._place[image]])

    def planes_of(self, image: str) -> tuple[int, ...]:
        """Return the planes of a volume to look at, the most uncertain first."""
        return tuple(self._planes.get(image, ()))

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
        return np.where(self.embedded, (self._to_batch if batch else self._to_taken).near, np.nan)

    def typicality(self) -> np.ndarray:
        """Return the cosine of each image's embedding to the mean of all, float64 [N]; NaN without an embedding."""
        mean = self._vectors.sum(axis=0)
        norm = float(np.linalg.norm(mean))
        return np.where(self.embedded, self._vectors @ (mean / norm if norm else mean), np.nan)

    def _update(self, since: int) -> bool:
        """Take in the images that have changed; returns whether that could be done without loading all."""
        touched = self._ledger.touched(since, _FEW)
        if touched is None:
            return False
        rows = self._ledger.images(touched)
        if {row["image"] for row in rows} != set(touched) or not self._place.keys() >= set(touched):
            return False
        places = [self._place[image] for image in touched]
        vectors, scores = self._ledger.embeddings(touched), self._ledger.scores(touched)
        sizes = {len(vector) for vector in vectors.values()}
        structures = {name for score in scores.values() for name in score.classes}
        if sizes - {self._size} or structures - set(self.structures):
            return False
        for row in rows:
            place = self._place[row["image"]]
            if (bool(self.validation[place]), bool(self._finished[place])) != (row["validation"], row["finished"]):
                self.validation[place], self._finished[place] = row["validation"], row["finished"]
                finished = self._finished[place] and not self._rejected[place]
                self.labelled[place] = finished or self._named[place] or self._waiting[place]
            self.presence[place] = np.nan if row["presence"] is None else row["presence"]
        fresh = np.zeros((len(touched), self._size), np.float32)
        for row_number, image in enumerate(touched):
            if image in vectors:
                fresh[row_number] = vectors[image]
        fresh = self._unit(fresh)
        if not np.array_equal(fresh, self._vectors[places]):
            self._vectors[places] = fresh
            self.embedded[places] = fresh.any(axis=1)
            self._to_taken.replaced(places)
            self._to_batch.replaced(places)
        self._take_scores(touched, scores)
        return True

    def _load_images(self) -> None:
        rows = self._ledger.images()
        self.images = [row["image"] for row in rows]
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
        self._planes: dict[str, Sequence[int]] = {}
        self._take_scores([image for image in scores if image in self._place], scores)

    def _take_scores(self, images: Sequence[str], scores: Mapping[str, Score]) -> None:
        """Write the scores of images, or that they have none, into the arrays."""
        places = [self._place[image] for image in images]
        none = Score(np.nan)
        given = [scores.get(image, none) for image in images]
        self.total[places] = [score.total for score in given]
        self.disagreement[places] = [np.nan if score.disagreement is None else score.disagreement for score in given]
        for column, name in enumerate(self.structures):
            self.classes[places, column] = [score.classes.get(name, np.nan) for score in given]
            self.found[places, column] = [name in score.found for score in given]
        for image, score in zip(images, given, strict=True):
            if score.planes or image in self._planes:
                self._planes[image] = score.planes

    def _load_vectors(self) -> None:
        found = {image: vector for image, vector in self._ledger.embeddings().items() if image in self._place}
        self._size = max((len(vector) for vector in found.values()), default=1)
        vectors = np.zeros((len(self.images), self._size), dtype=np.float32)
        if found:
            vectors[[self._place[image] for image in found]] = np.stack(list(found.values()))
        self._vectors = self._unit(vectors)
        self.embedded = self._vectors.any(axis=1)
        self._to_taken, self._to_batch = _NearestDistances(self._vectors), _NearestDistances(self._vectors)

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        """Return embeddings as they are compared, float32 [N, D], unit length or 0."""
        if self._size > DIMENSIONS:
            # distances survive a random projection (Johnson and Lindenstrauss, 1984)
            projection = np.random.default_rng(0).normal(size=(self._size, DIMENSIONS)).astype(np.float32)
            vectors = vectors @ projection
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: np.ndarray = vectors / np.where(norms > 0, norms, 1)
        return unit

    def _load_labels(self) -> None:
        self.round = self._ledger.rounds()[-1].number
        every = [each for each in self._ledger.labels() if each.image in self._place]
        labels = [each for each in every if not each.rejected]
        self._rejected = self._mark([each.image for each in every if each.rejected])
        self._named = self._mark([each.image for each in labels])
        self._waiting = self._mark([each.image for each in self._ledger.waiting() if each.image in self._place])
        self.labelled = self._named | self._waiting | (self._finished & ~self._rejected)
        self._in_round = self._mark([each.image for each in labels if each.round == self.round])

    def _load_leases(self) -> None:
        self.leased = self._mark([lease.image for lease in self._ledger.leases() if lease.image in self._place])
        self._measure()

    def _measure(self) -> None:
        self.batch = self._in_round | self.leased
        self._to_taken.measure(self.labelled | self.leased)
        self._to_batch.measure(self.batch)

    def _mark(self, images: Sequence[str]) -> np.ndarray:
        marked = np.zeros(len(self.images), dtype=bool)
        marked[[self._place[image] for image in images]] = True
        return marked


class _NearestDistances:
    """Distances to the nearest of a set of images; only what a change of the set can reach is measured anew.

    Parameters
    ----------
    vectors : numpy.ndarray
        float32 [N, D], unit length or 0. Whoever changes a row says so with `replaced`.

    Attributes
    ----------
    near : numpy.ndarray
        float32 [N]: 1 - cosine to the nearest of the set; 2 where there is none.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors
        self._chosen = np.zeros(len(vectors), dtype=bool)
        self.near = np.full(len(vectors), 2.0, np.float32)
        # which one of the set it is; -1 for none
        self._by = np.full(len(vectors), -1)

    def replaced(self, places: Sequence[int]) -> None:
        """Measure anew what the replaced vectors at some places can reach."""
        lost = np.zeros_like(self._chosen)
        lost[places] = True
        again = self._chosen & lost
        self._drop(again, also=lost)
        self._add(again)

    def measure(self, chosen: np.ndarray) -> None:
        """Take in the set as it is now, bool [N]."""
        lost, new = self._chosen & ~chosen, chosen & ~self._chosen
        if lost.any():
            self._drop(lost)
        if new.any():
            self._add(new)

    def _drop(self, lost: np.ndarray, also: np.ndarray | None = None) -> None:
        """Take images out of the set; `also` marks further images that are measured anew."""
        self._chosen &= ~lost
        again = (self._by >= 0) & lost[self._by]
        if also is not None:
            again |= also
        places = np.flatnonzero(again)
        self.near[places], self._by[places] = 2.0, -1
        self._compare(places, np.flatnonzero(self._chosen))

    def _add(self, new: np.ndarray) -> None:
        self._chosen |= new
        self._compare(None, np.flatnonzero(new))

    def _compare(self, places: np.ndarray | None, members: np.ndarray) -> None:
        """Hold images (None: all) against members of the set."""
        members = members[self._vectors[members].any(axis=1)]
        mine = self._vectors if places is None else self._vectors[places]
        for start in range(0, len(members) if len(mine) else 0, 64):
            some = members[start : start + 64]
            cosines = mine @ self._vectors[some].T
            best = cosines.argmax(axis=1)
            away = 1.0 - np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]
            rows = np.flatnonzero(away < (self.near if places is None else self.near[places]))
            reached = rows if places is None else places[rows]
            self.near[reached], self._by[reached] = away[rows], some[best[rows]]
