"""Infer tasks: free text, and one task for each target that the configuration names.

MONAI Label's own `BasicInferTask` reads, transforms and writes through MONAI; these tasks hand the file to the same
imaging code as the command line, so that both draw the same mask and no second reader can drift from the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.zero_shot import ZeroShotResult
from medclipsam.server.inference.evidence import EvidenceStore
from medclipsam.server.inference.infer_request import Envelope, InferRequest, shared_fields, task_options
from medclipsam.server.inference.last_masks import LastMasks
from medclipsam.server.inference.model_task import Made, ModelTask, Opened
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.request_schema import MODALITIES, checked_text, option_keys, option_table
from medclipsam.server.inference.work import Job
from medclipsam.server.studies.images import ImageReader
from medclipsam.targets import Target


@dataclass(frozen=True, kw_only=True)
class SegmentRequest(InferRequest):
    """One checked request to segment what a text names.

    Parameters
    ----------
    text : str or None
        Text prompt; None where the task has its own.
    options : ZeroShotOptions
        Options of the pipeline.
    """

    text: str | None
    options: ZeroShotOptions

    @classmethod
    def from_params(
        cls, params: Mapping[str, Any], envelope: Envelope, defaults: ZeroShotOptions, *, takes_text: bool
    ) -> SegmentRequest:
        """Check the params of a client.

        A list stands for a drop-down that nobody touched and means its first entry; a list of texts asks for all of
        them. An empty string means the default.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type or not allowed.
        """
        shared = shared_fields(params, envelope)
        given = task_options(params, (*(("text",) if takes_text else ()), *option_keys()))
        text = checked_text(params.get("text")) if takes_text else None
        given.pop("text", None)
        return cls(text=text, options=ZeroShotOptions.from_mapping({**defaults.to_dict(), **given}), **shared)


class ZeroShotTask(ModelTask[SegmentRequest]):
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
            images=images,
            masks=masks,
            description=f"Segments: {target.name}" if target else "Segments what a text names (MedCLIP-SAMv2)",
            # OHIF lists a model by this type
            type="segmentation",
            labels=labels,
            config=config,
        )
        self._pipeline = pipeline
        self._defaults = defaults
        self._target = target
        self._evidence = evidence

    def request(self, params: Mapping[str, Any], envelope: Envelope) -> SegmentRequest:
        """Return the checked request, see `SegmentRequest.from_params`.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        InputError
            If the text cannot be searched for, see `medclipsam.targets.parse_prompt`.
        """
        checked = SegmentRequest.from_params(params, envelope, self._defaults, takes_text=self._target is None)
        if checked.text is not None:
            self._pipeline.check_text(checked.text)
        return checked

    def _work(self, request: SegmentRequest, opened: Opened, job: Job | None) -> Made:
        result, addresses = self._segment(request, opened, job)
        params = result.to_dict()
        for target in params["targets"]:
            target["evidence"] = addresses.get(target["name"])
        return Made(
            result.labels,
            dict(result.label_names),
            params,
            {"model": request.model, "text": result.text, "weights": result.weights},
            {stage: value for stage, value in result.seconds.items() if stage != "total"},
            result.beneath,
        )

    def _segment(
        self, request: SegmentRequest, opened: Opened, job: Job | None
    ) -> tuple[ZeroShotResult, dict[str, dict[str, Any]]]:
        """Return the result, and where each target's evidence can be had."""
        image = opened.image
        text = self._text(request, image)
        draft = self._evidence.begin(image)
        partial = job.keep_partial if job is not None else None
        if draft is None:
            return self._pipeline.segment(image, text, request.options, job=job, keep_partial=partial), {}
        try:
            result = self._pipeline.segment(image, text, request.options, draft.add, job, partial)
            addresses = self._evidence.keep(
                draft, image, result, opened.path, opened.modality, temporary=opened.temporary
            )
            return result, addresses
        except BaseException:
            draft.discard()
            raise

    def _text(self, request: SegmentRequest, image: MedicalImage) -> str:
        if self._target is None:
            return request.text or ""
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
