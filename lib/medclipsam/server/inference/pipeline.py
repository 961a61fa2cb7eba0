"""The one pipeline of a server: loaded when it is first needed, shared by all tasks, used by one request at a time."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from medclipsam.base.options import ZeroShotOptions, parse_planes
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.errors import BusyError
from medclipsam.server.base.metrics import ServerState
from medclipsam.server.inference.memory import free_memory, shortage
from medclipsam.server.inference.runtime import RuntimeEstimator
from medclipsam.server.inference.work import Job
from medclipsam.targets import check_text, parse_prompt
from medclipsam.weights import REGISTRY, is_available, memory_need, resolve_pair

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from medclipsam.finetune.store import ClipStore
    from medclipsam.imaging import MedicalImage, Window
    from medclipsam.pipeline.refine import Clicks, RefineResult
    from medclipsam.pipeline.zero_shot import KeepMap, KeepPartial, ZeroShot, ZeroShotResult
    from medclipsam.targets import TargetSet

logger = logging.getLogger(__name__)

T = TypeVar("T")

# torch has no error class of its own for a CPU's memory
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


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
    clips : ClipStore, optional
        Fine-tuned CLIPs, of which the one in use takes the place of the configuration's from the next request on.

    Attributes
    ----------
    pace : RuntimeEstimator
        How long requests take here.
    """

    def __init__(self, conf: AppConf, targets: TargetSet, clips: ClipStore | None = None) -> None:
        self.pace = RuntimeEstimator()
        self._conf = conf
        self._targets = targets
        self._lock = threading.Lock()
        self._pipeline: ZeroShot | None = None
        self._put_aside = False
        self._clips = clips
        # Folder of the fine-tuned CLIP that is loaded, None for the configuration's.
        self._clip: Path | None = None

    def check_text(self, text: str) -> None:
        """Raise `InputError` for a text that cannot be searched for in any image."""
        check_text(text, self._targets)

    def segment(
        self,
        image: MedicalImage,
        text: str,
        options: ZeroShotOptions,
        keep_map: KeepMap | None = None,
        job: Job | None = None,
        keep_partial: KeepPartial | None = None,
    ) -> ZeroShotResult:
        """Segment `image` as `ZeroShot.segment` does; `job` gets the progress and may stop it.

        Raises
        ------
        InputError
            If it would take the job longer than the server allows.
        """
        planes = len(parse_planes(options.planes, image.n_planes))
        if job is not None:
            targets = len(parse_prompt(text, image.modality, self._targets))
            self.pace.check(planes, targets, options, job.max_seconds)
        with self._lock:
            result = self._loaded().segment(
                image,
                text,
                options,
                keep_map=keep_map,
                keep_partial=keep_partial,
                progress=job.progress if job else None,
                cancelled=job.stopped if job else None,
            )
        self.pace.record(result, planes, options)
        return result

    def encoder_identity(self) -> str:
        """Return what identifies the CLIP's weights."""
        with self._lock:
            return str(self._loaded().encoder.identity)

    def embed(self, image: MedicalImage) -> np.ndarray:
        """Return an image's embedding, float32 [E]; see `medclipsam.active.embedding`."""
        from medclipsam.active.embedding import embed

        with self._lock:
            return embed(image, self._loaded().encoder)

    def presence(self, image: MedicalImage, text: str, job: Job | None = None) -> dict[str, tuple[float, float]]:
        """Return presence score and threshold of each target of a text; see `ZeroShot.presence`."""
        with self._lock:
            return self._loaded().presence(image, text, self._conf.defaults, cancelled=job.stopped if job else None)

    def refine(
        self,
        image: MedicalImage,
        present: np.ndarray | None,
        clicks: Mapping[int, Clicks],
        windows: Mapping[int, Window | None],
        job: Job | None = None,
        *,
        propagate: bool = False,
        drawn: Mapping[int, Collection[int]] | None = None,
        beneath: np.ndarray | None = None,
    ) -> tuple[RefineResult, dict[str, Any]]:
        """Mend a mask as `medclipsam.pipeline.refine` does; `job` gets the progress and may stop it.

        Returns the result and what identifies SAM's weights.
        """
        from medclipsam.pipeline.refine import refine

        with self._lock:
            pipeline = self._loaded()
            result = refine(
                image,
                pipeline.sam,
                present,
                clicks,
                windows=windows,
                propagate=propagate,
                drawn=drawn,
                beneath=beneath,
                progress=job.progress if job else None,
                cancelled=job.stopped if job else None,
            )
        return result, {"sam": pipeline.weights.get("sam")}

    def within_memory(self, work: Callable[[], T]) -> T:
        """Do `work`; where it runs out of memory, give back what is remembered of images.

        Raises
        ------
        BusyError
            If memory ran out.
        """
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            logger.error("Out of memory: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
        # Only here, where the error is gone and with it the frames that hold the request's arrays.
        self._free()
        raise BusyError(
            "The server ran out of memory on this request and has freed what it could; ask for fewer planes or fewer "
            "samples, or ask again later.",
            30,
        )

    def _free(self) -> None:
        with self._lock:
            if self._pipeline is not None:
                self._pipeline.forget_images()
            _collect()

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
        """Drop the models and what they have cached, once no request uses them, in favour of another process.

        The next request loads them again, if there is room by then.
        """
        with self._lock:
            self._pipeline = None
            self._put_aside = True
            _collect()

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._pipeline is not None

    def can_load(self) -> bool:
        """Whether the weights are in memory or on the disk."""
        return self.is_loaded or is_available(self._conf.weights)

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
        wanted = self._clips.current() if self._clips is not None else None
        if self._pipeline is None:
            import torch

            from medclipsam.pipeline.zero_shot import ZeroShot

            if self._put_aside:
                self._check_room()
                self._put_aside = False
            self._device = self._conf.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._pipeline = ZeroShot.load(self._conf.weights, device=self._device, targets=self._targets)
            self._clip = None
        if wanted != self._clip:
            # What the old CLIP has encoded goes with it; SAM's embeddings stay.
            clip = str(wanted) if wanted is not None else self._own_clip()
            self._pipeline = self._pipeline.with_clip(clip, device=self._device)
            self._clip = wanted
            _collect()
        return self._pipeline

    def _own_clip(self) -> str:
        clip, _ = resolve_pair(self._conf.weights)
        return clip.name if clip.name in REGISTRY else str(clip.path)

    def _check_room(self) -> None:
        """Raise `BusyError` while the process that the models were dropped for leaves no room for them."""
        need = memory_need(self._conf.weights)
        reason = need and shortage("The models", need, free_memory(self._conf.device), new_process=False)
        if reason:
            raise BusyError(f"{reason}: they gave way to a training or a batch; ask again when it has ended.", 60)


def _collect() -> None:
    """Give memory that nothing refers to back to the machine and the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, the device's or the machine's."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_OUT_OF_MEMORY)
