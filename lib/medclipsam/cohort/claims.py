"""Who works on what: claims of processes on one or several machines that share a folder.

A process keeps one file, its sign of life, whose time it renews. A claim is a hard link to that file: making a link is
one step that succeeds for one process alone, on NFS too, and renewing the file's time renews all claims of the process.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from medclipsam.base.errors import StorageError
from medclipsam.base.files import write_new
from medclipsam.base.locks import process_start

# Signs of life in the time of a lease.
_BEATS = 6


class Claims:
    """The claims of this process.

    Parameters
    ----------
    folder : Path
        Where processes keep their signs of life; on the same disk as what is claimed.
    lease : float
        Seconds without a sign of life after which a process of another machine counts as ended. One of this machine
        does as soon as it has ended.

    Attributes
    ----------
    owner : str
        What this process is called.

    Raises
    ------
    StorageError
        If the disk knows no hard links.
    """

    def __init__(self, folder: Path, lease: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lease = lease
        self._file = folder / self.owner
        self._folder = folder
        about = {
            **{"owner": self.owner, "machine": _machine()},
            **{"pid": os.getpid(), "start": process_start(os.getpid())},
        }
        self._about = json.dumps(about).encode()
        write_new(self._file, self._about)
        self._beat()
        # what killed processes have left
        for file in folder.iterdir():
            if file != self._file and not file.name.startswith(".") and not self.is_alive(file):
                file.unlink(missing_ok=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="claims", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop renewing; what is still claimed is free for others."""
        self._ended.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def take(self, claim: Path) -> bool:
        """Claim something, and return whether nobody had claimed it.

        Raises
        ------
        StorageError
            If the disk knows no hard links.
        """
        try:
            os.link(self._file, claim)
        except FileExistsError:
            return False
        except FileNotFoundError:
            if not claim.parent.is_dir():  # what is claimed was finished by another
                return False
            # this process was suspended for so long that another took it for ended
            write_new(self._file, self._about)
            return self.take(claim)
        except OSError as error:
            raise StorageError(
                f"{claim} cannot be claimed: {error.strerror or error}. A cohort needs a disk with hard links.",
                full=False,
            ) from error
        return True

    def is_alive(self, claim: Path) -> bool:
        """Return whether the process that made a claim still runs, as far as can be told; False for no claim."""
        try:
            state = claim.stat()
            about: dict[str, Any] = json.loads(claim.read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True
        if not (self._folder / str(about["owner"])).exists():  # it has ended by itself
            return False
        if about["machine"] == _machine():
            return process_start(int(about["pid"])) == about["start"]
        return self._now() - state.st_mtime < self._lease

    def _now(self) -> float:
        """Return the time by the clock of the disk, which may be another machine's."""
        return self._seen + (time.monotonic() - self._at)

    def _beat(self) -> None:
        os.utime(self._file)
        self._seen, self._at = self._file.stat().st_mtime, time.monotonic()

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._lease / _BEATS):
            with suppress(OSError):  # the disk may be away for a moment
                self._beat()


def _machine() -> str:
    """Return what tells this machine, and the container that numbers its processes, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"
