"""Infer tasks: free text, and one task for each target that the configuration names.

MONAI Label's own `BasicInferTask` reads, transforms and writes through MONAI; these tasks hand the file to the same
imaging code as the command line, so that both draw the same mask and no second reader can drift from the first.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.zero_shot import ZeroShotResult
from medclipsam.server.base.metrics import METRICS
from medclipsam.server.base.task import InferTask
from medclipsam.server.inference.evidence import EvidenceStore
from medclipsam.server.inference.last_masks import LastMasks, client_of
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.request_schema import MODALITIES, SegmentRequest, flag, option_table
from medclipsam.server.inference.results import jsonable, write_result
from medclipsam.server.studies.images import ImageReader
from medclipsam.targets import Target

logger = logging.getLogger(__name__)


class ZeroShotTask(InferTask):
    """Segment what a text names.

    Parameters
    ----------
    pipeline : SharedPipeline
        The server's pipeline.
    labels : dict of str to int
        Label table that clients are told: name to id.
    defaults : ZeroShotOptions
        Options that a request does not name.
    target : Target or None
        The known target that the task segments; None makes `text` an option of the request.
    images : ImageReader
        Reads the images.
    masks : LastMasks
        Where the masks that clients are given are kept for `refine`.
    evidence : EvidenceStore
        Where what a mask rests on is kept for a while.
    """

    def __init__(
        self,
        pipeline: SharedPipeline,
        labels: dict[str, int],
        defaults: ZeroShotOptions,
        target: Target | None = None,
        *,
        images: ImageReader,
        masks: LastMasks,
        evidence: EvidenceStore,
    ) -> None:
        config = {"modality": ["auto", *MODALITIES], **option_table(defaults)}
        if target is None:
            config = {"text": "", **config}
        super().__init__(
            f"Segments: {target.name}" if target else "Segments what a text names (MedCLIP-SAMv2)",
            # OHIF lists a model by this type
            type="segmentation",
            labels=labels,
            config=config,
        )
        self._pipeline = pipeline
        self._defaults = defaults
        self._target = target
        self._images = images
        self._masks = masks
        self._evidence = evidence

    def check(self, request: dict[str, Any]) -> SegmentRequest:
        """Return the typed request.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        InputError
            If the text cannot be searched for, see `medclipsam.targets.parse_prompt`.
        """
        checked = SegmentRequest.from_mapping(request, self._defaults, takes_text=self._target is None)
        if checked.text is not None:
            self._pipeline.check_text(checked.text)
        return checked

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment the image file or series folder `request["image"]`.

        Returns
        -------
        file : str
            Path of the mask, which the caller removes.
        params : dict
            `label_names` (name to id of what the mask may hold), `latencies` in seconds, and the evidence.

        Raises
        ------
        MedClipSamError
            If the request or the image cannot be used.
        """
        checked = self.check(request)
        marks = [time.perf_counter()]
        path = Path(request["image"])
        image = self._images.read(path, checked.modality)
        marks.append(time.perf_counter())
        result, addresses = self._segment(checked, image, path)
        marks.append(time.perf_counter())
        made = {"model": request.get("model"), "text": result.text, "weights": result.weights}
        self._masks.keep(client_of(request), path, result.labels, result.label_names, made)
        save = flag(request, "save_label", default=False)
        file = write_result(result.labels, image, checked, read_back=save)
        marks.append(time.perf_counter())

        read, segment, write = (round(end - start, 3) for start, end in itertools.pairwise(marks))
        total = round(marks[-1] - marks[0], 3)
        stages = {stage: value for stage, value in result.seconds.items() if stage != "total"}
        METRICS.observe_stages({"read": read, **stages, "write": write})
        logger.info("Segmented in %.2f s (read %.2f, segment %.2f, write %.2f)", total, read, segment, write)
        params = {
            **result.to_dict(),
            "label_names": dict(result.label_names),
            "latencies": {"pre": read, "infer": segment, "write": write, "total": total},
        }
        for target in params["targets"]:
            target["evidence"] = addresses.get(target["name"])
        return file, jsonable(params)

    def _segment(
        self, checked: SegmentRequest, image: MedicalImage, path: Path
    ) -> tuple[ZeroShotResult, dict[str, dict[str, Any]]]:
        """Return the result, and where each target's evidence can be had."""
        text = self._text(checked, image)
        draft = self._evidence.begin(image)
        if draft is None:
            return self._pipeline.segment(image, text, checked.options), {}
        try:
            result = self._pipeline.segment(image, text, checked.options, draft.add)
            return result, self._evidence.keep(draft, image, result, path, checked.modality)
        except BaseException:
            draft.discard()
            raise

    def _text(self, checked: SegmentRequest, image: MedicalImage) -> str:
        if self._target is None:
            return checked.text or ""
        if not self._target.in_modality(image.modality):
            # as free text its label would be another than the one that clients were told
            raise InputError(
                f"This model segments {self._target.name} on {', '.join(self._target.modality)}; the image is "
                f"{image.modality}, for which the model text_prompt takes any text."
            )
        return self._target.name


def task_name(target: str) -> str:
    """Return a target's name as the name of its task: "lungs x-ray" is `lungs_x_ray`."""
    return re.sub(r"[\W_]+", "_", target.lower()).strip("_")
