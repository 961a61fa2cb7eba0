"""A request's answer: the mask as a file of the asked format, and parameters that JSON can hold."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medclipsam.server.inference.infer_request import AnswerFormat

if TYPE_CHECKING:
    from medclipsam.imaging.label_map import LabelMap


def write_result(label: LabelMap, answer: AnswerFormat) -> Path:
    """Write a label map to a new temporary file, which the caller removes.

    A .seg.nrrd holds segments whole; in the other formats the smaller of two that overlap has the voxels of both.

    Raises
    ------
    InputError
        If the label map cannot be written in that format.
    """
    from medclipsam.imaging import write_mask
    from medclipsam.imaging.label_map import is_seg_nrrd

    handle, name = tempfile.mkstemp(suffix=answer.extension)
    os.close(handle)
    # a PNG has one number type, whatever is asked for
    dtype = "uint8" if answer.extension == ".png" else answer.dtype
    try:
        if is_seg_nrrd(name):
            return label.write(name, compress=answer.compress)
        return write_mask(label.values, label.image, name, dtype=dtype, compress=answer.compress)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def jsonable(value: Any) -> Any:
    """Return `value` with NumPy numbers, tuples and paths as JSON knows them, and NaN and infinities as None.

    The server's JSON answers refuse NaN, where the same dictionary in a multipart answer would pass.
    """
    if isinstance(value, dict):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value
