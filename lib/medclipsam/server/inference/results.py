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
    from medclipsam.imaging import MedicalImage


def write_result(labels: np.ndarray, image: MedicalImage, answer: AnswerFormat, *, read_back: bool = False) -> Path:
    """Write a label map to a new temporary file, which the caller removes.

    Parameters
    ----------
    labels : np.ndarray
        uint8 [n_planes, H, W] in display orientation.
    image : MedicalImage
        The image whose geometry the file takes.
    answer : AnswerFormat
        The format, number type and compression.
    read_back : bool
        Whether the finished file is read again and compared with the label map voxel by voxel, as for a file that is
        then saved as a label.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If the label map cannot be written in that format, or what is read back differs.
    """
    from medclipsam.imaging import read_mask, write_mask
    from medclipsam.imaging.write import check_same

    handle, name = tempfile.mkstemp(suffix=answer.extension)
    os.close(handle)
    # a PNG has one number type, whatever is asked for
    dtype = "uint8" if answer.extension == ".png" else answer.dtype
    try:
        write_mask(labels, image, name, dtype=dtype, compress=answer.compress)
        if read_back:
            check_same(read_mask(name, image), labels, "The mask")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


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
