"""What is asked of an infer task: made where a request arrives, checked once, and passed on unchanged to the task.

Each task has a class of its own, derived from `InferRequest`: `SegmentRequest`, `RefineRequest`, `NetworkRequest`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from medclipsam.base.errors import OptionError
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.base.audit import Caller
from medclipsam.server.base.names import checked_tag
from medclipsam.server.inference.request_schema import (
    DTYPES,
    EXTENSIONS,
    MONAI_LABEL_KEYS,
    check_monai_label_keys,
    check_names,
    checked_choice,
    checked_modality,
    flag,
)
from medclipsam.server.studies.datastore import FINAL, ORIGINAL


@dataclass(frozen=True)
class StudyImage:
    """An image of the studies, by its id."""

    id: str


@dataclass(frozen=True)
class Upload:
    """A file that was sent along with a request, which goes when the request has been answered."""

    path: Path


@dataclass(frozen=True)
class SessionImage:
    """The file or series folder of a session, which goes when the session ends."""

    path: Path


@dataclass(frozen=True, eq=False)
class DrawnMask:
    """A label map that a viewer has drawn.

    Parameters
    ----------
    label : LabelMap
        Its values and their names.
    """

    label: LabelMap


ImageSource = StudyImage | Upload | SessionImage


@dataclass(frozen=True)
class AnswerFormat:
    """How the mask of an answer is written.

    Parameters
    ----------
    extension : {".nii.gz", ".nii", ".nrrd", ".png", ".seg.nrrd"}
        File format.
    dtype : str
        Number type of the voxels, one of `DTYPES`.
    compress : bool
        Whether the voxels of an NRRD file are compressed; the other formats' names say it.
    """

    extension: str = ".nii.gz"
    dtype: str = "uint8"
    compress: bool = True

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> AnswerFormat:
        """Read the keys `result_extension`, `result_dtype` and `result_compress`.

        Raises
        ------
        OptionError
            If a value is not allowed.
        """
        return cls(
            checked_choice("result_extension", params.get("result_extension"), EXTENSIONS),
            checked_choice("result_dtype", params.get("result_dtype"), DTYPES),
            flag(params, "result_compress", default=True),
        )


@dataclass(frozen=True)
class Envelope:
    """What comes with the params of a request.

    Parameters
    ----------
    model : str
        Name of the task.
    image : StudyImage, Upload or SessionImage
        The image.
    caller : Caller
        Who asks.
    mask : Upload, DrawnMask or None
        A mask that was sent along.
    """

    model: str
    image: ImageSource
    caller: Caller
    mask: Upload | DrawnMask | None = None


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """One checked request, as far as it is the same for all tasks.

    Parameters
    ----------
    model : str
        Name of the task.
    image : StudyImage, Upload or SessionImage
        The image.
    caller : Caller
        Who asks.
    mask : Upload, DrawnMask or None
        A mask that was sent along.
    answer : AnswerFormat
        How the mask is written.
    modality : str or None
        DICOM modality of an image whose file does not say; None where it was not given.
    save_as : str or None
        Tag under which the mask of an image of the studies is saved; None where it is not saved.
    """

    model: str
    image: ImageSource
    caller: Caller
    mask: Upload | DrawnMask | None
    answer: AnswerFormat
    modality: str | None
    save_as: str | None

    def on(self, image: ImageSource) -> Self:
        """Return the same request for another image."""
        return replace(self, image=image)


def shared_fields(params: Mapping[str, Any], envelope: Envelope) -> dict[str, Any]:
    """Return the fields of `InferRequest` for the params of a client.

    Raises
    ------
    OptionError
        If one of MONAI Label's keys, the modality or the tag is of the wrong type or not allowed.
    """
    check_monai_label_keys(params)
    return {
        "model": envelope.model,
        "image": envelope.image,
        "caller": envelope.caller,
        "mask": envelope.mask,
        "answer": AnswerFormat.from_params(params),
        "modality": checked_modality(params.get("modality")),
        "save_as": _save_as(params),
    }


def task_options(params: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Return the options of a task among the params of a client; an empty value is none.

    Parameters
    ----------
    params : mapping
        As the client sent them.
    own : collection of str
        Names of the task's options.

    Raises
    ------
    UnknownOptionError
        If a key is neither one of them, nor the modality, nor one of MONAI Label's.
    """
    given = {key: value for key, value in params.items() if value is not None and value != ""}
    given = {key: value for key, value in given.items() if key in own or key not in MONAI_LABEL_KEYS}
    check_names(given, {*own, "modality"})
    return {key: value for key, value in given.items() if key in own}


def not_final(tag: str) -> OptionError:
    """Return the error for a mask that a model has made and that is to be saved as a final label."""
    return OptionError("label_tag", tag, "any other tag, since a final label is one that a person has saved")


def _save_as(params: Mapping[str, Any]) -> str | None:
    tag = checked_tag(params.get("label_tag"), ORIGINAL)
    if not flag(params, "save_label", default=False):
        return None
    if tag == FINAL:
        raise not_final(tag)
    return tag
