"""What is known of each image and each round, in one SQLite file of the workspace.

Who works on which image (leases), which labels people have saved, from which mask, with what effort, what was trained
on them and what came of it. Every version of a label is kept. The server, its sub-processes and the command line may
use the file at once (write-ahead log); each change is one transaction, so that a killed process leaves none half made.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from medclipsam.active.effort import agreement, effort
from medclipsam.base.errors import InputError, LockedError
from medclipsam.studies.final import ANONYMOUS

# Raised by one with each change of the tables.
SCHEMA = 2

LEASE_SECONDS = 1800.0
# Seconds that a change waits for another process that writes to the file.
BUSY_SECONDS = 10.0
# Seconds after which a label that does not lie with the studies was removed there, and not just saved.
_SETTLED = 60.0
VERDICTS = ("approved", "rejected")
ENDS = ("published", "unvalidated", "refused", "failed", "interrupted")

Saved = Literal["new", "replaced", "same"]


class TooManyLeasesError(InputError):
    """Someone holds as many images as one person may."""


_schema = sa.MetaData()
_images = sa.Table(
    "images",
    _schema,
    sa.Column("image", sa.String, primary_key=True),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("validation", sa.Boolean, nullable=False),
    sa.Column("here", sa.Boolean, nullable=False),
    # whether a final label lies with the studies, also one that was put there by hand
    sa.Column("finished", sa.Boolean, nullable=False),
    # presence score less its threshold: below 0 the target is taken to be absent; null where nobody has asked
    sa.Column("presence", sa.Float),
)
_embeddings = sa.Table(
    "embeddings",
    _schema,
    sa.Column("image", sa.String, sa.ForeignKey("images.image"), primary_key=True),
    sa.Column("encoder", sa.String, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Index("embeddings_by_encoder", "encoder", "image"),
)
_scores = sa.Table(
    "scores",
    _schema,
    sa.Column("image", sa.String, sa.ForeignKey("images.image"), primary_key=True),
    sa.Column("network", sa.String, primary_key=True),
    sa.Column("total", sa.Float, nullable=False),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("disagreement", sa.Float),
    sa.Column("planes", sa.JSON, nullable=False),
    sa.Column("found", sa.JSON, nullable=False),
    sa.Index("scores_by_network", "network", "image"),
)
_leases = sa.Table(
    "leases",
    _schema,
    sa.Column("image", sa.String, sa.ForeignKey("images.image"), primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
)
_masks = sa.Table(
    "masks",
    _schema,
    sa.Column("content", sa.String, primary_key=True),
    sa.Column("shape", sa.JSON, nullable=False),
    sa.Column("voxels", sa.LargeBinary, nullable=False),
)
_shown = sa.Table(
    "shown",
    _schema,
    sa.Column("image", sa.String, sa.ForeignKey("images.image"), primary_key=True),
    sa.Column("holder", sa.String, primary_key=True),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("content", sa.String, sa.ForeignKey("masks.content"), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
_labels = sa.Table(
    "labels",
    _schema,
    sa.Column("number", sa.Integer, autoincrement=True, primary_key=True),
    sa.Column("image", sa.String, sa.ForeignKey("images.image"), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("reader", sa.String, nullable=False),
    sa.Column("saved", sa.Float, nullable=False),
    sa.Column("content", sa.String, sa.ForeignKey("masks.content"), nullable=False),
    sa.Column("absent", sa.Boolean, nullable=False),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("dice", sa.Float),
    sa.Column("path_length", sa.Integer),
    sa.Column("changed", sa.Integer),
    sa.Column("seconds", sa.Float),
    sa.Column("current", sa.Boolean, nullable=False),
)
_reviews = sa.Table(
    "reviews",
    _schema,
    sa.Column("label", sa.Integer, sa.ForeignKey("labels.number"), primary_key=True),
    sa.Column("reviewer", sa.String, primary_key=True),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
# The labels that count side by side: the last one of each reader of an image.
_readings = sa.Table(
    "readings",
    _schema,
    sa.Column("image", sa.String, sa.ForeignKey("images.image"), primary_key=True),
    sa.Column("reader", sa.String, primary_key=True),
    sa.Column("label", sa.Integer, sa.ForeignKey("labels.number"), nullable=False),
)
# Images with several readings and no consensus.
_waiting = sa.Table(
    "waiting",
    _schema,
    sa.Column("image", sa.String, sa.ForeignKey("images.image"), primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
    # of the two readers who agree least
    sa.Column("dice", sa.Float, nullable=False),
)
_consensus = sa.Table(
    "consensus",
    _schema,
    sa.Column("label", sa.Integer, sa.ForeignKey("labels.number"), primary_key=True),
    sa.Column("method", sa.String, nullable=False),
    # reader: number of the label, of those that it was made of
    sa.Column("readings", sa.JSON, nullable=False),
)
# Who is to read which image; an image need not be here yet.
_assignments = sa.Table(
    "assignments",
    _schema,
    sa.Column("image", sa.String, primary_key=True),
    sa.Column("reader", sa.String, primary_key=True),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
_rounds = sa.Table(
    "rounds",
    _schema,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("opened", sa.Float, nullable=False),
    # last label that the training could see
    sa.Column("upto", sa.Integer),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("network_before", sa.String),
    sa.Column("network_after", sa.String),
    sa.Column("metrics", sa.JSON, nullable=False),
)
_changes = sa.Table(
    "changes",
    _schema,
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)
# The images whose row, embedding or score a change has touched: by the number of the last such change.
_touched = sa.Table(
    "touched",
    _schema,
    sa.Column("image", sa.String, primary_key=True),
    sa.Column("change", sa.Integer, nullable=False, index=True),
)


@dataclass(frozen=True)
class Lease:
    """Who works on an image.

    Attributes
    ----------
    image, holder : str
    since, until : float
        Seconds since the epoch.
    """

    image: str
    holder: str
    since: float
    until: float


@dataclass(frozen=True)
class Label:
    """One version of an image's label, as a person has saved it.

    Attributes
    ----------
    number : int
        Grows with each version of any image.
    image, reader : str
        Whose label it is, and who saved it.
    round : int
        The round that it was saved in.
    saved : float
        Seconds since the epoch.
    absent : bool
        Whether it says that nothing is there.
    source : str
        What had made the mask that the reader was shown; "" where none is known.
    dice, path_length, changed : float, int, int or None
        What the reader changed, see `medclipsam.active.effort.Effort`; None without a mask before.
    seconds : float or None
        From the beginning of the lease to the saving, where the reader held one.
    current : bool
        Whether no later version has taken its place.
    verdicts : mapping of str to str
        "approved" or "rejected", by reviewer.
    method : str
        How it was made of the labels of several readers; "" where a person drew it as their own.
    readings : mapping of str to int
        Reader and number of the labels that a consensus was made of.
    """

    number: int
    image: str
    reader: str
    round: int
    saved: float
    absent: bool
    source: str
    dice: float | None
    path_length: int | None
    changed: int | None
    seconds: float | None
    current: bool
    verdicts: Mapping[str, str] = field(default_factory=dict)
    method: str = ""
    readings: Mapping[str, int] = field(default_factory=dict)

    @property
    def rejected(self) -> bool:
        """Whether a reviewer has rejected it."""
        return "rejected" in self.verdicts.values()

    @property
    def approved(self) -> bool:
        """Whether a reviewer has approved it, and none has rejected it."""
        return "approved" in self.verdicts.values() and not self.rejected


@dataclass(frozen=True)
class Waiting:
    """An image whose readers' labels wait for a consensus.

    Attributes
    ----------
    image : str
    readers : tuple of str
    since : float
        Seconds since the epoch.
    dice : float
        Of the two readers who agree least, averaged over structures.
    """

    image: str
    readers: tuple[str, ...]
    since: float
    dice: float


@dataclass(frozen=True)
class Assignment:
    """Who is to read an image.

    Attributes
    ----------
    image, reader : str
    by : str
        Who has said so.
    at : float
        Seconds since the epoch.
    done : bool
        Whether a label of the reader counts.
    """

    image: str
    reader: str
    by: str
    at: float
    done: bool


@dataclass(frozen=True)
class Round:
    """One turn: labels, training, what came of it.

    Attributes
    ----------
    number : int
        From 1.
    state : str
        "open", "training", or how the training ended: "published", "unvalidated", "refused", "failed", "interrupted".
    opened, started, ended : float or None
        Seconds since the epoch: of the round, of its training.
    network_before, network_after : str or None
        The published network when the training began, and the one that it made.
    metrics : mapping
        What the training said of it.
    """

    number: int
    state: str
    opened: float
    started: float | None = None
    ended: float | None = None
    network_before: str | None = None
    network_after: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What the present network says of an image.

    Attributes
    ----------
    total : float
        Uncertainty of the image.
    classes : mapping of str to float
        Uncertainty by structure.
    disagreement : float or None
        1 - Dice of the network's mask and the zero-shot mask.
    planes : sequence of int
        The most uncertain planes of a volume, the first most; empty for a single plane.
    found : sequence of str
        Structures that the network finds.
    """

    total: float
    classes: Mapping[str, float] = field(default_factory=dict)
    disagreement: float | None = None
    planes: Sequence[int] = ()
    found: Sequence[str] = ()


class Ledger:
    """The file.

    Parameters
    ----------
    path : pathlib.Path
        Made where it is not there, readable by its owner only.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    InputError
        If the file is no ledger, or one of a later version of this software.
    LockedError
        Here and in all methods: if another program keeps the file locked.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS})
        sa.event.listen(self._engine, "handle_error", _as_busy)
        sa.event.listen(self._engine, "connect", _prepare)
        sa.event.listen(self._engine, "begin", _begin)
        self._write = self._engine.execution_options(write=True)
        try:
            with self._write.begin() as db:
                version = int(db.exec_driver_sql("PRAGMA user_version").scalar_one())
                if version > SCHEMA:
                    raise InputError(
                        f"{path} was written by a later version of medclipsam (its format is {version}, this one "
                        f"reads up to {SCHEMA})."
                    )
                _schema.create_all(db)
                if version == 1:
                    _find_readings(db)
                db.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
                now = self._clock()
                db.execute(
                    insert(_rounds).values(number=1, opened=now, state="open", metrics={}).on_conflict_do_nothing()
                )
        except sa.exc.DatabaseError as error:
            self.close()
            raise InputError(f"{path} cannot be used as a ledger of rounds: {error.orig}.") from error

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def version(self, kind: Literal["images", "labels"]) -> int:
        """Return a number that grows with every change by any process.

        Parameters
        ----------
        kind : {"images", "labels"}
            Of the images with their presence, embeddings and scores, or of labels, reviews and rounds.
        """
        with self._engine.connect() as db:
            return int(db.execute(sa.select(_changes.c.count).where(_changes.c.kind == kind)).scalar() or 0)

    # -- images ---------------------------------------------------------------------------------------------------

    def sync_images(self, images: Mapping[str, tuple[str, bool]], finished: Collection[str] = ()) -> None:
        """Take in which images there are.

        Parameters
        ----------
        images : mapping
            Image id: (subject, whether it is of the validation set). What is known of an image that is not among them
            is kept for when it comes back.
        finished : collection of str
            Images with which a final label lies. A label that the ledger knows and that lies there no more counts no
            more.
        """
        now = self._clock()
        # what has changed is found out before others are kept from writing
        with self._engine.connect() as db:
            known = {
                image: (subject, bool(validation), bool(here), bool(done))
                for image, subject, validation, here, done in db.exec_driver_sql(
                    "SELECT image, subject, validation, here, finished FROM images"
                )
            }
            standing = db.execute(
                sa.select(_labels.c.number, _labels.c.image).where(
                    _labels.c.current & (_labels.c.saved < now - _SETTLED)
                )
            ).all()
        fresh = [
            {"image": image, "subject": subject, "validation": validation, "here": True, "finished": done}
            for image, (subject, validation) in images.items()
            if known.get(image) != (subject, validation, True, done := image in finished)
        ]
        gone = [image for image, (_, _, here, _) in known.items() if here and image not in images]
        removed = [row.number for row in standing if row.image in images and row.image not in finished]
        if not fresh and not gone and not removed:
            return
        with self._write.begin() as db:
            if fresh:
                new = insert(_images)
                db.execute(
                    new.on_conflict_do_update(
                        index_elements=["image"],
                        set_={name: new.excluded[name] for name in ("subject", "validation", "here", "finished")},
                    ),
                    fresh,
                )
            if gone:
                away = _images.update().where(_images.c.image == sa.bindparam("gone")).values(here=False)
                db.execute(away, [{"gone": image} for image in gone])
            _touch(db, [*(str(row["image"]) for row in fresh), *gone])
            if removed:
                for number in removed:
                    db.execute(_labels.update().where(_labels.c.number == number).values(current=False))
                    image = sa.select(_labels.c.image).where(_labels.c.number == number).scalar_subquery()
                    for table in (_readings, _waiting):
                        db.execute(table.delete().where(table.c.image == image))
                _changed(db, "labels")

    def knows(self, image: str) -> bool:
        """Return whether an image was ever here."""
        with self._engine.connect() as db:
            return db.execute(sa.select(_images.c.image).where(_images.c.image == image)).first() is not None

    def touched(self, since: int, limit: int) -> list[str] | None:
        """Return the images that have changed, with their embeddings and scores, since a version of "images".

        Returns
        -------
        list of str or None
            None where there are more than `limit`.
        """
        wanted = sa.select(_touched.c.image).where(_touched.c.change > since).limit(limit + 1)
        with self._engine.connect() as db:
            found = list(db.execute(wanted).scalars())
        return found if len(found) <= limit else None

    def subjects(self) -> dict[str, str]:
        """Return the subject of every image that was ever here."""
        with self._engine.connect() as db:
            return {row.image: row.subject for row in db.execute(sa.select(_images.c.image, _images.c.subject))}

    def images(self, among: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return the images that are here, by their ids: image, subject, validation, finished, presence.

        Parameters
        ----------
        among : collection of str, optional
            Only these.
        """
        rows = self._rows("image, subject, validation, finished, presence FROM images", among, "here")
        return [
            {
                "image": image,
                "subject": subject,
                "validation": bool(validation),
                "finished": bool(finished),
                "presence": presence,
            }
            for image, subject, validation, finished, presence in sorted(rows)
        ]

    def validation_images(self) -> set[str]:
        """Return the images of the validation set that were ever here."""
        with self._engine.connect() as db:
            return set(db.execute(sa.select(_images.c.image).where(_images.c.validation)).scalars())

    def set_presence(self, margins: Mapping[str, float]) -> None:
        """Note presence scores less their thresholds, by image."""
        with self._write.begin() as db:
            for image, margin in margins.items():
                db.execute(_images.update().where(_images.c.image == image).values(presence=float(margin)))
            _touch(db, margins)

    def set_embeddings(self, encoder: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep image embeddings (float [D], by image) of an encoder's weights; those of other weights are dropped."""
        rows = [
            {"image": image, "encoder": encoder, "vector": np.asarray(vector, np.float16).tobytes()}
            for image, vector in vectors.items()
        ]
        with self._write.begin() as db:
            dropped = _drop_others(db, _embeddings, _embeddings.c.encoder, encoder)
            if rows:
                db.execute(insert(_embeddings).prefix_with("OR REPLACE"), rows)
            _touch(db, {*dropped, *vectors})

    def embeddings(self, among: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return image embeddings (float16 [D]) by image, of all images or of those named."""
        rows = self._rows("image, vector FROM embeddings", among)
        return {image: np.frombuffer(vector, np.float16) for image, vector in rows}

    def without_embedding(self, encoder: str, limit: int | None = None) -> list[str]:
        """Return the images that an encoder has not seen, in the order of their ids, no more than `limit`."""
        seen = sa.select(_embeddings.c.image).where(_embeddings.c.encoder == encoder)
        return self._images_that(_images.c.image.not_in(seen), limit=limit)

    def without_presence(self, limit: int | None = None) -> list[str]:
        """Return the images without a label of which nobody has asked what is there, as `without_embedding` does."""
        return self._images_that(_images.c.presence.is_(None), _unlabelled(), limit=limit)

    def set_scores(self, network: str, scores: Mapping[str, Score]) -> None:
        """Keep what a network says of images; what other networks said is dropped."""
        rows = [
            {
                "image": image,
                "network": network,
                "total": float(score.total),
                "classes": {name: float(value) for name, value in score.classes.items()},
                "disagreement": score.disagreement,
                "planes": [int(plane) for plane in score.planes],
                "found": list(score.found),
            }
            for image, score in scores.items()
        ]
        with self._write.begin() as db:
            dropped = _drop_others(db, _scores, _scores.c.network, network)
            if rows:
                db.execute(insert(_scores).prefix_with("OR REPLACE"), rows)
            _touch(db, {*dropped, *scores})

    def scores(self, among: Collection[str] | None = None) -> dict[str, Score]:
        """Return the scores of the present network by image, of all images or of those named."""
        rows = self._rows("image, total, disagreement, classes, planes, found FROM scores", among)
        # as one text, which is read in a fraction of the time
        parsed = json.loads(f"[{','.join(f'[{classes},{planes},{found}]' for *_, classes, planes, found in rows)}]")
        return {
            image: Score(total, classes, disagreement, tuple(planes), tuple(found))
            for (image, total, disagreement, *_), (classes, planes, found) in zip(rows, parsed, strict=True)
        }

    def without_score(self, network: str, limit: int | None = None, *, compared: bool = False) -> list[str]:
        """Return the images without a label that a network has not scored, in the order of their ids.

        Parameters
        ----------
        network : str
            What identifies it.
        limit : int, optional
            No more than so many.
        compared : bool
            Whether a score without a disagreement counts as none.
        """
        scored = sa.select(_scores.c.image).where(_scores.c.network == network)
        if compared:
            scored = scored.where(_scores.c.disagreement.is_not(None))
        return self._images_that(_images.c.image.not_in(scored), _unlabelled(), limit=limit)

    # -- leases ---------------------------------------------------------------------------------------------------

    def lease(
        self, image: str, holder: str, seconds: float = LEASE_SECONDS, *, most: int | None = None
    ) -> Lease | None:
        """Give an image to a holder, or let the holder keep it for longer.

        Parameters
        ----------
        image, holder : str
            The image, and who asks.
        seconds : float
            From now.
        most : int, optional
            Images that the holder may hold.

        Returns
        -------
        Lease or None
            None where another holds it.

        Raises
        ------
        InputError
            If there is no such image.
        TooManyLeasesError
            If the holder holds that many others.
        """
        now = self._clock()
        with self._write.begin() as db:
            self._known(db, image)
            others = (_leases.c.holder == holder) & (_leases.c.until > now) & (_leases.c.image != image)
            held = db.execute(sa.select(sa.func.count()).select_from(_leases).where(others)).scalar_one()
            if most is not None and held >= most:
                raise TooManyLeasesError(
                    f"{held} images are kept for {holder!r}, and at most {most} are kept for one person; save labels, "
                    "or give images back."
                )
            new = insert(_leases).values(image=image, holder=holder, since=now, until=now + seconds)
            mine = (_leases.c.holder == holder) & (_leases.c.until > now)
            done = db.execute(
                new.on_conflict_do_update(
                    index_elements=["image"],
                    set_={
                        "holder": holder,
                        "since": sa.case((mine, _leases.c.since), else_=now),
                        "until": now + seconds,
                    },
                    where=(_leases.c.until <= now) | (_leases.c.holder == holder),
                )
            )
            if not done.rowcount:
                return None
            row = db.execute(sa.select(_leases).where(_leases.c.image == image)).one()
        return Lease(row.image, row.holder, row.since, row.until)

    def take_over(self, holder: str, seconds: float = LEASE_SECONDS) -> Lease | None:
        """Give a holder the oldest lease of the person who holds most images, who keeps one at least.

        So nobody can keep all images for themselves, however few there are. Images that are assigned to others, or that
        the holder has read, are not taken over.

        Parameters
        ----------
        holder : str
            Who asks, for whom no other image is left.
        seconds : float
            From now.

        Returns
        -------
        Lease or None
            None where the holder holds an image already, or nobody holds two that have no label yet.
        """
        now = self._clock()
        labelled = sa.exists().where((_labels.c.image == _leases.c.image) & _labels.c.current)
        given = sa.select(_assignments.c.image).where(_assignments.c.reader == holder)
        assigned = sa.select(_assignments.c.image).where(_assignments.c.image.not_in(given))
        closed = _leases.c.image.in_(assigned)
        with self._write.begin() as db:
            rows = db.execute(
                sa.select(_leases, (labelled | closed).label("labelled"))
                .where(_leases.c.until > now)
                .order_by(_leases.c.since, _leases.c.image)
            ).all()
            counts = Counter(row.holder for row in rows if not row.labelled)
            if any(row.holder == holder for row in rows) or not counts or max(counts.values()) < 2:
                return None
            most, _ = counts.most_common(1)[0]
            image = next(row.image for row in rows if row.holder == most and not row.labelled)
            taken = {"holder": holder, "since": now, "until": now + seconds}
            db.execute(_leases.update().where(_leases.c.image == image).values(**taken))
        return Lease(image, holder, now, now + seconds)

    def release(self, image: str | None = None, holder: str | None = None) -> list[Lease]:
        """Give images back.

        Parameters
        ----------
        image : str, optional
            This one; by default all.
        holder : str, optional
            Of this holder; by default of anyone.

        Returns
        -------
        list of Lease
            The leases that were ended.
        """
        wanted = _leases.c.until > self._clock()
        if image is not None:
            wanted &= _leases.c.image == image
        if holder is not None:
            wanted &= _leases.c.holder == holder
        with self._write.begin() as db:
            rows = db.execute(sa.select(_leases).where(wanted).order_by(_leases.c.since, _leases.c.image)).all()
            db.execute(_leases.delete().where(wanted))
        return [Lease(row.image, row.holder, row.since, row.until) for row in rows]

    def leases(self, holder: str | None = None) -> list[Lease]:
        """Return the leases that have not expired, of one holder or of all, the oldest first."""
        wanted = sa.select(_leases).where(_leases.c.until > self._clock()).order_by(_leases.c.since, _leases.c.image)
        if holder is not None:
            wanted = wanted.where(_leases.c.holder == holder)
        with self._engine.connect() as db:
            return [Lease(row.image, row.holder, row.since, row.until) for row in db.execute(wanted)]

    # -- labels ---------------------------------------------------------------------------------------------------

    def show(self, image: str, holder: str, source: str, labels: np.ndarray) -> None:
        """Note the mask that a reader was given, against which the effort of the correction is measured.

        Parameters
        ----------
        image, holder : str
            The image, and who was given it; "" for a mask that waits for whoever opens the image.
        source : str
            What made it, as it stands in the ledger.
        labels : numpy.ndarray
            uint8 [N, H, W] in display orientation.

        Raises
        ------
        InputError
            If there is no such image.
        """
        with self._write.begin() as db:
            self._known(db, image)
            content = _keep_mask(db, labels)
            row = {"image": image, "holder": holder, "source": source, "content": content, "at": self._clock()}
            db.execute(insert(_shown).prefix_with("OR REPLACE"), [row])
            _drop_masks(db)

    def record(
        self,
        image: str,
        reader: str,
        labels: np.ndarray,
        *,
        replaces: Collection[str] = (),
        consensus: str = "",
        beneath: np.ndarray | None = None,
    ) -> tuple[Saved, Label]:
        """Take in a label that a person has saved.

        It counts beside the labels of others. Where there are several, the image waits for a consensus.

        Parameters
        ----------
        image, reader : str
            The image, and who saved it; `ANONYMOUS` stands for whoever holds the image or was shown a mask of it.
        labels : numpy.ndarray
            uint8 [N, H, W] in display orientation; all 0 is a confirmed absence.
        replaces : collection of str, optional
            Readers whose labels it corrects: those count no more.
        consensus : str, optional
            How it was made of the readers' labels, where it is none of the reader's own.
        beneath : numpy.ndarray, optional
            uint8 [L, N, H, W]: what `labels` covers where segments overlap. A label is another one where this has
            changed; the effort is that of what is on top.

        Returns
        -------
        saved : {"new", "replaced", "same"}
            "same" where the reader has saved just this already: nothing is counted twice.
        label : Label
            The version that stands now.

        Raises
        ------
        InputError
            If there is no such image.
        """
        now = self._clock()
        with self._write.begin() as db:
            self._known(db, image)
            content = _keep_mask(db, labels, beneath)
            before = db.execute(sa.select(_labels).where((_labels.c.image == image) & _labels.c.current)).one_or_none()
            if before is not None and (same := _same(db, before, reader, content, consensus)) is not None:
                self._end_lease(db, image, reader)
                return "same", _label(db, same)
            shown = db.execute(
                sa.select(_shown)
                .where((_shown.c.image == image) & (_shown.c.holder.in_([reader, ""]) | (reader == ANONYMOUS)))
                .order_by((_shown.c.holder == reader).desc(), (_shown.c.holder != "").desc(), _shown.c.at.desc())
                .limit(1)
            ).one_or_none()
            change = None
            if shown is not None:
                offered = _mask(db, shown.content)
                if offered.shape == labels.shape:
                    change = effort(offered, labels)
            held = (_leases.c.image == image) & ((_leases.c.holder == reader) | (reader == ANONYMOUS))
            lease = db.execute(sa.select(_leases).where(held & (_leases.c.until > now))).one_or_none()
            db.execute(_labels.update().where(_labels.c.image == image).values(current=False))
            db.execute(
                _labels.insert().values(
                    image=image,
                    round=_open_round(db),
                    reader=reader,
                    saved=now,
                    content=content,
                    absent=not labels.any(),
                    source=shown.source if shown is not None and change is not None else "",
                    dice=change.dice if change else None,
                    path_length=change.path_length if change else None,
                    changed=change.changed if change else None,
                    seconds=now - lease.since if lease else None,
                    current=True,
                )
            )
            number = db.execute(sa.text("SELECT last_insert_rowid()")).scalar_one()
            if consensus:
                db.execute(_consensus.insert().values(label=number, method=consensus, readings=_readings_of(db, image)))
            else:
                gone = (_readings.c.image == image) & _readings.c.reader.in_([reader, *replaces])
                db.execute(_readings.delete().where(gone))
                if reader != ANONYMOUS:
                    db.execute(_readings.insert().values(image=image, reader=reader, label=number))
            _wait(db, image, now, settled=bool(consensus))
            self._end_lease(db, image, reader)
            # the next correction of this image starts from this label
            db.execute(_shown.delete().where(_shown.c.image == image))
            _drop_masks(db)
            _changed(db, "labels")
            return ("new" if before is None else "replaced"), _label(db, number)

    def forget(self, image: str) -> bool:
        """Note that an image's label was removed; its versions stay in the ledger. Returns whether there was one."""
        with self._write.begin() as db:
            done = db.execute(
                _labels.update().where((_labels.c.image == image) & _labels.c.current).values(current=False)
            )
            for table in (_readings, _waiting):
                db.execute(table.delete().where(table.c.image == image))
            _changed(db, "labels")
            return bool(done.rowcount)

    def review(self, image: str, reviewer: str, verdict: str) -> Label:
        """Approve or reject the label that stands for an image.

        A rejected label counts as none until another is saved; with a rejected consensus the image waits for another.

        Raises
        ------
        InputError
            If there is no label, the verdict is unknown, the reviewer is the reader, or the image waits for a
            consensus.
        """
        if verdict not in VERDICTS:
            raise InputError(f"A label cannot be {verdict!r}; allowed: {', '.join(VERDICTS)}.")
        with self._write.begin() as db:
            row = db.execute(sa.select(_labels).where((_labels.c.image == image) & _labels.c.current)).one_or_none()
            if row is None:
                raise InputError(f"Image {image!r} has no label that could be {verdict}.")
            if db.execute(sa.select(_waiting).where(_waiting.c.image == image)).first() is not None:
                raise InputError(
                    f"Image {image!r} has labels of several readers, of which none can be {verdict} by itself; make "
                    "their consensus."
                )
            if row.reader == reviewer and verdict == "approved":
                raise InputError(f"The label of image {image!r} is by {reviewer}, who cannot approve it too.")
            entry = {"label": row.number, "reviewer": reviewer, "verdict": verdict, "at": self._clock()}
            db.execute(insert(_reviews).prefix_with("OR REPLACE"), [entry])
            if verdict == "rejected":
                db.execute(_readings.delete().where(_readings.c.label == row.number))
                _wait(db, image, self._clock())
            _changed(db, "labels")
            return _label(db, row.number)

    def labels(self, *, current: bool = True, round: int | None = None) -> list[Label]:
        """Return labels in the order of saving: those that stand or all versions, of one round or all."""
        wanted = sa.select(_labels).order_by(_labels.c.number)
        if current:
            wanted = wanted.where(_labels.c.current)
        if round is not None:
            wanted = wanted.where(_labels.c.round == round)
        with self._engine.connect() as db:
            verdicts, made = _verdicts(db), {row.label: row for row in db.execute(sa.select(_consensus))}
            return [_as_label(row, verdicts.get(row.number, {}), made.get(row.number)) for row in db.execute(wanted)]

    def values(self, numbers: Collection[int]) -> dict[int, list[int]]:
        """Return the values above 0 in versions of labels, by the number of the version."""
        wanted = sa.select(_labels.c.number, _labels.c.content).where(_labels.c.number.in_(numbers))
        with self._engine.connect() as db:
            contents = {row.number: row.content for row in db.execute(wanted)}
            held = {
                content: [int(value) for value in np.unique(_layers(db, content)) if value]
                for content in set(contents.values())
            }
        return {number: held[content] for number, content in contents.items()}

    def readings(self, image: str) -> dict[str, np.ndarray]:
        """Return the label map (uint8 [N, H, W]) of each reader of an image that counts."""
        with self._engine.connect() as db:
            return _reading_masks(db, image)

    def readers(self, image: str | None = None) -> dict[str, tuple[str, ...]]:
        """Return the readers of each image, or of one, of whom a label counts, the earliest first."""
        wanted = sa.select(_readings).order_by(_readings.c.label)
        if image is not None:
            wanted = wanted.where(_readings.c.image == image)
        found: dict[str, tuple[str, ...]] = {}
        with self._engine.connect() as db:
            for row in db.execute(wanted):
                found[row.image] = (*found.get(row.image, ()), row.reader)
        return found

    def settled(self) -> set[str]:
        """Return the images whose label is a consensus that nobody has rejected."""
        rejected = sa.select(_reviews.c.label).where(_reviews.c.verdict == "rejected")
        made = _labels.join(_consensus, _consensus.c.label == _labels.c.number)
        wanted = sa.select(_labels.c.image).select_from(made).where(_labels.c.current)
        with self._engine.connect() as db:
            return set(db.execute(wanted.where(_labels.c.number.not_in(rejected))).scalars())

    def waiting(self) -> list[Waiting]:
        """Return the images that wait for a consensus of their readers, the worst agreement first."""
        wanted = sa.select(_waiting).order_by(_waiting.c.dice, _waiting.c.since, _waiting.c.image)
        with self._engine.connect() as db:
            rows = db.execute(wanted).all()
            return [Waiting(row.image, tuple(_readings_of(db, row.image)), row.since, row.dice) for row in rows]

    def agreements(self) -> dict[str, dict[tuple[str, str], float]]:
        """Return for each image with several readers the Dice of each pair of them."""
        several = sa.select(_readings.c.image).group_by(_readings.c.image).having(sa.func.count() > 1)
        with self._engine.connect() as db:
            images = list(db.execute(several.order_by(_readings.c.image)).scalars())
        return {image: agreement(self.readings(image)) for image in images}

    # -- assignments ----------------------------------------------------------------------------------------------

    def assign(self, images: Collection[str], readers: Collection[str], by: str) -> list[Assignment]:
        """Give images to people: from now on these alone are offered them. Leases of others on them end.

        Parameters
        ----------
        images, readers : collection of str
            Each image is given to each reader, beside those whom it was given to before.
        by : str
            Who says so.

        Returns
        -------
        list of Assignment
            All of these images.
        """
        rows = [
            {"image": image, "reader": reader, "by": by, "at": self._clock()} for image in images for reader in readers
        ]
        with self._write.begin() as db:
            if rows:
                db.execute(insert(_assignments).on_conflict_do_nothing(), rows)
            for image in images:
                allowed = sa.select(_assignments.c.reader).where(_assignments.c.image == image)
                db.execute(_leases.delete().where((_leases.c.image == image) & _leases.c.holder.not_in(allowed)))
        wanted = set(images)
        return [each for each in self.assignments() if each.image in wanted]

    def unassign(self, image: str | None = None, reader: str | None = None) -> list[Assignment]:
        """Take images back from people: one image or all, from one reader or everyone; returns what was taken back."""
        ended = self.assignments(image=image, reader=reader)
        with self._write.begin() as db:
            db.execute(_assignments.delete().where(_assigned(image, reader)))
        return ended

    def assignments(self, *, image: str | None = None, reader: str | None = None) -> list[Assignment]:
        """Return who is to read which image, in the order in which that was said."""
        done = sa.exists().where(
            (_readings.c.image == _assignments.c.image) & (_readings.c.reader == _assignments.c.reader)
        )
        wanted = sa.select(_assignments, done.label("done")).where(_assigned(image, reader))
        with self._engine.connect() as db:
            rows = db.execute(wanted.order_by(_assignments.c.at, _assignments.c.image, _assignments.c.reader)).all()
        return [Assignment(row.image, row.reader, row.by, row.at, bool(row.done)) for row in rows]

    # -- rounds ---------------------------------------------------------------------------------------------------

    def rounds(self) -> list[Round]:
        """Return all rounds, the open one last."""
        with self._engine.connect() as db:
            return [_as_round(row) for row in db.execute(sa.select(_rounds).order_by(_rounds.c.number))]

    def new_labels(self) -> int:
        """Return how many images have a label that no training that came to an end could see.

        One that is rejected, or that waits for a consensus, counts as none.
        """
        ended = sa.select(sa.func.coalesce(sa.func.max(_rounds.c.upto), 0)).where(
            _rounds.c.state.in_(["training", "published", "unvalidated", "refused"])
        )
        rejected = sa.select(_reviews.c.label).where(_reviews.c.verdict == "rejected")
        with self._engine.connect() as db:
            return int(
                db.execute(
                    sa.select(sa.func.count())
                    .select_from(_labels.join(_images))
                    .where(
                        _labels.c.current
                        & ~_images.c.validation
                        & (_labels.c.number > ended.scalar_subquery())
                        & _labels.c.image.not_in(sa.select(_waiting.c.image))
                        & _labels.c.number.not_in(rejected)
                    )
                ).scalar_one()
            )

    def is_due(self, after: int) -> bool:
        """Return whether a training should start by itself.

        Parameters
        ----------
        after : int
            New labels that make it due. After a training that failed there must be one more than it could see; one
            that was interrupted is due again.
        """
        if any(each.state == "training" for each in self.rounds()):
            return False
        if self.new_labels() < after:
            return False
        with self._engine.connect() as db:
            failed = sa.select(sa.func.coalesce(sa.func.max(_rounds.c.upto), 0)).where(_rounds.c.state == "failed")
            tried = db.execute(failed).scalar_one()
            last = db.execute(sa.select(sa.func.coalesce(sa.func.max(_labels.c.number), 0))).scalar_one()
        return bool(last > tried)

    def begin_training(self, network: str | None) -> Round | None:
        """Close the open round for labels and say that its training begins; the next round opens at once.

        Parameters
        ----------
        network : str or None
            The published network.

        Returns
        -------
        Round or None
            None where a training runs already.
        """
        now = self._clock()
        with self._write.begin() as db:
            if db.execute(sa.select(_rounds.c.number).where(_rounds.c.state == "training")).first():
                return None
            number = _open_round(db)
            last = db.execute(sa.select(sa.func.coalesce(sa.func.max(_labels.c.number), 0))).scalar_one()
            db.execute(
                _rounds.update()
                .where(_rounds.c.number == number)
                .values(state="training", started=now, upto=last, network_before=network)
            )
            db.execute(_rounds.insert().values(number=number + 1, opened=now, state="open", metrics={}))
            _changed(db, "labels")
            return _as_round(db.execute(sa.select(_rounds).where(_rounds.c.number == number)).one())

    def end_training(self, state: str, network: str | None = None, metrics: Mapping[str, Any] | None = None) -> Round:
        """Say how the training that runs has ended.

        Parameters
        ----------
        state : {"published", "unvalidated", "refused", "failed", "interrupted"}
            How; "interrupted" by the end of the server, which says nothing of the data.
        network : str, optional
            What it made.
        metrics : mapping, optional
            JSON-able.

        Raises
        ------
        InputError
            If no training runs, or the state is unknown.
        """
        if state not in ENDS:
            raise InputError(f"A training cannot end as {state!r}; allowed: {', '.join(ENDS)}.")
        with self._write.begin() as db:
            number = db.execute(sa.select(_rounds.c.number).where(_rounds.c.state == "training")).scalar_one_or_none()
            if number is None:
                raise InputError("No round's training runs, so that none can end.")
            db.execute(
                _rounds.update()
                .where(_rounds.c.number == number)
                .values(state=state, ended=self._clock(), network_after=network, metrics=dict(metrics or {}))
            )
            return _as_round(db.execute(sa.select(_rounds).where(_rounds.c.number == number)).one())

    def _rows(self, what: str, among: Collection[str] | None, condition: str = "1") -> list[Any]:
        """Return rows as the driver has them, which many rows are read by in a fraction of the time."""
        with self._engine.connect() as db:
            if among is None:
                return list(db.exec_driver_sql(f"SELECT {what} WHERE {condition}").cursor.fetchall())
            wanted = json.dumps(list(among))
            some = f"SELECT {what} WHERE {condition} AND image IN (SELECT value FROM json_each(?))"
            return list(db.exec_driver_sql(some, (wanted,)).cursor.fetchall())

    def _images_that(self, *conditions: Any, limit: int | None = None) -> list[str]:
        wanted = sa.select(_images.c.image).where(_images.c.here, *conditions).order_by(_images.c.image).limit(limit)
        with self._engine.connect() as db:
            return list(db.execute(wanted).scalars())

    def _known(self, db: sa.Connection, image: str) -> None:
        if db.execute(sa.select(_images.c.image).where(_images.c.image == image)).first() is None:
            raise InputError(f"Image {image!r} is not among the studies.")

    def _end_lease(self, db: sa.Connection, image: str, holder: str) -> None:
        mine = (_leases.c.holder == holder) | (holder == ANONYMOUS)
        db.execute(_leases.delete().where((_leases.c.image == image) & mine))


def _changed(db: sa.Connection, kind: Literal["images", "labels"]) -> None:
    """Count a change for who holds the tables in memory."""
    new = insert(_changes).values(kind=kind, count=1)
    db.execute(new.on_conflict_do_update(index_elements=["kind"], set_={"count": _changes.c.count + 1}))


def _touch(db: sa.Connection, images: Iterable[str]) -> None:
    """Say that the rows of images, their embeddings or scores have changed."""
    _changed(db, "images")
    number = db.execute(sa.select(_changes.c.count).where(_changes.c.kind == "images")).scalar_one()
    rows = [{"image": image, "change": number} for image in images]
    if rows:
        db.execute(insert(_touched).prefix_with("OR REPLACE"), rows)


def _drop_others(db: sa.Connection, table: sa.Table, column: sa.Column[str], kept: str) -> list[str]:
    """Drop the rows of other networks or encoders, and return their images."""
    # with two bounds the index is used
    others = (column < kept) | (column > kept)
    images = list(db.execute(sa.select(table.c.image).where(others)).scalars())
    if images:
        db.execute(table.delete().where(others))
    return images


def _as_busy(context: sa.engine.ExceptionContext) -> None:
    """Raise `LockedError` for a file that another program keeps locked."""
    code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise LockedError("Another program keeps the file of the rounds locked. Try again later.")


def _prepare(connection: Any, _: Any) -> None:
    """Set up a new connection; SQLAlchemy begins transactions itself (see `_begin`)."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    # a change that reads first must hold the lock from its beginning, or two of them fail on one another
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _keep_mask(db: sa.Connection, labels: np.ndarray, beneath: np.ndarray | None = None) -> str:
    """Keep a label map, and what it covers, once, and return what identifies it."""
    layers = labels if beneath is None or not len(beneath) else np.concatenate([labels[None], beneath])
    voxels = np.ascontiguousarray(layers, dtype=np.uint8)
    content = hashlib.sha256(json.dumps(voxels.shape).encode() + voxels.tobytes()).hexdigest()
    row = {"content": content, "shape": list(voxels.shape), "voxels": zlib.compress(voxels.tobytes(), 3)}
    db.execute(insert(_masks).on_conflict_do_nothing(), [row])
    return content


def _mask(db: sa.Connection, content: str) -> np.ndarray:
    """Return a label map that was kept, uint8 [N, H, W], without what it covers."""
    mask: np.ndarray = _layers(db, content)[0]
    return mask


def _layers(db: sa.Connection, content: str) -> np.ndarray:
    """Return a label map that was kept and what it covers, uint8 [1 + L, N, H, W]."""
    row = db.execute(sa.select(_masks).where(_masks.c.content == content)).one()
    return np.frombuffer(zlib.decompress(row.voxels), np.uint8).reshape(-1, *row.shape[-3:])


def _drop_masks(db: sa.Connection) -> None:
    """Let go of masks that were shown and that nothing refers to any more."""
    used = sa.union(sa.select(_labels.c.content), sa.select(_shown.c.content))
    db.execute(_masks.delete().where(_masks.c.content.not_in(used)))


def _unlabelled() -> sa.ColumnElement[bool]:
    """Return the condition that an image has no label, or one that a reviewer has rejected."""
    standing = sa.select(_labels.c.image).where(_labels.c.current)
    rejected = sa.select(_reviews.c.label).where(_reviews.c.verdict == "rejected")
    refused = standing.where(_labels.c.number.in_(rejected))
    return _images.c.image.in_(refused) | ~(_images.c.finished | _images.c.image.in_(standing))


def _open_round(db: sa.Connection) -> int:
    return int(db.execute(sa.select(_rounds.c.number).where(_rounds.c.state == "open")).scalar_one())


def _verdicts(db: sa.Connection, label: int | None = None) -> dict[int, dict[str, str]]:
    wanted = sa.select(_reviews) if label is None else sa.select(_reviews).where(_reviews.c.label == label)
    found: dict[int, dict[str, str]] = {}
    for row in db.execute(wanted):
        found.setdefault(row.label, {})[row.reviewer] = row.verdict
    return found


def _readings_of(db: sa.Connection, image: str) -> dict[str, int]:
    """Return the readers of an image and their labels, the earliest first."""
    wanted = sa.select(_readings).where(_readings.c.image == image).order_by(_readings.c.label)
    return {row.reader: row.label for row in db.execute(wanted)}


def _reading_masks(db: sa.Connection, image: str) -> dict[str, np.ndarray]:
    numbers = _readings_of(db, image)
    wanted = sa.select(_labels.c.number, _labels.c.content).where(_labels.c.number.in_(numbers.values()))
    contents = {row.number: row.content for row in db.execute(wanted)}
    return {reader: _mask(db, contents[number]) for reader, number in numbers.items()}


def _same(db: sa.Connection, before: Any, reader: str, content: str, consensus: str) -> int | None:
    """Return the label that a reader has saved just so already; `before` is the one that stands for the image."""
    made = db.execute(sa.select(_consensus.c.method).where(_consensus.c.label == before.number)).scalar() or ""
    if (before.content, before.reader, made) == (content, reader, consensus):
        return int(before.number)
    if consensus or made or before.reader == ANONYMOUS:
        return None
    # of several labels side by side
    mine = _readings_of(db, before.image).get(reader)
    if mine is None or db.execute(sa.select(_labels.c.content).where(_labels.c.number == mine)).scalar() != content:
        return None
    return mine


def _wait(db: sa.Connection, image: str, now: float, *, settled: bool = False) -> None:
    """Say whether an image waits for a consensus, after its readings have changed."""
    masks = {} if settled else _reading_masks(db, image)
    if len(masks) < 2:
        db.execute(_waiting.delete().where(_waiting.c.image == image))
        return
    alike = len({mask.shape for mask in masks.values()}) == 1
    least = min(agreement(masks).values()) if alike else 0.0
    new = insert(_waiting).values(image=image, since=now, dice=least)
    db.execute(new.on_conflict_do_update(index_elements=["image"], set_={"dice": least}))


def _find_readings(db: sa.Connection) -> None:
    """Fill in what a file of format 1 does not have: the last label of each reader of an image that has one."""
    standing = sa.select(_labels.c.image).where(_labels.c.current)
    rejected = sa.select(_reviews.c.label).where(_reviews.c.verdict == "rejected")
    wanted = _labels.c.image.in_(standing) & (_labels.c.reader != ANONYMOUS) & _labels.c.number.not_in(rejected)
    rows = db.execute(sa.select(_labels).where(wanted).order_by(_labels.c.number)).all()
    last = {(row.image, row.reader): row for row in rows}
    for row in last.values():
        db.execute(_readings.insert().values(image=row.image, reader=row.reader, label=row.number))
    for image, count in Counter(image for image, _ in last).items():
        if count > 1:
            _wait(db, image, max(row.saved for row in rows if row.image == image))


def _assigned(image: str | None, reader: str | None) -> sa.ColumnElement[bool]:
    wanted: sa.ColumnElement[bool] = sa.true()
    if image is not None:
        wanted &= _assignments.c.image == image
    if reader is not None:
        wanted &= _assignments.c.reader == reader
    return wanted


def _label(db: sa.Connection, number: int) -> Label:
    row = db.execute(sa.select(_labels).where(_labels.c.number == number)).one()
    made = db.execute(sa.select(_consensus).where(_consensus.c.label == number)).one_or_none()
    return _as_label(row, _verdicts(db, number).get(number, {}), made)


def _as_label(row: Any, verdicts: Mapping[str, str], made: Any = None) -> Label:
    return Label(
        number=row.number,
        image=row.image,
        reader=row.reader,
        round=row.round,
        saved=row.saved,
        absent=row.absent,
        source=row.source,
        dice=row.dice,
        path_length=row.path_length,
        changed=row.changed,
        seconds=row.seconds,
        current=row.current,
        verdicts=dict(verdicts),
        method="" if made is None else made.method,
        readings={} if made is None else made.readings,
    )


def _as_round(row: Any) -> Round:
    return Round(
        number=row.number,
        state=row.state,
        opened=row.opened,
        started=row.started,
        ended=row.ended,
        network_before=row.network_before,
        network_after=row.network_after,
        metrics=row.metrics,
    )
