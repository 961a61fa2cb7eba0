"""Batch inference over the images of the studies."""

from __future__ import annotations

import itertools
import logging
from typing import Any

from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from medclipsam.base.errors import MedClipSamError
from medclipsam.server.base.errors import told

logger = logging.getLogger(__name__)


class ZeroShotBatch(BatchInferTask):
    """MONAI Label's batch inference, on a machine without a GPU too, and past images that cannot be segmented.

    The stock task divides by the number of GPUs, which is its default request on every machine, and one unreadable
    image ends the whole batch.
    """

    def __call__(self, request: dict[str, Any], datastore: Any, infer: Any) -> dict[str, Any]:
        """Infer all images that the request names; an image that fails is an entry with its error sentence."""
        import torch

        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False, "device": "cpu"}

        done = itertools.count(1)

        def infer_one(one: dict[str, Any], store: Any) -> dict[str, Any]:
            # the log counts the images and does not name them: a file may be named after its patient
            try:
                answer = infer(one, store)
            except MedClipSamError as error:
                logger.warning("Image %d could not be segmented (%s)", next(done), type(error).__name__)
                return {"error": str(told(error))}
            logger.info("Image %d is done", next(done))
            return answer

        return super().__call__(request, datastore, infer_one)
