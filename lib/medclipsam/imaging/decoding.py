"""Encoded pixels of DICOM files, decoded by plugins whose choice is fixed."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array

# In this order. Only GDCM decodes lossless JPEG; it crashes on some damaged streams.
_PLUGINS = ("pydicom", "pillow", "pyjpegls", "gdcm")


def decode(data: Dataset) -> np.ndarray:
    """Return the frames of a data set as `pydicom.pixels.pixel_array` does.

    Decoders of encapsulated pixels are native code; `read_image` calls them in another process.

    Parameters
    ----------
    data : pydicom.Dataset
        With file meta information and pixel data.

    Raises
    ------
    Exception
        Whatever the decoder reports; RuntimeError where there is none for the transfer syntax.
    """
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return pixel_array(data)
    available = get_decoder(syntax).available_plugins
    plugin = next((name for name in _PLUGINS if name in available), None)
    if plugin is None:
        raise RuntimeError("no decoder for it is installed")
    return pixel_array(data, decoding_plugin=plugin)
