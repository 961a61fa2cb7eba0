"""The process that `medclipsam.imaging.isolation` calls functions in."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import socket
import sys
from typing import Any

from medclipsam.base.errors import ImageError, MedClipSamError
from medclipsam.imaging import isolation, limits

_BLOCK = 2**24


def serve(connection: socket.socket) -> None:
    """Answer requests until the other end is closed."""
    _send(connection, b"ready")
    while True:
        head, descriptors, _, _ = socket.recv_fds(connection, 8, 1)
        if not descriptors:
            return
        descriptor = descriptors[0]
        try:
            request = _read(connection, int.from_bytes(head, "little"))
            _send(connection, pickle.dumps(_answer(request, descriptor)))
        finally:
            os.close(descriptor)


def _answer(request: bytes, descriptor: int) -> tuple[Any, list[int]]:
    """Return the sizes of what was written to the file, or the error and no sizes."""
    (module, name, preload, seconds), args = pickle.loads(request)
    try:
        limits.lift_memory()
        for needed in preload:
            with contextlib.suppress(ImportError):
                importlib.import_module(needed)
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        # where the caller is gone, nobody else ends a call that does not end
        limits.limit_seconds(seconds)
        limits.limit_memory()
        return None, _write(function(*args), descriptor)
    except MemoryError:
        return ImageError("The file takes more memory than its stated size allows; it is damaged or hostile."), []
    except MedClipSamError as error:
        return _plain(error), []
    except Exception as error:
        return RuntimeError(str(error)[:1000] or type(error).__name__), []


def _plain(error: MedClipSamError) -> MedClipSamError:
    """Return an error that can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ImageError(str(error))
    return error


def _write(result: Any, descriptor: int) -> list[int]:
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
    for part in parts:
        for start in range(0, len(part), _BLOCK):
            piece = part[start : start + _BLOCK]
            while piece:
                piece = piece[os.write(descriptor, piece) :]
        os.write(descriptor, bytes(-len(part) % isolation.ALIGNMENT))
    return [len(part) for part in parts]


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(len(content).to_bytes(8, "little") + content)


def _read(connection: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        piece = connection.recv(min(length - len(content), _BLOCK))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)


def main() -> None:
    """Serve the connection whose descriptor is the first argument."""
    isolation.inside = True
    # the caller decides when it ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limits.leave_no_core()
    # where the machine's memory runs out, the kernel ends this process first
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")
    with contextlib.suppress(OSError, EOFError), socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
