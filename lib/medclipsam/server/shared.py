"""The one pipeline of a server: loaded at the first request, shared by all tasks, used by one request at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from medclipsam.options import ZeroShotOptions
from medclipsam.server.conf import AppConf

if TYPE_CHECKING:
    from medclipsam.imaging import MedicalImage
    from medclipsam.targets import TargetSet
    from medclipsam.zeroshot import ZeroShot, ZeroShotResult


class SharedPipeline:
    """A lazily loaded `ZeroShot` behind a lock.

    The models are loaded once and the cache of SAM embeddings lives as long as the server, so that a second prompt on
    an image pays only for saliency and decoding. Batch inference calls tasks from several threads, and neither the
    cache nor the models' temporary memory is meant for that: the lock lets one in at a time.

    Parameters
    ----------
    conf : AppConf
        Names the weights and the device.
    targets : TargetSet
        Known targets.
    """

    def __init__(self, conf: AppConf, targets: TargetSet) -> None:
        self._conf = conf
        self._targets = targets
        self._lock = threading.Lock()
        self._pipeline: ZeroShot | None = None

    def segment(self, image: MedicalImage, text: str, options: ZeroShotOptions) -> ZeroShotResult:
        """Segment `image` as `ZeroShot.segment` does."""
        with self._lock:
            return self._loaded().segment(image, text, options)

    def _loaded(self) -> ZeroShot:
        if self._pipeline is None:
            import torch

            from medclipsam.zeroshot import ZeroShot

            device = self._conf.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._pipeline = ZeroShot.load(self._conf.weights, device=device, targets=self._targets)
        return self._pipeline
