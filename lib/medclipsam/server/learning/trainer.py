"""The train task of the network, and trainings that outlived the server which started them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import read_origin
from medclipsam.imaging.label_map import ValueNames
from medclipsam.server.base.errors import UnknownError, without_folders
from medclipsam.server.base.task import TrainTask
from medclipsam.server.inference.work import Job
from medclipsam.server.learning.finetuner import NAME as FINETUNE
from medclipsam.server.studies.datastore import FINAL, Datastore
from medclipsam.studies.final import is_by_person
from medclipsam.targets import TargetSet, normalise, suggest
from medclipsam.training.lock import Holder, holder_of, training_state
from medclipsam.training.names import DEFAULT_NAME
from medclipsam.training.options import TrainingOptions
from medclipsam.training.run import train_network
from medclipsam.training.selection import KINDS, Candidate, Label
from medclipsam.training.settings import Request, RunOptions
from medclipsam.training.split import patient_key
from medclipsam.training.store import NetworkStore
from medclipsam.weights import MemoryNeed

logger = logging.getLogger(__name__)


# What a network of nnU-Net's size takes in memory beside its work, with gradients and momentum.
_PARAMETERS = 400 << 20
_ENDING_SECONDS = 10


class NetworkTrainer(TrainTask):
    """Train, validate and publish a network.

    Parameters
    ----------
    targets : TargetSet
        Known targets.
    store : NetworkStore
        Where networks are published.
    device : str or None
        Device of a request that names none.
    rejected : callable
        Returns the images whose label a reviewer has rejected: no training learns from it.
    defaults : mapping of str to object, optional
        Options of a request that does not name them.
    """

    def __init__(
        self,
        targets: TargetSet,
        store: NetworkStore,
        device: str | None,
        rejected: Callable[[], Collection[str]] = tuple,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__("Trains a network on the saved labels, and publishes it if it is not worse")
        self._targets = targets
        self._store = store
        self._rejected = rejected
        self._defaults = {"device": device or "auto", **(defaults or {})}

    def config(self) -> dict[str, Any]:
        """Return the options as the flat table that clients draw their forms from."""
        return {**RunOptions.form(**self._defaults), **TrainingOptions.form(**self._defaults)}

    def stats(self) -> dict[str, Any]:
        """Return how the running or latest training goes, and what is served, as clients show it."""
        # everyone who may ask for `/info/` sees it
        state = without_folders(training_state(self._store.folder))
        name = state.get("name", DEFAULT_NAME)
        network = self._store.current(name)
        verdict = network.metrics.get("verdict", {}) if network is not None else {}
        started = state.get("started")
        found: dict[str, Any] = {
            "epoch": state.get("epoch") or 0,
            "total_epochs": state.get("epochs") or 0,
            "train": {"loss": state.get("loss"), "val_mean_dice": state.get("dice")},
            "best_metric": verdict.get("child") or 0.0,
            "published": None if network is None else {"name": network.name, "version": network.version},
            "training": state,
        }
        if isinstance(started, (int, float)):
            found["start_ts"] = int(started)
            found["total_time"] = _duration(time.time() - started)
        return found

    def check(self, request: Mapping[str, Any]) -> Request:
        """Return the typed request.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        """
        known = self.config()
        asked = {key: value for key, value in request.items() if key in known}
        asked |= {key: value for key, value in self._defaults.items() if asked.get(key) in (None, "", "auto", [])}
        if request.get("multi_gpu") is False:
            asked.setdefault("processes", 1)
        return Request.from_mapping(asked)

    def check_labels(self, request: Mapping[str, Any], datastore: Datastore) -> None:
        """Raise `InputError` where a label to train is neither a known target nor named by a label of the studies."""
        wanted = [name for name in self.check(request).run.label_names if not self._targets.mentions(name)]
        if not wanted:
            return
        named = {
            normalise(name)
            for image in datastore.list_images()
            for tag in datastore.get_labels_by_image_id(image)
            for name, _ in ValueNames.from_monailabel(datastore.get_label_info(image, str(tag)) or {}).pairs
        }
        for name in wanted:
            if normalise(name) not in named:
                near = suggest(name, self._targets, limit=1)
                hint = f" Did you mean {near[0].target.name!r}?" if near else ""
                raise InputError(
                    f"The label {name!r} is not a known target, and no label of the studies has that name.{hint}"
                )

    def need(self, request: Mapping[str, Any]) -> MemoryNeed:
        """Return what a training takes."""
        options = self.check(request).training.resolved()
        assert options.memory is not None
        small = options.preset == "small"
        return MemoryNeed(_PARAMETERS // 10 if small else _PARAMETERS, options.memory, measured=False)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, job: Job | None = None) -> dict[str, Any]:
        """Train, and return what came of it; `job` may stop it.

        Raises
        ------
        MedClipSamError
            See `medclipsam.training.run.train_network`.
        """
        told = time.monotonic()

        def tell(state: Mapping[str, Any]) -> None:
            nonlocal told
            # the server shows the last lines of what is logged
            if state.get("stage") == "train" and (state.get("epoch") == state.get("epochs") or _due(told)):
                told = time.monotonic()
                logger.info("Epoch %s of %s, %s s left", state["epoch"], state["epochs"], round(state.get("eta") or 0))

        network = train_network(
            lambda: candidates(datastore, self._rejected()),
            self._targets,
            self._store,
            self.check(request),
            tell=tell,
            should_stop=job.stopped if job else None,
        )
        logger.info("Version %d of %s: %s. %s", network.version, network.name, network.status, network.reason)
        verdict = network.metrics.get("verdict", {})
        return {
            "name": network.name,
            "version": network.version,
            "status": network.status,
            "reason": network.reason,
            "best_metric": verdict.get("child"),
        }


def candidates(datastore: Datastore, rejected: Collection[str] = ()) -> Iterator[Candidate]:
    """Yield the images of a datastore that have a label.

    A final one of a rejected image, one that a model has made (see `is_by_person`), or those of several people of which
    no consensus was made, count as none.
    """
    for image in datastore.list_images():
        tags = [kind for kind in KINDS if kind in {str(tag) for tag in datastore.get_labels_by_image_id(image)}]
        labels: dict[str, Label] = {}
        for kind in tags:
            info = dict(datastore.get_label_info(image, kind) or {})
            if kind == FINAL and (image in rejected or not is_by_person(info) or datastore.waits_for_consensus(image)):
                continue
            path = Path(datastore.get_label_uri(image, kind))
            if path.is_file():
                labels[kind] = Label(path, info)
        if labels:
            path = Path(datastore.get_image_uri(image))
            try:
                patient, study, modality = read_origin(path)
            except ImageError as error:
                logger.warning("%s It is left out of the training.", str(error).replace(str(path), path.name))
                continue
            yield Candidate(image, path, patient_key(image, patient=patient, study=study), labels, modality)


def patient_of(datastore: Datastore, image: str) -> str:
    """Return what tells the patient of an image, without fetching a series for it.

    Raises
    ------
    UnknownError
        If there is no such image any more.
    ImageError
        If its header cannot be read.
    """
    if datastore.is_remote:
        info = datastore.get_image_info(image)
        patient, study = (str(info.get(key) or "").strip() or None for key in ("PatientID", "StudyInstanceUID"))
        return patient_key(image, patient=patient, study=study)
    path = datastore.get_image_uri(image)
    if not path:
        raise UnknownError(f"Image {image!r} is not among the studies.")
    return patient_key(image, Path(path))


def orphaned_training(store: NetworkStore, own: set[int]) -> Holder | None:
    """Return who trains in the workspace and is no process of this server.

    Parameters
    ----------
    store : NetworkStore
    own : set of int
        Ids of this server's own training processes.
    """
    holder = holder_of(store.folder)
    return None if holder is None or holder.pid in own else holder


def describe_training(store: NetworkStore, holder: Holder) -> dict[str, Any]:
    """Return an adopted training as MONAI Label describes its own."""
    asked = {"model": FINETUNE} if holder.what == FINETUNE else {"model": DEFAULT_NAME, "name": holder.what}
    return {
        "id": f"process-{holder.pid}",
        "status": "RUNNING",
        "adopted": True,
        "request": asked,
        "start_ts": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since)),
        "details": [],
        "progress": training_state(store.folder),
    }


def stop_training_of(store: NetworkStore, holder: Holder) -> dict[str, Any]:
    """End an adopted training with all its processes, and describe it; what was published before stays."""
    answer = describe_training(store, holder)
    try:
        process = psutil.Process(holder.pid)
        family = [process, *process.children(recursive=True)]
        # the number may be another process's by now
        if holder_of(store.folder) == holder:
            for each in family:
                each.kill()
            psutil.wait_procs(family, timeout=_ENDING_SECONDS)
    except psutil.NoSuchProcess:
        pass
    return {**answer, "status": "STOPPED", "end_ts": time.strftime("%Y-%m-%d %H:%M:%S")}


def _due(told: float) -> bool:
    return time.monotonic() - told > 5


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
