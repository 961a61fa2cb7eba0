"""The MONAI Label app: names the tasks and checks what requests ask for."""

from __future__ import annotations

import copy
import logging
import os
import re
from pathlib import Path
from typing import Any

from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import Settings, settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask

import medclipsam
from medclipsam.errors import InputError, MedClipSamError, OptionError, TargetError
from medclipsam.server.clicks import BACKGROUND, RefineTask
from medclipsam.server.conf import AppConf
from medclipsam.server.dicomweb import SEARCH_FILTER, DicomWebStudies
from medclipsam.server.evidence import EvidenceStore
from medclipsam.server.folder import FolderStudies
from medclipsam.server.http import UnknownError, as_http
from medclipsam.server.images import ImageReader, is_upload
from medclipsam.server.labels import LabelCheck
from medclipsam.server.present import LastMasks
from medclipsam.server.requests import flag
from medclipsam.server.shared import SharedPipeline
from medclipsam.server.tasks import ZeroShotBatch, ZeroShotTask, task_name
from medclipsam.targets import TargetSet, label_table

logger = logging.getLogger(__name__)

TEXT_TASK = "text_prompt"
CLICK_TASK = "refine"

# The label's tag names a folder of the datastore.
_TAG = re.compile(r"[A-Za-z0-9_-]+")


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
        self.app_conf = AppConf.from_strings(conf or {})
        self.targets = TargetSet.load(*map(Path, self.app_conf.targets_files))
        table = label_table(self.targets)
        self.images = ImageReader()
        self.check_label = LabelCheck(self.images, table.values())
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

    @property
    def model_names(self) -> list[str]:
        """Names of the infer tasks."""
        return list(self._infers)

    def init_infers(self) -> dict[str, InferTask]:
        """Return `text_prompt`, `refine`, and one task for each target of the configuration."""
        table = label_table(self.targets)
        self.pipeline = pipeline = SharedPipeline(self.app_conf, self.targets)
        images, masks = self.images, LastMasks()
        self.evidence = EvidenceStore(images)
        shared: Any = {"images": images, "masks": masks, "evidence": self.evidence}
        tasks: dict[str, InferTask] = {
            TEXT_TASK: ZeroShotTask(pipeline, table, self.app_conf.defaults, **shared),
            CLICK_TASK: RefineTask(pipeline, self.targets, images, masks),
        }
        for target in dict.fromkeys(map(self.targets.get, self.app_conf.targets)):
            model = task_name(target.name)
            if model in tasks:
                raise TargetError(f"Target {target.name!r} cannot be served as {model!r}: that model is there already.")
            label = {target.name: target.label}
            tasks[model] = ZeroShotTask(pipeline, label, self.app_conf.defaults, target, **shared)
        return tasks

    def init_batch_infer(self) -> BatchInferTask:
        """Return the batch task."""
        return ZeroShotBatch()

    def init_datastore(self) -> Datastore:
        """Return the datastore of the studies; its list of file types is ours unless the settings name one."""
        if self.studies.startswith(("http://", "https://")):
            self.studies = self.studies.strip().rstrip("/")
            return self.init_remote_datastore()
        return FolderStudies(
            Path(self.studies),
            _set_by_user("MONAI_LABEL_DATASTORE_FILE_EXT"),
            check_label=self.check_label,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        """Return our datastore in place of the stock one, which at start would download a program to write SEG with."""
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        client = DICOMwebClientX(
            url=self.studies,
            session=create_session_from_user_pass(user, password) if user and password else None,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        return DicomWebStudies(
            client=client,
            search_filter=_set_by_user("MONAI_LABEL_DICOMWEB_SEARCH_FILTER") or SEARCH_FILTER,
            cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or None,
            fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
            check_label=self.check_label,
        )

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer one infer request.

        Parameters
        ----------
        request : dict
            `model`, `image` (an id of the datastore, or a file that the infer or session route has received), MONAI
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
            return self._infer(request, datastore)

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Infer and save the images that `request["images"]` names: all, labeled, unlabeled, or a list of ids.

        Raises
        ------
        fastapi.HTTPException
            404 for an unknown model, 400 for unusable options; in a sub-process SystemExit, since its last lines of
            output are what the client is shown.
        """
        try:
            task = self._task(request.get("model"))
            if isinstance(task, RefineTask):
                raise InputError(f"Model {CLICK_TASK!r} mends one mask by clicks and takes no batch.")
            task.check(request)
            return self._batch_infer(request, datastore or self.datastore(), self._infer)
        except MedClipSamError as error:
            if self._server_mode:
                with as_http():
                    raise
            logger.error("%s", error)
            raise SystemExit(2) from None

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the image to look at next.

        Raises
        ------
        fastapi.HTTPException
            404 if the strategy is unknown.
        """
        with as_http():
            strategy = request.get("strategy") or "random"
            if strategy not in self._strategies:
                raise UnknownError(f"Strategy {strategy!r} is not served; allowed: {', '.join(self._strategies)}.")
            return super().next_sample(request)

    def _infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        task = self._task(request.get("model"))
        task.check(request)
        store = datastore or self.datastore()
        path, stored = self._source(request.get("image"), store)
        save = flag(request, "save_label", default=False) and stored
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise OptionError("label_tag", tag, "letters, digits, - and _, such as original")
        file, params = task({**copy.deepcopy(request), "image": str(path)})

        label = file
        if save:
            label = store.save_label(request["image"], file, tag, {"model": request["model"], "params": params})
        return {"label": label, "tag": tag, "file": file, "params": params}

    def _task(self, model: Any) -> ZeroShotTask | RefineTask:
        task = self._infers.get(model) if isinstance(model, str) else None
        if not isinstance(task, (ZeroShotTask, RefineTask)):
            raise UnknownError(f"Model {model!r} is not served; allowed: {', '.join(self._infers)}.")
        return task

    def _source(self, image: Any, datastore: Datastore) -> tuple[Path, bool]:
        """Return the file or folder of an image and whether the datastore holds it.

        A path is taken only where the server's own routes put what they receive: a request must not open other files.
        """
        if not isinstance(image, str) or not image:
            raise InputError(f"Image {image!r} is no image id; give the id of an image of the studies.")
        if os.sep in image:
            path = Path(image).resolve()
            if path.exists() and (is_upload(path) or self._is_session(path)):
                return path, False
            raise UnknownError(f"Image {image!r} is not among the studies.")
        uri = datastore.get_image_uri(image)
        if not uri or not os.path.exists(uri):
            raise UnknownError(f"Image {image!r} is not among the studies.")
        return Path(uri), True

    def _is_session(self, path: Path) -> bool:
        sessions = self.sessions()
        return sessions is not None and path.is_relative_to(Path(sessions.store_path).resolve())


def _set_by_user(name: str) -> Any:
    """Return a setting of MONAI Label that differs from its default, else None.

    The stock start command writes all settings into the environment, so that their presence there says nothing.
    """
    value = getattr(settings, name)
    return None if value == Settings.model_fields[name].default else value
