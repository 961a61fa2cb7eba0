"""The MONAI Label app: names the tasks and checks what requests ask for."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from monailabel.config import Settings, settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore as MonaiDatastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from pydicom.dataset import Dataset

import medclipsam
from medclipsam.active import LEDGER_FILE
from medclipsam.active.strategies import DEFAULT as DEFAULT_STRATEGY
from medclipsam.active.strategies import STRATEGIES
from medclipsam.base.errors import InputError, MedClipSamError, TargetError, UnknownOptionError
from medclipsam.dicomweb.client import Credentials, Pacs
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.finetune.store import ClipStore
from medclipsam.imaging.dicom_seg import SegmentInfo, drawn_on, read_seg_header, read_seg_label_map
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.base.audit import AuditFile, Caller
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.errors import UnknownError, as_http, told
from medclipsam.server.base.names import checked_name
from medclipsam.server.base.task import TrainTask
from medclipsam.server.base.workspace import VIEWER, default_workspace
from medclipsam.server.inference.clicks import BACKGROUND, RefineTask
from medclipsam.server.inference.describe import SegmentDescriber
from medclipsam.server.inference.evidence import EvidenceStore
from medclipsam.server.inference.infer_request import (
    DrawnMask,
    Envelope,
    ImageSource,
    InferRequest,
    SessionImage,
    StudyImage,
    Upload,
)
from medclipsam.server.inference.last_masks import LastMasks
from medclipsam.server.inference.model_task import Answer, ModelTask
from medclipsam.server.inference.networks import NetworkTask, SharedNetworks
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.request_schema import check_monai_label_keys
from medclipsam.server.inference.tasks import ZeroShotTask, task_name
from medclipsam.server.inference.work import Job
from medclipsam.server.learning.finetuner import NAME as FINETUNE
from medclipsam.server.learning.finetuner import FinetuneTrainer
from medclipsam.server.learning.readers import Readers
from medclipsam.server.learning.rounds import ADJUDICATION, Rounds, RoundStrategy, reader_of
from medclipsam.server.learning.scorer import METHODS
from medclipsam.server.learning.scoring import RoundScoring
from medclipsam.server.learning.trainer import NetworkTrainer
from medclipsam.server.monai_label import subtask
from medclipsam.server.monai_label.batch import ZeroShotBatch
from medclipsam.server.monai_label.sessions import expire_sessions
from medclipsam.server.studies.catalogue import Catalogue
from medclipsam.server.studies.datastore import FINAL, ORIGINAL, Datastore
from medclipsam.server.studies.dicomweb import (
    FRESH_SECONDS,
    IN_USE_SECONDS,
    LISTED_SECONDS,
    LONG_FRESH_SECONDS,
    DicomWebStudies,
)
from medclipsam.server.studies.folder import FolderStudies
from medclipsam.server.studies.images import ImageReader, unknown_image, unreadable_images
from medclipsam.server.studies.label_files import LabelFiles
from medclipsam.server.studies.labels import LabelReader, ReceivedLabel
from medclipsam.server.studies.viewing import ViewedImages
from medclipsam.studies.final import CONSENSUS, REPLACES, SAVED_BY
from medclipsam.studies.identity import studies_id
from medclipsam.targets import TargetSet, label_table
from medclipsam.training.names import DEFAULT_NAME
from medclipsam.training.store import NetworkStore

logger = logging.getLogger(__name__)

# MONAI Label tells a datastore by its class.
MonaiDatastore.register(Datastore)
DICOMWebDatastore.register(DicomWebStudies)

TEXT_TASK = "text_prompt"
CLICK_TASK = "refine"

# Keys that clients add to any request, and those that say how a sub-process is run.
_COMMON_KEYS = frozenset({"client_id", "description"})
_RUN_KEYS = frozenset({"device", "multi_gpu", "gpus", "logging", "local_rank", "max_workers"})
# What MONAI Label puts beside the params of a client into the one dictionary that it hands on.
_BESIDE = frozenset({"model", "image", "session", "user", "strategy", "method"})


def _params(request: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key not in _BESIDE}


def _caller(request: Mapping[str, Any], route: str = "") -> Caller:
    return Caller(str(request.get("user") or ""), str(request.get("client_id") or ""), route)


@dataclass(frozen=True)
class Inferred:
    """What an infer request came to.

    Parameters
    ----------
    file : Path
        The mask's file, which the caller removes.
    params : dict
        Names, evidence, latencies.
    tag : str
        Tag of the saved label.
    label : str or None
        Id of the saved label; None where none was saved.
    mask : LabelMap or None
        What the file holds.
    """

    file: Path
    params: dict[str, Any]
    tag: str
    label: str | None = None
    mask: LabelMap | None = field(default=None, repr=False)

    def to_monailabel(self) -> dict[str, Any]:
        """Return it as MONAI Label's routes and its batch task know it."""
        file = str(self.file)
        return {"label": self.label or file, "tag": self.tag, "file": file, "params": self.params}


class MedClipSamApp(MONAILabelApp):
    """Zero-shot segmentation of the studies by text.

    MONAI Label finds the class by the name of its direct base, and makes one object for the server and one in each
    sub-process.

    Parameters
    ----------
    app_dir : str
        Folder of the app's `main.py`; MONAI Label keeps logs there.
    studies : str
        Folder or DICOMweb URL.
    conf : dict of str to str
        Settings as `--conf` gives them, see `AppConf`.

    Raises
    ------
    MedClipSamError
        If a setting or target is unknown or not allowed.
    """

    studies: str

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str] | None) -> None:
        _quieten_subprocess()
        self.app_conf = AppConf.from_strings(conf or {})
        self.audit = AuditFile(self.app_conf.audit_file, with_text=self.app_conf.audit_text)
        self.targets = TargetSet.load(*map(Path, self.app_conf.targets_files))
        self.label_table = table = label_table(self.targets)
        self.images = ImageReader()
        self.masks = LastMasks()
        self.labels_read = LabelReader(self.images, table)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf or {},
            name="medclipsam",
            description="Text-driven segmentation (MedCLIP-SAMv2). For research use only.",
            version=medclipsam.__version__,
            # OHIF needs a list here and takes the ids from the models' own tables
            # and 3D Slicer a segment by this name for points that lie in no label
            labels=[*sorted(table, key=table.__getitem__), BACKGROUND],
        )
        # the rounds score while nobody waits; MONAI Label would start a process for each method after each request
        self._auto_update_scoring = False

    def server_mode(self, mode: bool) -> None:
        """Say whether this process serves; a server's sub-processes get their requests unseen."""
        super().server_mode(mode)
        if mode:
            subtask.install()

    @property
    def model_names(self) -> list[str]:
        """Names of the infer tasks that are served."""
        return [name for name, task in self._infer_tasks().items() if task.is_valid()]

    def info(self) -> dict[str, Any]:
        """Return what clients are told."""
        self._infer_tasks()
        told, rounds = dict(super().info()), self.rounds.brief()
        # 3D Slicer shows what stands with the trainer
        told["train_stats"].setdefault(DEFAULT_NAME, {})["rounds"] = rounds
        return {**told, "rounds": rounds}

    def _infer_tasks(self) -> dict[str, ModelTask[Any]]:
        """Return the infer tasks, with those of networks that were published since."""
        for name in self.networks.store.names():
            if name not in self._infers:
                self._infers[name] = NetworkTask(name, self.networks, self.targets, **self._shared)
        return dict(self._infers)

    def _networks_folder(self) -> Path:
        if self.app_conf.networks:
            return Path(self.app_conf.networks).expanduser().absolute()
        studies = self.studies
        if not studies.startswith(("http://", "https://")):
            studies = str(Path(studies).expanduser().resolve())
        return default_workspace(studies) / "networks"

    @property
    def workspace(self) -> Path:
        """Folder of what the server writes for these studies."""
        return self._networks_folder().parent

    def init_infers(self) -> dict[str, ModelTask[Any]]:
        """Return `text_prompt`, `refine`, and one task for each target of the configuration."""
        table = label_table(self.targets)
        self.clips = ClipStore(self.workspace / "finetuned")
        self.pipeline = pipeline = SharedPipeline(self.app_conf, self.targets, self.clips)
        images, masks = self.images, self.masks
        self.evidence = EvidenceStore(images)
        shared: dict[str, Any] = {"images": images, "masks": masks, "evidence": self.evidence}
        self._shared = shared
        self.networks = SharedNetworks(NetworkStore(self._networks_folder()), self.app_conf.device)
        # drawn before there is any label
        self.networks.store.split(self.app_conf.split)
        ledger = Path(self.app_conf.ledger) if self.app_conf.ledger else self.networks.store.folder.parent / LEDGER_FILE
        chosen = list(dict.fromkeys(map(self.targets.get, self.app_conf.targets)))
        self.rounds = Rounds(ledger, self.app_conf.rounds, self.datastore, self.networks, pipeline, images, chosen)
        self.readers = Readers(self.rounds, self.datastore, images, table)
        tasks: dict[str, ModelTask[Any]] = {
            TEXT_TASK: ZeroShotTask(pipeline, table, self.app_conf.defaults, **shared),
            CLICK_TASK: RefineTask(pipeline, self.targets, images, masks),
        }
        for target in chosen:
            model = task_name(target.name)
            if model in tasks:
                raise TargetError(f"Target {target.name!r} cannot be served as {model!r}: that model is there already.")
            label = {target.name: target.label}
            tasks[model] = ZeroShotTask(pipeline, label, self.app_conf.defaults, target, **shared)
        # there before it is trained, so that it is listed as soon as it is published
        tasks[DEFAULT_NAME] = NetworkTask(DEFAULT_NAME, self.networks, self.targets, **shared)
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the trainer of networks and that of the CLIP."""
        network = NetworkTrainer(
            self.targets,
            self.networks.store,
            self.app_conf.device,
            self.rounds.rejected,
            self.app_conf.training,
        )
        own = self.app_conf.rounds.training
        check_keys(own, network.config(), "trainer network")
        network.check(own)
        local = not self.studies.startswith(("http://", "https://"))
        return {
            DEFAULT_NAME: network,
            FINETUNE: FinetuneTrainer(
                self.targets,
                self.clips,
                self.app_conf.weights,
                lock=self.networks.store.folder,
                pairs=self.workspace / "pairs",
                studies=Path(self.studies) if local else None,
                device=self.app_conf.device,
                defaults=self.app_conf.finetuning,
            ),
        }

    def cleanup_sessions(self) -> None:
        """Remove the sessions that have ended; MONAI Label calls this at the start and every few minutes."""
        sessions = self.sessions()
        if sessions is not None:
            expire_sessions(sessions)

    def init_strategies(self) -> dict[str, RoundStrategy]:
        """Return the strategies that say what to label next."""
        return {name: RoundStrategy(name, self.rounds) for name in (*STRATEGIES, ADJUDICATION)}

    def init_scoring_methods(self) -> dict[str, RoundScoring]:
        """Return the methods that say of images what the strategies choose by."""
        return {name: RoundScoring(name, self.rounds) for name in METHODS}

    def init_batch_infer(self) -> BatchInferTask:
        """Return the batch task."""
        return ZeroShotBatch()

    def init_datastore(self) -> Datastore:
        """Return the datastore of the studies; its list of file types is ours unless the settings name one."""
        if self.studies.startswith(("http://", "https://")):
            return self._init_dicomweb_datastore()
        return FolderStudies(
            Path(self.studies),
            _set_by_user("MONAI_LABEL_DATASTORE_FILE_EXT"),
            labels=self.labels_read,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            private=self.app_conf.label_access == "owner",
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        """Return our datastore in place of the stock one, which at start would download a program to write SEG with."""
        options = self.app_conf.pacs
        asked = _set_by_user("MONAI_LABEL_DICOMWEB_SEARCH_FILTER")
        if asked:
            options = _with_search(options, asked)
        prefixes = {
            "qido": settings.MONAI_LABEL_QIDO_PREFIX,
            "wado": settings.MONAI_LABEL_WADO_PREFIX,
            "stow": settings.MONAI_LABEL_STOW_PREFIX,
        }
        # MONAI Label reads its settings from a file too
        names = [
            f"MONAI_LABEL_{kind}_{name}" for kind in ("DICOMWEB", "DATASTORE") for name in ("USERNAME", "PASSWORD")
        ]
        environment = {**os.environ, **{name: getattr(settings, name) for name in names}}
        pacs = Pacs(self.studies, options, Credentials.from_environment(options.token_file, environment), prefixes)
        # without a user and password that may stand in it
        self.studies = pacs.url
        cache = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH
        place = Path(cache) if cache else Path.home() / ".cache" / "monailabel" / "dicom"
        describe = SegmentDescriber(self.targets, self.masks)
        return DicomWebStudies(
            pacs,
            place / hashlib.sha256(pacs.url.encode()).hexdigest()[:16],
            images=self.images,
            describe=describe,
            label_of=describe.label_of,
            labels=self.labels_read,
            # a training looks at its images for as long as it takes
            in_use=LISTED_SECONDS if _is_subprocess() else IN_USE_SECONDS,
            fresh=LONG_FRESH_SECONDS if _is_subprocess() else FRESH_SECONDS,
        )

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer one infer request as MONAI Label's own route makes it.

        Parameters
        ----------
        request : dict
            `model`, `image` (an id of the datastore, or the file of a session) and the params of the client: MONAI
            Label's keys and the task's options.
        datastore : Datastore, optional
            Where the image is looked up and the label saved; the app's own by default.

        Returns
        -------
        dict
            `file` and `label`: the mask's file, or the saved label's id; `tag`; `params`: names, evidence, latencies.

        Raises
        ------
        fastapi.HTTPException
            404 for an unknown model or image, 400 for a request or an image that cannot be used.
        """
        with as_http():
            task, image = self.task(request.get("model")), request.get("image")
            params, source = _params(request), self._source(image, datastore or self.datastore())
            asked = task.request(params, Envelope(str(request["model"]), source, _caller(request)))
            return self.run_infer(asked, store=datastore).to_monailabel()

    def batch_infer(
        self, request: dict[str, Any], datastore: Datastore | None = None, job: Job | None = None
    ) -> dict[str, Any]:
        """Infer and save the images that `request["images"]` names: all, labeled, unlabeled, or a list of ids.

        Raises
        ------
        fastapi.HTTPException
            404 for an unknown model, 400 for unusable options; in a sub-process SystemExit, since its last lines of
            output are what the client is shown.
        """
        with self._errors_as_answers():
            each = self.batch_request(request.get("model"), _params(request), _caller(request, "batch inference"))

            def infer_one(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
                return self.run_infer(each.on(StudyImage(one["image"])), job, store).to_monailabel()

            return self._batch_infer(request, datastore or self.datastore(), infer_one)

    def batch_request(self, model: Any, params: Mapping[str, Any], caller: Caller) -> InferRequest:
        """Return what a batch asks for of each image, whose place an empty id takes.

        Raises
        ------
        UnknownError
            If there is no such model.
        InputError
            If the params cannot be used, or the model takes no batch.
        """
        task = self.task(model)
        if isinstance(task, RefineTask):
            raise InputError(f"Model {CLICK_TASK!r} corrects one mask by clicks and takes no batch.")
        return task.request({**params, "save_label": True}, Envelope(model, StudyImage(""), caller))

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the image to look at next, as MONAI Label's own route asks for it.

        Raises
        ------
        fastapi.HTTPException
            404 if the strategy is unknown, 400 if the request holds anything but what the strategy takes.
        """
        with as_http():
            return self.propose(request.get("strategy") or DEFAULT_STRATEGY, _params(request), _caller(request))

    def propose(self, strategy: Any, params: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """Return the image that a strategy proposes to who asks, and its `path`; empty where there is none.

        Raises
        ------
        UnknownError
            If the strategy is unknown.
        InputError
            If the params hold anything but what the strategy takes.
        """
        known = self._strategies.get(strategy) if isinstance(strategy, str) else None
        if known is None:
            raise UnknownError(f"Strategy {strategy!r} is not served; allowed: {_list(self._strategies)}.")
        check_keys(params, known.info().get("config") or {}, f"strategy {strategy}")
        found = known(caller)
        return {**found, "path": self.datastore().get_image_uri(found["id"])} if found else {}

    def train(self, request: dict[str, Any], job: Job | None = None) -> dict[str, Any]:
        """Train one of the trainers that `/info/` lists.

        Raises
        ------
        fastapi.HTTPException
            404 if the trainer is unknown, 400 if the request holds anything but what the trainer takes; in a
            sub-process SystemExit, since its last lines of output are what the client is shown.
        """
        with self._errors_as_answers():
            params = _params(request)
            return self.check_trainer(request.get("model"), params)(params, self.datastore(), job)

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run one of the scoring methods that `/info/` lists.

        Raises
        ------
        fastapi.HTTPException
            404 if the method is unknown, 400 if the request holds anything but what the method takes, 409 where there
            is nothing yet to score by; in a sub-process SystemExit, as from `train`.
        """
        with self._errors_as_answers():
            self.scoring_method(request.get("method"), _params(request))
            return dict(super().scoring(request, datastore))

    def check_trainer(self, model: Any, params: Mapping[str, Any]) -> NetworkTrainer | FinetuneTrainer:
        """Return a trainer, or raise `InputError` where `train` would refuse the params."""
        trainer = self._trainers.get(model) if isinstance(model, str) else None
        if not isinstance(trainer, (NetworkTrainer, FinetuneTrainer)):
            raise UnknownError(f"Trainer {model!r} is not served; allowed: {_list(self._trainers)}.")
        check_keys(params, {*trainer.config(), *_RUN_KEYS}, f"trainer {model}")
        trainer.check(params)
        if isinstance(trainer, NetworkTrainer):
            trainer.check_labels(params, self.datastore())
        return trainer

    def scoring_method(self, method: Any, params: Mapping[str, Any]) -> RoundScoring:
        """Return a scoring method, or raise `InputError` where `scoring` would refuse the params."""
        task = self._scoring_methods.get(method) if isinstance(method, str) else None
        if not isinstance(task, RoundScoring):
            raise UnknownError(f"Scoring method {method!r} is not served; allowed: {_list(self._scoring_methods)}.")
        check_keys(params, _RUN_KEYS, f"scoring method {method}")
        return task

    @contextmanager
    def _errors_as_answers(self) -> Iterator[None]:
        """Turn errors into an HTTP answer, or in a sub-process into its last line, which the client is shown."""
        try:
            yield
        except MedClipSamError as error:
            if self._server_mode:
                with as_http():
                    raise
            logger.error("%s", told(error))
            raise SystemExit(2) from None

    def task(self, model: Any) -> ModelTask[Any]:
        """Return an infer task.

        Raises
        ------
        UnknownError
            If there is none of that name.
        """
        task = self._infer_tasks().get(model) if isinstance(model, str) else None
        if task is None or not task.is_valid():
            raise UnknownError(f"Model {model!r} is not served; allowed: {_list(self.model_names)}.")
        return task

    def image_path(self, image: Any, datastore: Datastore | None = None) -> Path:
        """Return the file or series folder of an image of the studies.

        Raises
        ------
        InputError
            If `image` is no image id.
        UnknownError
            If there is no such image.
        """
        image = checked_name(image, "Image")
        store = datastore or self.datastore()
        uri = store.get_image_uri(image)
        if not uri or not os.path.exists(uri):
            raise unknown_image(image, lambda name: bool(store.get_image_uri(name)))
        return Path(uri)

    def save_label(self, image: str, file: Path, tag: str, info: Mapping[str, Any], caller: Caller) -> str:
        """Save a label that a person has drawn, and note it in the audit file; a final one then counts in the rounds.

        Parameters
        ----------
        image : str
            Id of the image.
        file : Path
            The label; it is copied.
        tag : str
            The label's tag.
        info : mapping
            What is kept with the label, beside who saved it.
        caller : Caller
            Who saves it.

        Returns
        -------
        str
            The label's id.

        Raises
        ------
        InputError
            If there is no such image, or the label does not fit it.
        """
        received = self.labels_read.read(self.image_path(image), file, {**info, SAVED_BY: reader_of(caller)})
        return self._keep_by_person(image, tag, received, caller)

    def keep_label_map(
        self, image: str, label: LabelMap, info: Mapping[str, Any], caller: Caller, tag: str = FINAL
    ) -> str:
        """Save a label map that a person has drawn, as `save_label` does; its names are kept with it.

        `info` says with `REPLACES` whose labels it corrects, and with `CONSENSUS` that it was made of several.
        """
        info = {**info, **label.to_monailabel(), SAVED_BY: reader_of(caller)}
        received = self.labels_read.check(ReceivedLabel(self.image_path(image), label, info))
        return self._keep_by_person(image, tag, received, caller)

    def _keep_by_person(self, image: str, tag: str, received: ReceivedLabel, caller: Caller) -> str:
        label = self._keep_label(image, tag, received, caller, self.datastore())
        if tag == FINAL:
            self._note_label(image, received, caller)
        return label

    def store_segmentation(self, file: Path, caller: Caller) -> Dataset:
        """Save a DICOM SEG that was drawn on frames of an image of the studies as the image's final label.

        Parameters
        ----------
        file : Path
            The segmentation.
        caller : Caller
            Who saves it.

        Returns
        -------
        pydicom.Dataset
            The header of the segmentation.

        Raises
        ------
        InputError
            If it is no segmentation, or was not drawn on an image of the studies.
        """
        header = read_seg_header(file)
        image = self.viewed.image_of(*drawn_on(header))
        frames, taken = self.viewed.frames(image), set[int]()
        describe = SegmentDescriber(self.targets, self.masks)

        def label_of(segment: SegmentInfo) -> int:
            label = describe.label_of(segment, taken)
            taken.add(label)
            return label

        label, _ = read_seg_label_map(file, frames.image, label_of, frames if frames.as_displayed else None)
        self.keep_label_map(image, label, {"user": caller.user}, caller)
        return header

    def _keep_label(self, image: str, tag: str, received: ReceivedLabel, caller: Caller, store: Datastore) -> str:
        """Save a label and note it in the audit file."""
        label = store.keep_label(image, tag, received)
        params, model = received.info.get("params"), received.info.get("model")
        weights = params.get("weights") if isinstance(params, dict) else received.info.get("weights")
        self.audit.label(caller, "label saved", image, tag, model if isinstance(model, str) else None, weights)
        return label

    @cached_property
    def viewed(self) -> ViewedImages:
        """What viewers are told of the images."""
        store, catalogue = self.datastore(), None
        if isinstance(store, FolderStudies):
            known = studies_id(Path(self.studies)) or str(self.studies)
            catalogue = Catalogue(store, self.images, known, self.workspace / VIEWER)
        return ViewedImages(store, self.images, self.image_path, catalogue)

    def studies_not_ready(self) -> str | None:
        """Return why labels cannot be saved with the studies at the moment; None where they can."""
        store = self.datastore()
        return store.not_ready() if isinstance(store, LabelFiles) else None

    def unreadable(self) -> dict[str, dict[str, str]]:
        """Return what cannot be read: `files` that are not listed for that, and listed `images`, and why."""
        store = self.datastore()
        return {"files": store.unreadable_files(), "images": unreadable_images(store, self.images)}

    def request(
        self,
        model: Any,
        params: Mapping[str, Any],
        image: ImageSource,
        caller: Caller,
        mask: Upload | DrawnMask | None = None,
    ) -> InferRequest:
        """Return the checked request of a client for `run_infer`.

        Raises
        ------
        UnknownError
            If there is no such model.
        InputError
            If the params cannot be used.
        """
        return self.task(model).request(params, Envelope(model, image, caller, mask))

    def run_infer(self, request: InferRequest, job: Job | None = None, store: Datastore | None = None) -> Inferred:
        """Answer a request.

        Parameters
        ----------
        request : InferRequest
            Of `request`.
        job : Job, optional
            Is told how far the work is, and may stop it.
        store : Datastore, optional
            Where the image is looked up and the label saved; the app's own by default.

        Raises
        ------
        MedClipSamError
            If there is no such image, or it cannot be used.
        """
        task, caller = self.task(request.model), request.caller
        store = store or self.datastore()
        study = request.image.id if isinstance(request.image, StudyImage) else None
        path = request.image.path if not isinstance(request.image, StudyImage) else self.image_path(study, store)
        answer = self.pipeline.within_memory(lambda: task(request, path, job))
        tag = request.save_as or ORIGINAL
        try:
            self.audit.mask(caller, "(sent along)" if study is None else study, request.model, answer.params)
            if study is None:
                return Inferred(answer.file, answer.params, tag, mask=answer.label)
            self._note_mask(study, request, answer)
            if request.save_as is None:
                return Inferred(answer.file, answer.params, tag, mask=answer.label)
            info = {"model": request.model, "params": answer.params}
            made = self.labels_read.check(ReceivedLabel(path, answer.label, info, answer.file))
            label = self._keep_label(study, tag, made, caller, store)
            return Inferred(answer.file, answer.params, tag, label, answer.label)
        except BaseException:
            answer.file.unlink(missing_ok=True)
            raise

    def _note_mask(self, image: str, request: InferRequest, answer: Answer) -> None:
        """Note a mask that was made, against which a correction is measured; one by clicks is a correction itself."""
        if request.model == CLICK_TASK:
            return
        source = made_by(answer.params)
        # one that lies with the studies waits for whoever opens the image
        holder = reader_of(request.caller) if request.save_as is None else ""
        self.rounds.record_offer(image, holder, source, answer.label.values)
        if "network" not in answer.params:
            self.rounds.presence(image, answer.params)

    def prelabel(self, image: str, job: Job | None = None) -> None:
        """Make a mask for an image by the best model there is, and let it wait with the studies.

        One by the network has the network's name as its tag: in the place of a zero-shot mask, under `original`, it
        would be a pseudo-label without evidence. Without a published network, and without targets that the
        configuration names, there is nothing to ask for.
        """
        model, params = DEFAULT_NAME, {"label_tag": DEFAULT_NAME}
        if self.networks.store.current(DEFAULT_NAME) is None:
            if not self.app_conf.targets:
                return
            model, params = TEXT_TASK, {"text": "; ".join(self.app_conf.targets), "label_tag": ORIGINAL}
        asked = self.request(model, {**params, "save_label": True}, StudyImage(image), Caller())
        self.run_infer(asked, job).file.unlink(missing_ok=True)

    def _note_label(self, image: str, received: ReceivedLabel, caller: Caller) -> None:
        """Take a final label that a person has saved into the rounds."""
        made = received.info.get(CONSENSUS) or {}
        try:
            self.rounds.record_label(
                image,
                reader_of(caller),
                received.label,
                replaces=received.info.get(REPLACES) or (),
                consensus=made.get("method", ""),
            )
        except MedClipSamError as error:
            # the label lies with the studies all the same, and counts as one from the next look at them on
            logger.warning("A saved label could not be taken into the rounds: %s", error)

    def _source(self, image: Any, store: Datastore) -> ImageSource:
        """Return the image that a request of MONAI Label's own route names: an id, or the file of a session.

        Other files are not opened: a client can name any path there.
        """
        try:
            return StudyImage(checked_name(image, "Image"))
        except InputError:
            if not isinstance(image, str) or not image:
                raise
        path, sessions = Path(image).resolve(), self.sessions()
        if sessions is not None and path.exists() and path.is_relative_to(Path(sessions.store_path).resolve()):
            return SessionImage(path)
        raise unknown_image(image, lambda name: bool(store.get_image_uri(name)))


def made_by(params: Mapping[str, Any]) -> str:
    """Return what made a mask, by the parameters of its answer: a network with its version, or "zero-shot"."""
    network = params.get("network")
    return f"{network['name']} version {network['version']}" if isinstance(network, Mapping) else "zero-shot"


def check_keys(params: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Raise `InputError` where the params of a client hold a key that is neither known nor one that clients add.

    Parameters
    ----------
    params : mapping
        Of the client.
    known : iterable of str
        Keys that `what` takes.
    what : str
        What is asked, for the sentence: "strategy random".
    """
    names = set(known)
    check_monai_label_keys(params)
    for key, value in params.items():
        if key not in names and key not in _COMMON_KEYS:
            raise UnknownOptionError(key, value, names - _RUN_KEYS or names, also=names, what=f"the {what}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none, since this server has none"


def _is_subprocess() -> bool:
    """Whether this is a process that MONAI Label has started for a training or a batch."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name in ("monailabel.interfaces.utils.app", subtask.NAME)


def _quieten_subprocess() -> None:
    """Keep requests, with their texts and image ids, out of what MONAI Label's sub-processes print into the log."""
    if _is_subprocess():
        logging.getLogger("__main__").setLevel(logging.WARNING)
        logging.getLogger("monailabel").setLevel(logging.WARNING)


def _with_search(options: PacsOptions, asked: dict[str, Any]) -> PacsOptions:
    """Return the options with MONAI Label's own search filter: DICOM keywords to values, the modality among them.

    Raises
    ------
    OptionError
        If it holds something else.
    """
    conditions = {str(name): str(value) for name, value in asked.items()}
    modalities = conditions.pop("Modality", "")
    return options.replace(
        modalities=modalities or options.modalities,
        filters=(*options.filters, *conditions.items()),
    )


def _set_by_user(name: str) -> Any:
    """Return a setting of MONAI Label that differs from its default, else None.

    The stock start command writes all settings into the environment, so that their presence there says nothing.
    """
    value = getattr(settings, name)
    return None if value == Settings.model_fields[name].default else value
