"""What an infer request holds: MONAI Label's own keys, the answer's file format, and the options of the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medclipsam.errors import OptionError
from medclipsam.options import CHOICES, ZeroShotOptions

# Keys that MONAI Label, its clients and its batch task add to a request and that are no option of the pipeline. They
# are named one by one, so that a misspelt option is an error and not silently one of them.
MONAI_LABEL_KEYS = frozenset(
    {
        # the infer route and the app
        *("model", "image", "image_path", "label", "output", "description", "session", "client_id"),
        *("device", "logging", "timeout"),
        # the answer
        *("result_extension", "result_dtype", "result_compress", "result_write_to_file", "restore_label_idx"),
        *("save_label", "label_tag", "label_info"),
        # batch inference
        *("images", "labels", "multi_gpu", "gpus", "max_workers", "max_batch_size", "_id", "_image_id"),
    }
)

# Modalities that a request may name for an image whose file does not say.
MODALITIES = ("US", "MR", "CT", "CR", "DX", "MG")
EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".png")
DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class SegmentRequest:
    """One checked infer request.

    Parameters
    ----------
    text : str or None
        Text prompt; None where the task has its own.
    options : ZeroShotOptions
        Options of the pipeline.
    extension : {".nii.gz", ".nii", ".nrrd", ".png"}
        File format of the mask.
    dtype : str
        Number type of the mask's voxels.
    compress : bool
        Whether the voxels of an NRRD file are compressed; the other formats' names say it.
    modality : str or None
        DICOM modality of an image whose file does not say; None where it was not given.
    """

    text: str | None
    options: ZeroShotOptions
    extension: str = ".nii.gz"
    dtype: str = "uint8"
    compress: bool = True
    modality: str | None = None

    @classmethod
    def from_mapping(cls, request: Mapping[str, Any], defaults: ZeroShotOptions, *, takes_text: bool) -> SegmentRequest:
        """Check a request as MONAI Label hands it to an infer task.

        A list stands for a drop-down that nobody touched and means its first entry; an empty string means the default.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type or not allowed.
        """
        given = {key: value for key, value in request.items() if key not in MONAI_LABEL_KEYS}
        text = _text(given.pop("text", None)) if takes_text else None
        modality = _modality(given.pop("modality", None))
        options = {key: value for key, value in given.items() if value is not None and value != ""}
        return cls(
            text=text,
            options=ZeroShotOptions.from_mapping({**defaults.to_dict(), **options}),
            extension=_choice(request, "result_extension", EXTENSIONS),
            dtype=_choice(request, "result_dtype", DTYPES),
            compress=flag(request, "result_compress", default=True),
            modality=modality,
        )


def option_table(defaults: ZeroShotOptions) -> dict[str, Any]:
    """Return the options as the flat table that clients draw their forms from.

    A list is a drop-down whose first entry is the default, a boolean a check box, all else a text field; "auto" stands
    for None.
    """
    table: dict[str, Any] = {}
    for key, default in defaults.to_dict().items():
        if key in CHOICES:
            table[key] = [default, *(choice for choice in CHOICES[key] if choice != default)]
        else:
            table[key] = "auto" if default is None else default
    return table


def option_keys() -> tuple[str, ...]:
    """Return the names of the pipeline's options."""
    return tuple(option.name for option in dataclasses.fields(ZeroShotOptions))


def flag(request: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Read one of MONAI Label's switches, which clients send as booleans or words.

    Raises
    ------
    OptionError
        If the value is neither.
    """
    value = _first(request.get(key))
    if value is None or value == "":
        return default
    if isinstance(value, bool):
        return value
    try:
        return _WORDS[str(value).strip().lower()]
    except KeyError:
        raise OptionError(key, value, "true or false") from None


def _text(given: Any) -> str:
    text = _first(given)
    if not isinstance(text, str) or not text.strip():
        raise OptionError("text", given, 'what to segment, such as "left lung" or "left lung; heart"')
    return text.strip()


def _modality(given: Any) -> str | None:
    value = _first(given)
    if value is None or value in ("", "auto"):
        return None
    if value not in MODALITIES:
        raise OptionError("modality", value, "auto or one of " + ", ".join(MODALITIES))
    return str(value)


def _choice(request: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = _first(request.get(key))
    if value is None or value == "":
        return allowed[0]
    if value not in allowed:
        raise OptionError(key, value, "one of " + ", ".join(allowed))
    return str(value)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value
