"""The one pipeline of a server: loaded when it is first needed, shared by all tasks, used by one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medclipsam.options import ZeroShotOptions
from medclipsam.server.conf import AppConf
from medclipsam.server.metrics import ServerState
from medclipsam.weights import are_here

if TYPE_CHECKING:
    import numpy as np

    from medclipsam.imaging import MedicalImage, Window
    from medclipsam.refine import Clicks, RefineResult
    from medclipsam.targets import TargetSet
    from medclipsam.zeroshot import KeepMap, ZeroShot, ZeroShotResult


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

    def segment(
        self, image: MedicalImage, text: str, options: ZeroShotOptions, keep_map: KeepMap | None = None
    ) -> ZeroShotResult:
        """Segment `image` as `ZeroShot.segment` does."""
        with self._lock:
            return self._loaded().segment(image, text, options, keep_map=keep_map)

    def refine(
        self,
        image: MedicalImage,
        present: np.ndarray | None,
        clicks: Mapping[int, Clicks],
        windows: Mapping[int, Window | None],
    ) -> tuple[RefineResult, dict[str, Any]]:
        """Mend a mask as `medclipsam.refine.refine` does; return the result and what identifies SAM's weights."""
        from medclipsam.refine import refine

        with self._lock:
            pipeline = self._loaded()
            result = refine(image, pipeline.sam, present, clicks, windows=windows)
        return result, {"sam": pipeline.weights.get("sam")}

    def warm_up(self) -> None:
        """Load the weights and segment a small plane, so that the first request does not wait for either.

        Raises
        ------
        MedClipSamError
            If the weights cannot be loaded.
        """
        import numpy as np

        from medclipsam.imaging import MedicalImage

        gradient = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
        image = MedicalImage.from_array(gradient)
        with self._lock:
            self._loaded().segment(image, "lungs", ZeroShotOptions.from_mapping({"presence": False, "steps": 1}))

    def release(self) -> None:
        """Drop the models and what they have cached, once no request uses them; the next request loads them again."""
        import gc

        import torch

        with self._lock:
            self._pipeline = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._pipeline is not None

    def can_load(self) -> bool:
        """Whether the weights are in memory or on the disk."""
        return self.is_loaded or are_here(self._conf.weights)

    def state(self) -> ServerState:
        """Return what the metrics say about the models."""
        import torch

        pipeline = self._pipeline
        memory = {}
        if torch.cuda.is_available():
            memory = {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
            memory["free"] = torch.cuda.mem_get_info()[0]
        if pipeline is None:
            return ServerState(gpu_memory=memory)
        sam = pipeline.sam
        return ServerState(True, sam.cache.hits, sam.encoder_runs, sam.cache.nbytes, gpu_memory=memory)

    def _loaded(self) -> ZeroShot:
        if self._pipeline is None:
            import torch

            from medclipsam.zeroshot import ZeroShot

            device = self._conf.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._pipeline = ZeroShot.load(self._conf.weights, device=device, targets=self._targets)
        return self._pipeline
