"""The sub-processes in which MONAI Label runs trainings and batches.

MONAI Label hands a request, with its texts, to a sub-process on the command line, which every account of the machine
can read. Here it goes through standard input: `python -m medclipsam.server.monai_label.subtask PARENT METHOD` is such a
process. A batch ends with its server; a training goes on, see `medclipsam.server.learning.trainer.orphaned_training`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

NAME = "medclipsam.server.monai_label.subtask"
_ENDS_WITH_SERVER = ("batch_infer",)
# prctl(2)
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def install() -> None:
    """Let MONAI Label start its sub-processes by `start`."""
    from monailabel.utils.async_tasks import utils

    utils.subprocess = SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT, PIPE=subprocess.PIPE)


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a sub-process that MONAI Label's command line describes.

    Parameters
    ----------
    command : list of str
        Ends in "-m", the method, "-r" and the request as JSON.
    **options : object
        Of `subprocess.Popen`, for text.
    """
    method, _, request = command[-3:]
    own = [sys.executable, "-m", NAME, str(os.getpid()), method]
    process: subprocess.Popen[str] = subprocess.Popen(own, stdin=subprocess.PIPE, **options)
    assert process.stdin is not None
    # one that has ended already says so by its exit code
    with suppress(OSError), process.stdin:
        process.stdin.write(request)
    return process


def main() -> None:
    """Read the request and run MONAI Label's own program with it."""
    parent, method = sys.argv[1:]
    if method in _ENDS_WITH_SERVER:
        _end_with(int(parent))
    # this process alone sees it: others see how the process was started
    sys.argv[1:] = ["-m", method, "-r", sys.stdin.read()]
    from monailabel.interfaces.utils.app import run_main

    run_main()


def _end_with(parent: int) -> None:
    """End this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    # it may have ended before
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main()
