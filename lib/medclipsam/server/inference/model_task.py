"""What all infer tasks do alike: read the image, work, keep the mask for clicks, write it, and say how long it took."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from medclipsam.imaging import MedicalImage
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.base.metrics import METRICS
from medclipsam.server.base.task import InferTask
from medclipsam.server.inference.infer_request import Envelope, InferRequest, Upload
from medclipsam.server.inference.last_masks import LastMasks, client_of
from medclipsam.server.inference.results import jsonable, write_result
from medclipsam.server.inference.work import Job
from medclipsam.server.studies.images import ImageReader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """An image that was read, and from where.

    Parameters
    ----------
    image : MedicalImage
        The image.
    path : Path
        Its file or series folder.
    modality : str or None
        What it was read with, where the file does not say its modality.
    temporary : bool
        Whether the file goes when the request has been answered.
    """

    image: MedicalImage
    path: Path
    modality: str | None = None
    temporary: bool = False


@dataclass(frozen=True)
class Made:
    """What a task has made of an image.

    Parameters
    ----------
    labels : ndarray of uint8, shape (n_planes, H, W)
        Label map in display orientation.
    names : dict of str to int
        Name to label of what was asked for.
    params : dict
        What is answered beside the mask.
    origin : dict
        What made it (model, text, weights), kept with the mask for clicks.
    stages : mapping of str to float
        Seconds of the work's stages, for the metrics.
    beneath : ndarray of uint8 or None
        What the label map covers where segments overlap, see `LabelMap`.
    """

    labels: np.ndarray
    names: dict[str, int]
    params: dict[str, Any]
    origin: dict[str, Any]
    stages: Mapping[str, float] = field(default_factory=dict)
    beneath: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """The answer of a task.

    Parameters
    ----------
    file : Path
        The mask's file, which the caller removes.
    label : LabelMap
        The label map that it holds.
    params : dict
        What is answered beside it, JSON-able: `label_names`, `latencies` in seconds, and what the task says.
    """

    file: Path
    label: LabelMap
    params: dict[str, Any]


R = TypeVar("R", bound=InferRequest)


class ModelTask(InferTask, ABC, Generic[R]):
    """An infer task; `R` is the class of its requests.

    Parameters
    ----------
    images : ImageReader
        Reads the images.
    masks : LastMasks
        Where the masks that clients are given are kept for `refine`.
    **described : object
        See `InferTask`.
    """

    def __init__(self, *, images: ImageReader, masks: LastMasks, **described: Any) -> None:
        super().__init__(**described)
        self._images = images
        self._masks = masks

    @abstractmethod
    def request(self, params: Mapping[str, Any], envelope: Envelope) -> R:
        """Return the checked request for the params of a client.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type or not allowed.
        """

    def __call__(self, request: R, path: Path, job: Job | None = None) -> Answer:
        """Answer a request.

        Parameters
        ----------
        request : InferRequest
            Of `request`.
        path : Path
            File or series folder of its image.
        job : Job, optional
            Is told how far the work is, and may stop it.

        Raises
        ------
        MedClipSamError
            If the image cannot be used.
        """
        begun = time.perf_counter()
        opened = self._open(request, path)
        after_read = time.perf_counter()
        made = self._work(request, opened, job)
        after_work = time.perf_counter()
        covered = {} if made.beneath is None else {"beneath": made.beneath}
        label = LabelMap(made.labels, opened.image, made.names, made.names, **covered)
        self._masks.keep(client_of(request.caller), path, label.values, made.names, made.origin, label.beneath)
        file = write_result(label, request.answer)
        ended = time.perf_counter()

        read, work, write = (
            round(seconds, 3) for seconds in (after_read - begun, after_work - after_read, ended - after_work)
        )
        total = round(ended - begun, 3)
        METRICS.observe_stages({"read": read, **made.stages, "write": write})
        logger.info("Answered in %.2f s (read %.2f, infer %.2f, write %.2f)", total, read, work, write)
        latencies = {"pre": read, "infer": work, "write": write, "total": total}
        return Answer(file, label, jsonable({**made.params, "label_names": made.names, "latencies": latencies}))

    def _open(self, request: R, path: Path) -> Opened:
        return self._read(request, path, request.modality)

    def _read(self, request: R, path: Path, modality: str | None) -> Opened:
        temporary = isinstance(request.image, Upload)
        return Opened(self._images.read(path, modality, temporary=temporary), path, modality, temporary)

    @abstractmethod
    def _work(self, request: R, opened: Opened, job: Job | None) -> Made:
        """Return what is made of an image."""
