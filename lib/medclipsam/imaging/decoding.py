"""Encoded pixels of DICOM files, decoded so that no damaged file can end this process.

Only GDCM decodes lossless JPEG, and GDCM ends its process on some damaged streams. It therefore works in a process of
its own, which is started when it is first needed, kept for further files, and ends with this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any, BinaryIO

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder, pixel_array

_ISOLATED = (uid.JPEGLossless, uid.JPEGLosslessSV1)
# Plugins that answer a damaged stream with an error.
_PLUGINS = ("pydicom", "pillow", "pyjpegls")
# Elements that say how pixels are encoded.
_ELEMENTS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
# Seconds after which a decoder hangs; a long cine takes a few.
_LONGEST = 300.0


def decode(data: Dataset) -> np.ndarray:
    """Return the frames of a data set as `pydicom.pixels.pixel_array` does.

    Parameters
    ----------
    data : pydicom.Dataset
        With file meta information and pixel data.

    Raises
    ------
    Exception
        Whatever the decoder says is wrong; RuntimeError where it ended or hung.
    """
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return pixel_array(data)
    if syntax in _ISOLATED:
        return _isolated(data)
    available = get_decoder(syntax).available_plugins
    plugin = next((name for name in _PLUGINS if name in available), None)
    if plugin is None:
        raise RuntimeError("no decoder for it is installed")
    return pixel_array(data, decoding_plugin=plugin)


class _Decoder:
    """GDCM in another process, one request after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, fields: dict[str, Any], content: bytes) -> np.ndarray:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            watch = threading.Timer(_LONGEST, process.kill)
            watch.start()
            try:
                _send(process.stdin, fields, content)
                answer, pixels = _receive(process.stdout)
            except (OSError, EOFError):
                process.kill()
                process.wait()
                self._process = None
                raise RuntimeError("the decoder ended on it, as it does on some damaged streams") from None
            finally:
                watch.cancel()
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return np.frombuffer(pixels, np.dtype(answer["dtype"])).reshape(answer["shape"])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process


_decoder = _Decoder()


def _isolated(data: Dataset) -> np.ndarray:
    fields: dict[str, Any] = {name: data[name].value for name in _ELEMENTS if data.get(name) not in (None, "")}
    fields = {name: value if isinstance(value, str) else int(value) for name, value in fields.items()}
    return _decoder.ask({**fields, "syntax": str(data.file_meta.TransferSyntaxUID)}, bytes(data.PixelData))


def _send(pipe: BinaryIO | Any, header: dict[str, Any], content: bytes) -> None:
    pipe.write(json.dumps({**header, "length": len(content)}).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> tuple[dict[str, Any], bytes]:
    line = pipe.readline()
    if not line:
        raise EOFError
    header = json.loads(line)
    content = pipe.read(header["length"])
    if len(content) != header["length"]:
        raise EOFError
    return header, content


def _serve() -> None:
    """Decode what comes in until the other end is closed."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            header, content = _receive(requests)
        except EOFError:
            return
        try:
            data = Dataset()
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = uid.UID(header["syntax"])
            for name in _ELEMENTS:
                if name in header:
                    setattr(data, name, header[name])
            data.PixelData = content
            pixels = np.ascontiguousarray(pixel_array(data, decoding_plugin="gdcm"))
        except Exception as error:
            _send(answers, {"error": str(error) or type(error).__name__}, b"")
        else:
            _send(answers, {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes())


if __name__ == "__main__":
    _serve()
