"""Rounds on the server: who is offered what, what people have saved, when a training starts by itself.

The ledger (`medclipsam.active.ledger`) keeps it all; here it is brought together with the studies, the networks and
the models. What takes time is done in steps of a second or two when nobody waits for the models.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.active.ledger import ANONYMOUS, Label, Lease, Ledger, Round, Saved, TooManyLeasesError
from medclipsam.active.pool import Pool
from medclipsam.active.second_reads import is_read_twice
from medclipsam.active.strategies import STRATEGIES, Choice, choose
from medclipsam.active.summary import summarise
from medclipsam.base.errors import MedClipSamError, UpstreamContentError, UpstreamError
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.base.audit import Caller
from medclipsam.server.base.errors import BusyError
from medclipsam.server.base.names import LONGEST_READER
from medclipsam.server.base.rounds_options import RoundsOptions
from medclipsam.server.base.task import Task
from medclipsam.server.inference.networks import SharedNetworks
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.work import Job, WorkQueue
from medclipsam.server.learning.scorer import ImageScorer, Method
from medclipsam.server.learning.trainer import patient_of
from medclipsam.server.studies.datastore import Datastore
from medclipsam.server.studies.exchange import read_reading
from medclipsam.server.studies.images import ImageReader, unreadable_images
from medclipsam.studies.final import CONSENSUS, SAVED_BY, is_consensus, readings_among
from medclipsam.targets import Target
from medclipsam.training.lock import holder_of, training_state
from medclipsam.training.names import DEFAULT_NAME
from medclipsam.training.store import Network

logger = logging.getLogger(__name__)


# Seconds between two looks at the training, and at the studies beside the requests.
_TICK, _PREPARE_SECONDS = 2.0, 10.0
# Seconds after which a request looks at the studies itself, and after which the ledger is told what is there anyhow.
_LOOK_SECONDS, _SYNC_SECONDS = 30.0, 120.0
# Seconds in which a training that an earlier server has started may still come up and take its lock.
_GRACE = 90.0
# The strategy of reviewers, which offers what waits for a consensus of its readers.
ADJUDICATION = "adjudication"


class Rounds:
    """The rounds of one project.

    Parameters
    ----------
    file : Path
        The ledger; made when it is first needed.
    options : RoundsOptions
    datastore : callable
        Returns the studies.
    networks : SharedNetworks
        The published networks.
    pipeline : SharedPipeline
        Whose CLIP embeds images.
    images : ImageReader
    targets : sequence of Target
        What presence is asked for.
    """

    def __init__(
        self,
        file: Path,
        options: RoundsOptions,
        datastore: Callable[[], Datastore],
        networks: SharedNetworks,
        pipeline: SharedPipeline,
        images: ImageReader,
        targets: Sequence[Target] = (),
    ) -> None:
        self._file = file
        self.options = options
        self._datastore = datastore
        self.networks = networks
        self.images = images
        self.scorer = ImageScorer(lambda: self.ledger, datastore, networks, pipeline, images, targets)
        self._lock = threading.RLock()
        self._opened: Ledger | None = None
        self._pool: Pool | None = None
        # how many changes of the ledger have yet to be taken into the pool beside the requests
        self._preparing = 0
        self._looking = threading.Lock()
        self._looked = self._synced_at = float("-inf")
        self._synced: tuple[list[str], set[str]] | None = None
        self._subjects: dict[str, str] = {}

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        with self._lock:
            if self._opened is None:
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._opened = Ledger(self._file)
            return self._opened

    @property
    def is_used(self) -> bool:
        """Whether anybody has asked for an image or saved a label."""
        return self._file.is_file()

    def look(self) -> None:
        """Take in which images there are, and which have a final label."""
        with self._looking:
            self._sync(self._list_studies())

    def prepare(self) -> None:
        """Do beside the requests what the next of them would wait for.

        Where nobody has asked for an image yet it finds out whose the images of a folder are, and leaves no trace; a
        DICOMweb server tells that with its list.
        """
        if not self.is_used and self._datastore().is_remote:
            return
        with self._looking:
            found = self._list_studies()
            if self.is_used:
                with self._in_background():
                    self._sync(found)

    def score(self, method: Method, job: Job | None = None) -> int:
        """Do a step of a scoring method; see `ImageScorer.step`."""
        with self._in_background(), self.images.in_background():
            return self.scorer.step(method, job=job)

    @contextmanager
    def _in_background(self) -> Iterator[None]:
        """Change the ledger so that no request waits until the pool is loaded anew: it sees the pool as it was."""
        with self._lock:
            self._preparing += 1
        try:
            yield
            with self._lock:
                done = self._pool is not None and self._pool.refresh(reload=False)
            if not done:
                pool = Pool(self.ledger, self.options.sampling_seed)
                with self._lock:
                    self._pool = pool
        finally:
            with self._lock:
                self._preparing -= 1

    def _list_studies(self) -> tuple[list[str], set[str]]:
        """Return the images that can be read, as far as is known, and which images are finished.

        What tells the patients of the images is known from then on.
        """
        store = self._datastore()
        unreadable = unreadable_images(store, self.images)
        images = [image for image in store.list_images() if image not in unreadable]
        finished = set(store.get_labeled_images())
        fresh = [image for image in images if image not in self._subjects]
        if fresh and self.is_used:
            self._subjects.update(self.ledger.subjects())
        for image in fresh:
            if image not in self._subjects:
                try:
                    self._subjects[image] = patient_of(store, image)
                except UpstreamError:
                    raise
                except Exception as error:
                    # by no means a patient of its own; it is looked at again, and keeps no other from being offered
                    logger.info("Image %s is not offered: its patient cannot be read (%s)", image, error)
                    continue
        return [image for image in images if image in self._subjects], finished

    def _sync(self, found: tuple[list[str], set[str]]) -> None:
        now = time.monotonic()
        # now and then all the same: a label that was removed by hand counts for some time still
        if found != self._synced or now - self._synced_at > _SYNC_SECONDS:
            images, finished = found
            split = self.networks.store.split()
            wanted = {image: (self._subjects[image], split.holds(self._subjects[image])) for image in images}
            self.ledger.sync_images(wanted, finished)
            self._synced, self._synced_at = found, now
        for each in self.ledger.waiting():
            # the command line makes a consensus too
            if each.image in self._subjects and not self._datastore().waits_for_consensus(each.image):
                self._take_in(each.image)
        self._looked = time.monotonic()

    def next(self, strategy: str, holder: str, *, reviews: bool = False) -> dict[str, Any] | None:
        """Choose the next image and keep it for who asks.

        First come the images that wait for adjudication, the worst agreement first, where a reviewer asks; then those
        that are assigned to the asker; then second reads, the oldest first.

        Parameters
        ----------
        strategy : str
            A name of `STRATEGIES`, or `ADJUDICATION` for nothing but what waits for it.
        holder : str
            Who asks, see `reader_of`.
        reviews : bool
            Whether it is a reviewer.

        Returns
        -------
        dict or None
            `id`, `weight` (what the strategy gave it), `why`, `validation`, `planes` to look at, and the `lease`; None
            where every image is labelled, cannot be read or is the only one that is kept for another. Where only images
            are left that the asker was offered and has not labelled, or as many are kept for them as may be, these come
            again, the first one first. An asker for whom none is left takes over the oldest one of the person who holds
            most.

        Raises
        ------
        UpstreamError
            If the DICOMweb server of the studies fails in a way that may pass.
        """
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self.look()
        refused: set[str] = set()
        while True:
            taken = self._acquire_lease(strategy, holder, reviews)
            if taken is None:
                self.look()
                taken = self._acquire_lease(strategy, holder, reviews, again=True)
            if taken is None:
                return None
            choice, lease = taken
            readable = False
            try:
                readable = self._is_readable(choice.image)
            finally:
                if not readable:
                    # it is not among the images from now on, until it changes
                    self.ledger.release(choice.image, holder)
                    self.look()
            if readable:
                break
            if choice.image in refused:
                return None
            refused.add(choice.image)
        return {
            "id": choice.image,
            "weight": choice.value,
            "why": choice.why,
            "validation": choice.why == "validation",
            "planes": list(choice.planes),
            "lease": {"holder": lease.holder, "until": _iso(lease.until)},
        }

    def _is_readable(self, image: str) -> bool:
        """Return whether an image can be read; a series of a DICOMweb server is fetched, as for whoever opens it.

        Raises
        ------
        UpstreamError
            If the DICOMweb server fails in a way that may pass.
        """
        try:
            self.images.check(Path(self._datastore().get_image_uri(image)))
        except UpstreamError as error:
            if not (error.permanent or isinstance(error, UpstreamContentError)):
                raise
            logger.warning("Image %s is not offered for labelling: %s", image, error)
            return False
        except Exception as error:
            logger.warning("Image %s is not offered for labelling: %s", image, error)
            return False
        return True

    def lease(self, image: str, holder: str) -> Lease | None:
        """Keep an image for a holder from now on; None where another holds it, or it is assigned to others.

        Raises
        ------
        InputError
            If there is no such image.
        TooManyLeasesError
            If as many as one person may hold are kept for the holder.
        """
        self._known(image)
        assigned = {each.reader for each in self.ledger.assignments(image=image)}
        waits = any(each.image == image for each in self.ledger.waiting())
        if assigned and holder not in assigned and not waits:
            return None
        return self.ledger.lease(image, holder, self.options.lease_minutes * 60, most=self.options.max_leases)

    def lease_of(self, image: str) -> dict[str, Any] | None:
        """Return holder and end of the lease on an image, JSON-able; None where nobody holds it."""
        leases = self.ledger.leases() if self.is_used else []
        held = next((lease for lease in leases if lease.image == image), None)
        return None if held is None else {"holder": held.holder, "until": _iso(held.until)}

    def release(self, image: str | None, holder: str | None) -> list[str]:
        """End leases, of one image or all and of one holder or anyone, and return their images."""
        return [lease.image for lease in self.ledger.release(image, holder)] if self.is_used else []

    def record_label(
        self, image: str, reader: str, label: LabelMap, *, replaces: Sequence[str] = (), consensus: str = ""
    ) -> tuple[Saved, Label]:
        """Take in a final label that lies with the studies by now, see `Ledger.record`."""
        self._known(image)
        self._take_in(image, besides=reader)
        return self.ledger.record(
            image, reader, label.values, replaces=replaces, consensus=consensus, beneath=label.beneath
        )

    def _take_in(self, image: str, *, besides: str = "") -> None:
        """Note what others have saved with the studies and not through a server: readers' labels, and a consensus."""
        kept, known = self._datastore().final_labels(image), self.ledger.readers(image).get(image, ())
        readings = readings_among([info for _, info in kept])
        missing = [place for reader, place in readings.items() if reader not in known and reader != besides]
        settled = not besides and bool(kept) and is_consensus(kept[-1][1])
        if not missing and not settled:
            return
        read = self.images.read(Path(self._datastore().get_image_uri(image)))
        for place in missing:
            file, info = kept[place]
            label = read_reading(file, info, read)
            self.ledger.record(image, info[SAVED_BY], label.values, beneath=label.beneath)
        if settled:
            file, info = kept[-1]
            label, made = read_reading(file, info, read), info[CONSENSUS]
            method = str(made.get("method", CONSENSUS)) if isinstance(made, Mapping) else CONSENSUS
            self.ledger.record(image, str(info.get(SAVED_BY)), label.values, consensus=method, beneath=label.beneath)

    def is_read_by_several(self, image: str) -> bool:
        """Return whether several people are to read an image: by assignment, else by the share of second reads."""
        assigned = self.ledger.assignments(image=image) if self.is_used else []
        if assigned:
            return len(assigned) > 1
        return is_read_twice(image, self.options.second_read_share, self.options.sampling_seed)

    def record_offer(self, image: str, holder: str, source: str, labels: np.ndarray) -> None:
        """Note a mask that was made: for a holder, or "" for whoever opens the image."""
        self._known(image)
        self.ledger.show(image, holder, source, labels)

    def presence(self, image: str, params: Mapping[str, Any]) -> None:
        """Note what a zero-shot answer says of presence: of several targets the one most surely there.

        Where the settings name targets, an answer about other things says nothing.
        """
        wanted = {target.name for target in self.scorer.targets}
        margins = [
            float(target["presence_score"]) - float(target["presence_threshold"])
            for target in params.get("targets") or []
            if target.get("presence_score") is not None and target.get("presence_threshold") is not None
            if not wanted or target["name"] in wanted
        ]
        if margins:
            self._known(image)
            self.ledger.set_presence({image: max(margins)})

    def removed(self, image: str) -> None:
        """Note that an image's final label was removed."""
        if self.is_used:
            self.ledger.forget(image)

    def rejected(self) -> set[str]:
        """Return the images whose label a reviewer has rejected."""
        return {label.image for label in self.ledger.labels() if label.rejected} if self.is_used else set()

    def summary(self) -> dict[str, Any]:
        """Return what the rounds came to; empty where nobody has begun."""
        return summarise(self.ledger) if self.is_used else {}

    def brief(self) -> dict[str, Any]:
        """Return what clients are told of the rounds with everything else."""
        if not self.is_used:
            return {"round": 1, "new_labels": 0, "retrain_after": self.options.retrain_after}
        rounds = self.ledger.rounds()
        ended = [each for each in rounds if each.state not in ("open", "training")]
        return {
            "round": rounds[-1].number,
            "new_labels": self.ledger.new_labels(),
            "waiting": len(self.ledger.waiting()),
            "retrain_after": self.options.retrain_after,
            "training": any(each.state == "training" for each in rounds),
            "last": _outcome(ended[-1]) if ended else None,
        }

    def upcoming(self, strategy: str, count: int) -> list[str]:
        """Return the images that would be offered next, without keeping them for anyone."""
        with self._lock:
            pool = self._current_pool()
            chosen: list[str] = []
            while len(chosen) < count:
                choice = choose(pool, strategy)
                if choice is None:
                    break
                chosen.append(choice.image)
                pool.reserve(choice.image)
            pool.refresh(reload=False)
            return chosen

    def _choose(self, pool: Pool, strategy: str, holder: str, reviews: bool) -> Choice | None:
        """Choose an image for a holder who may be a reviewer."""
        assigned = self.ledger.assignments()
        if reviews:
            pending = {each.image for each in assigned if not each.done}
            for waits in self.ledger.waiting():
                if waits.image not in pending and holder not in waits.readers and self._is_free(pool, waits.image):
                    return Choice(waits.image, "adjudication", 1.0 - waits.dice, pool.planes_of(waits.image))
        if strategy == ADJUDICATION:
            return None
        share, seed = self.options.second_read_share, self.options.sampling_seed
        closed = {each.image for each in assigned}
        settled = self.ledger.settled() if assigned or share else set()
        mine = [each.image for each in assigned if each.reader == holder and not each.done]
        readers = self.ledger.readers() if share else {}
        others = [image for image, names in readers.items() if len(names) == 1 and holder not in names]
        second = [image for image in others if image not in closed and is_read_twice(image, share, seed)]
        for why, images in (("assigned", mine), ("second read", second)):
            for image in images:
                if image not in settled and self._is_free(pool, image):
                    return Choice(image, why, None, pool.planes_of(image))
        pool.close(closed)
        return choose(pool, strategy)

    @staticmethod
    def _is_free(pool: Pool, image: str) -> bool:
        return pool.holds(image) and not pool.is_leased(image)

    def _acquire_lease(
        self, strategy: str, holder: str, reviews: bool, *, again: bool = False
    ) -> tuple[Choice, Lease] | None:
        """Choose an image and keep it for a holder; `again`: it may be one that they were offered before."""
        seconds, most = self.options.lease_minutes * 60, self.options.max_leases
        with self._lock:
            pool = self._current_pool()
            while (choice := self._choose(pool, strategy, holder, reviews)) is not None:
                try:
                    lease = self.ledger.lease(choice.image, holder, seconds, most=most)
                except TooManyLeasesError:
                    again = True
                    break
                if lease is not None:
                    return choice, lease
                # somebody has asked for this very image meanwhile
                pool.refresh(reload=False)
            if not again:
                return None
            held = self.ledger.leases(holder)
            if strategy == ADJUDICATION:
                waiting = {each.image for each in self.ledger.waiting() if holder not in each.readers}
                held = [lease for lease in held if lease.image in waiting]
            if not held and strategy == ADJUDICATION:
                return None
            if not held:
                lease = self.ledger.take_over(holder, seconds)
                return None if lease is None else (Choice(lease.image, "taken over", None), lease)
            # the first one, and for it the time begins anew
            self.ledger.release(held[0].image, holder)
            lease = self.ledger.lease(held[0].image, holder, seconds)
            return None if lease is None else (Choice(held[0].image, "offered before", None), lease)

    def _current_pool(self) -> Pool:
        """Return the pool, up to date but for what `_in_background` is about to take in."""
        if self._pool is None:
            self._pool = Pool(self.ledger, self.options.sampling_seed)
        else:
            self._pool.refresh(reload=not self._preparing)
        return self._pool

    def _known(self, image: str) -> None:
        if not self.ledger.knows(image):
            self.look()


class RoundScheduler:
    """A thread that follows trainings, starts them when they are due, and embeds and scores while nobody waits.

    Parameters
    ----------
    rounds : Rounds
    queue : WorkQueue
        Of the models.
    start_training : callable
        Starts a training; raises `MedClipSamError` where it cannot.
    trains : callable
        Returns the name of what this server trains, None where it trains nothing.
    prelabel : callable
        Makes a mask for an image by the best model there is, and saves it.
    grace : float
        Seconds after which a training that an earlier server has started, and that neither runs nor has ended, was cut
        off with it.
    """

    def __init__(
        self,
        rounds: Rounds,
        queue: WorkQueue,
        start_training: Callable[[], None],
        trains: Callable[[], str | None],
        prelabel: Callable[[str, Job], None],
        grace: float = _GRACE,
    ) -> None:
        self._rounds = rounds
        self._queue = queue
        self._start_training = start_training
        self._trains = trains
        self._prelabel = prelabel
        self._ended = threading.Event()
        self._asked = threading.Event()
        self._grace = grace
        self._begun = time.monotonic()
        self._own: int | None = None
        self._prelabelled: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._keep, name="rounds", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; waits for the step that is done."""
        self._ended.set()
        self._thread.join(timeout=30)

    def wake(self) -> None:
        """Say that somebody asks for images, so that embeddings and scores are wanted."""
        self._asked.set()

    def _keep(self) -> None:
        prepared = float("-inf")
        while not self._ended.wait(_TICK):
            try:
                if time.monotonic() - prepared > _PREPARE_SECONDS:
                    prepared = time.monotonic()
                    self._rounds.prepare()
                if not self._rounds.is_used:
                    continue
                self.follow()
                if self._asked.is_set():
                    self._work()
            except MedClipSamError as error:
                # until somebody asks again
                self._asked.clear()
                logger.warning("The rounds wait: %s", error)
            except Exception:
                self._asked.clear()
                logger.exception("The rounds' thread failed in one step and goes on")

    def follow(self) -> None:
        """Bring the ledger up to date with the training, and start one that is due."""
        rounds = self._rounds
        ledger, store = rounds.ledger, rounds.networks.store
        own, holder = self._trains(), holder_of(store.folder)
        busy = own is not None or holder is not None
        running = DEFAULT_NAME in (own, holder.what if holder is not None else None)
        training = next((each for each in ledger.rounds() if each.state == "training"), None)
        if training is not None and not running:
            made = next(
                (each for each in reversed(store.history(DEFAULT_NAME)) if each.created >= (training.started or 0)),
                None,
            )
            if made is not None:
                verdict = made.metrics.get("verdict", {})
                metrics = {"dice": verdict.get("child"), "reason": made.reason}
                ledger.end_training(made.status, _named(made), metrics)
            elif training.number == self._own:
                reason = training_state(store.folder).get("error") or "The training ended without a network."
                ledger.end_training("failed", metrics={"reason": str(reason)})
            elif time.monotonic() - self._begun > self._grace:
                ledger.end_training("interrupted", metrics={"reason": "It was cut off with the server."})
        elif training is None and running:
            # started by hand
            self._begin()
        if training is not None and running:
            self._own = training.number
        after = rounds.options.retrain_after
        if after and not busy and ledger.is_due(after):
            self._begin()
            logger.info("%d new labels: a training starts", after)
            try:
                self._start_training()
            except MedClipSamError as error:
                ledger.end_training("failed", metrics={"reason": str(error)})
                logger.warning("The training that is due cannot start: %s", error)

    def _begin(self) -> None:
        rounds = self._rounds
        begun = rounds.ledger.begin_training(_named(rounds.networks.store.current(DEFAULT_NAME)))
        self._own = None if begun is None else begun.number

    def _work(self) -> None:
        """Do steps of embedding, scoring and making masks, for a while, where there is something and nobody waits."""
        until = time.monotonic() + _PREPARE_SECONDS
        while time.monotonic() < until and not (self._ended.is_set() or self._queue.jobs() or self._trains()):
            try:
                job = self._queue.submit(self._step, what="rounds", owner="")
            except BusyError:
                return
            if not job.future.result():
                return

    def _step(self, job: Job) -> int:
        rounds = self._rounds
        done = next((done for method in rounds.scorer.by_itself if (done := rounds.score(method, job))), 0)
        if done or not self._rounds.options.prelabels:
            return done
        network = self._rounds.networks.store.current(DEFAULT_NAME)
        model = _named(network) or "zero-shot"
        for image in self._rounds.upcoming("combined", self._rounds.options.prelabels):
            if (image, model) not in self._prelabelled:
                self._prelabelled.add((image, model))
                with self._rounds.images.in_background():
                    self._prelabel(image, job)
                return 1
        return 0


class RoundStrategy(Task):
    """A strategy as MONAI Label's clients see it.

    Parameters
    ----------
    name : str
        A name of `STRATEGIES`, or `ADJUDICATION`.
    rounds : Rounds
    """

    def __init__(self, name: str, rounds: Rounds) -> None:
        about = "What waits for a consensus of its readers, the worst agreement first; for reviewers"
        super().__init__(about if name == ADJUDICATION else STRATEGIES[name]().description)
        self.name = name
        self._rounds = rounds

    def __call__(self, caller: Caller) -> dict[str, Any] | None:
        """Return the next image and what is known of it; None where there is none."""
        reviews = caller.reviews or self.name == ADJUDICATION
        return self._rounds.next(self.name, reader_of(caller), reviews=reviews)


def reader_of(caller: Caller) -> str:
    """Return the name of who asks: the user as authentication tells it, else the client that the request names."""
    return caller.user if caller.user not in ("", ANONYMOUS) else caller.client[:LONGEST_READER] or ANONYMOUS


def _named(network: Network | None) -> str | None:
    return None if network is None else f"{network.name} version {network.version}"


def _outcome(ended: Round) -> dict[str, Any]:
    return {"round": ended.number, "state": ended.state, "network": ended.network_after, **ended.metrics}


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
