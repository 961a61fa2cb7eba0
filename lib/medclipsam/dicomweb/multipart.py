"""The multipart answers of DICOMweb, taken apart into files while they arrive."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from email.message import Message
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from medclipsam.imaging.dicom import read_elements

# A part's own headers are shorter.
_MAX_HEADERS = 64 * 1024
_BLOCK = 1024 * 1024
# Parts of a body: instances of a series.
MAX_PARTS = 50_000


class IncompleteError(Exception):
    """The answer ended before its last part did, or is no multipart answer."""


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary that a Content-Type names, None where it names none."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    return str(boundary).encode("ascii", "replace") if boundary else None


def write_parts(chunks: Iterable[bytes], boundary: bytes, folder: Path, most: int = MAX_PARTS) -> list[Path]:
    """Write each part's body to a file of its own (RFC 2046, 5.1.1).

    Parameters
    ----------
    chunks : iterable of bytes
        The answer's body, cut anywhere.
    boundary : bytes
        What separates the parts, without its leading dashes.
    folder : Path
        Where the files `0.dcm`, `1.dcm` ... are made.
    most : int
        Parts that there may be.

    Returns
    -------
    list of Path
        In the order of the parts.

    Raises
    ------
    IncompleteError
        If the answer ends before its closing boundary, a part's headers do not end, or there are too many parts.
    """
    mark = b"\r\n--" + boundary
    files: list[Path] = []
    # the first boundary may stand at the very beginning
    buffer = bytearray(b"\r\n")
    part: BinaryIO | None = None
    inside = False  # between a boundary and the end of the headers
    try:
        for chunk in chunks:
            buffer += chunk
            while True:
                if inside:
                    end = _end_of_headers(buffer)
                    if end is None:
                        break
                    if end < 0:
                        return files
                    del buffer[:end]
                    inside = False
                    if len(files) >= most:
                        raise IncompleteError(f"more than {most} parts")
                    files.append(folder / f"{len(files)}.dcm")
                    part = files[-1].open("wb")
                at = buffer.find(mark)
                if at < 0:
                    kept = len(mark) - 1
                    if part is not None:
                        part.write(buffer[: max(len(buffer) - kept, 0)])
                    del buffer[: max(len(buffer) - kept, 0)]
                    break
                if part is not None:
                    part.write(buffer[:at])
                    part.close()
                    part = None
                del buffer[: at + len(mark)]
                inside = True
    finally:
        if part is not None:
            part.close()
    if inside and buffer.startswith(b"--"):
        return files
    raise IncompleteError("the answer ended in mid-part")


def instances_of(body: IO[bytes], content_type: str) -> list[str]:
    """Return the SOP Instance UIDs of the DICOM files in a multipart body.

    Parameters
    ----------
    body : binary file
        Read from its beginning.
    content_type : str
        Names the boundary.

    Returns
    -------
    list of str
        In the order of the parts, up to one that breaks off; parts that cannot be read or have no UID are left out.
    """
    boundary = boundary_of(content_type)
    if boundary is None:
        return []
    body.seek(0)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        with suppress(IncompleteError):
            write_parts(iter(partial(body.read, _BLOCK), b""), boundary, Path(folder))
        for file in sorted(Path(folder).iterdir(), key=lambda path: int(path.stem)):
            with suppress(Exception):
                found.append(str(read_elements(file, ["SOPInstanceUID"])["SOPInstanceUID"].value))
    return found


def _end_of_headers(buffer: bytearray) -> int | None:
    """Return where the body behind a boundary begins, -1 if the boundary was the last, None where more is needed."""
    if len(buffer) < 2:
        return None
    if buffer[:2] == b"--":
        return -1
    # white space may follow a boundary; a part without headers has an empty line at once
    start = re.match(rb"[ \t]*\r\n", buffer)
    if start is None:
        if b"\r\n" in buffer or len(buffer) > _MAX_HEADERS:
            raise IncompleteError("a part begins with something else than headers")
        return None
    if buffer[start.end() : start.end() + 2] == b"\r\n":
        return start.end() + 2
    end = buffer.find(b"\r\n\r\n", start.end())
    if end < 0:
        if len(buffer) > _MAX_HEADERS:
            raise IncompleteError("a part's headers do not end")
        return None
    return end + 4
