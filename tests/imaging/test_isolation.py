"""Calls in another process, whose crash, hang or hunger for memory is an error and not the end of all."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file

from medclipsam.base.errors import CancelledError, ImageError, InputError, OptionError, TooLargeError
from medclipsam.imaging import isolation, limits, read_image
from medclipsam.imaging.isolation import IsolationError, call

# Functions that the other process calls; it finds them by the path that the fixture gives it.


def process_id() -> int:
    return os.getpid()


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    while True:
        time.sleep(60)


def take(mebibytes: int, voxels: int = 0) -> int:
    limits.allow_voxels(voxels * 2**20)
    return len(np.ones(mebibytes * 2**20, np.uint8))


def fail(kind: type[Exception], *args: object) -> None:
    raise kind(*args)


def variables() -> dict[str, str]:
    return dict(os.environ)


def arrays() -> tuple[np.ndarray, np.ndarray, str]:
    return np.arange(7, dtype=np.uint8), np.arange(12.0).reshape(3, 4), "text"


@pytest.fixture(autouse=True, scope="module")
def other_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        for function in (process_id, crash, hang, take, fail, variables, arrays):
            patch.setattr(function, "__module__", "test_isolation")
        isolation.close()
        yield
        isolation.close()


def test_results_come_back_and_one_process_does_many_calls() -> None:
    first, second, text = call(arrays)
    np.testing.assert_array_equal(first, np.arange(7))
    np.testing.assert_array_equal(second, np.arange(12.0).reshape(3, 4))
    assert text == "text"
    second[0] = 5
    assert call(process_id) == call(process_id) != os.getpid()


def test_a_crash_is_an_error_and_the_next_call_works() -> None:
    before = call(process_id)
    with pytest.raises(IsolationError, match="crashed"):
        call(crash)
    assert call(process_id) != before
    assert not psutil.pid_exists(before)


def test_a_call_that_hangs_is_ended() -> None:
    before = call(process_id)
    with pytest.raises(IsolationError, match="given up after"):
        call(hang, seconds=0.5)
    assert not psutil.pid_exists(before)


def test_memory_is_bounded_by_the_stated_voxels() -> None:
    much = limits.MEMORY_EXTRA // 2**20 + 50
    assert call(take, 50) == 50 * 2**20
    with pytest.raises(ImageError, match="memory"):
        call(take, much)
    assert call(take, much, 30) == much * 2**20
    with pytest.raises(ImageError, match="memory"):
        call(take, much)


@pytest.mark.parametrize(
    "raised", [(ImageError, "bad"), (InputError, "worse"), (TooLargeError, "big"), (OptionError, "key", 1, "2")]
)
def test_errors_of_this_package_come_back_as_sentences(raised: tuple[type[InputError], object]) -> None:
    kind, *args = raised
    with pytest.raises(InputError if kind is OptionError else kind) as caught:
        call(fail, kind, *args)
    assert str(caught.value) == str(kind(*args))


def test_other_errors_are_runtime_errors() -> None:
    with pytest.raises(RuntimeError, match="odd"):
        call(fail, ValueError, "odd")


def test_secrets_of_the_environment_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "secret")
    isolation.close()
    assert "MONAI_LABEL_DICOMWEB_PASSWORD" not in call(variables)


def test_a_caller_that_no_longer_waits_ends_the_call() -> None:
    call(process_id)
    for stopped in (lambda: True, _cancelled):
        token = isolation.stop_asked.set(stopped)
        try:
            with pytest.raises(CancelledError):
                call(hang)
        finally:
            isolation.stop_asked.reset(token)
    assert call(process_id) > 0


def _cancelled() -> bool:
    raise CancelledError("stopped")


def test_closing_ends_what_runs() -> None:
    call(process_id)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            call(hang)
        except ImageError as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not any(worker.busy for worker in list(isolation._pool._all)):
        time.sleep(0.01)
    isolation.close()
    asking.join(60)
    assert not asking.is_alive()
    assert len(caught) == 1


def test_a_forked_process_has_its_own() -> None:
    mine = call(process_id)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, str(call(process_id)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 20)) != mine
    assert call(process_id) == mine
    os.close(reading)
    os.close(writing)


def test_the_other_process_ends_with_its_caller(tmp_path: Path) -> None:
    script = (
        "import os, signal; from medclipsam.imaging import isolation; isolation.start();"
        "print(isolation._pool.pids()[0], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, stdout=subprocess.PIPE, text=True, timeout=300)
    process = int(done.stdout)
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.1)


# Lossless JPEG, which only GDCM decodes


def lossless() -> pydicom.Dataset:
    path = get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False)
    assert isinstance(path, str)
    data = pydicom.dcmread(path)
    assert data.file_meta.TransferSyntaxUID == uid.JPEGLosslessSV1
    return data


def test_damaged_lossless_jpeg_is_an_error_and_the_next_file_is_read(
    damaged: Callable[[bytes, random.Random], bytes], tmp_path: Path
) -> None:
    truth = get_testdata_file("SC_rgb_rle.dcm", download=False)
    assert isinstance(truth, str)
    chance = random.Random(1)
    refused = 0
    for _ in range(20):
        data = lossless()
        data.PixelData = damaged(data.PixelData, chance)
        data.save_as(tmp_path / "damaged.dcm")
        try:
            read_image(tmp_path / "damaged.dcm")
        except ImageError:
            refused += 1
    assert refused > 2
    lossless().save_as(tmp_path / "whole.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "whole.dcm").plane(0), pydicom.dcmread(truth).pixel_array)
