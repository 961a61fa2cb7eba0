"""Lossless JPEG is decoded in a process of its own, whose end is an error and not the end of all."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import psutil
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file

from medclipsam.imaging import decoding
from medclipsam.imaging.decoding import decode


def lossless() -> pydicom.Dataset:
    path = get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False)
    assert isinstance(path, str)
    data = pydicom.dcmread(path)
    assert data.file_meta.TransferSyntaxUID == uid.JPEGLosslessSV1
    return data


def truth() -> np.ndarray:
    path = get_testdata_file("SC_rgb_rle.dcm", download=False)
    assert isinstance(path, str)
    return pydicom.dcmread(path).pixel_array


def decoder() -> int:
    process = decoding._decoder._process
    assert process is not None
    return process.pid


def test_pixels_are_those_of_the_uncompressed_file_and_one_process_decodes_many() -> None:
    first = decode(lossless())
    np.testing.assert_array_equal(first, truth())
    pid = decoder()
    np.testing.assert_array_equal(decode(lossless()), first)
    assert decoder() == pid != os.getpid()


def test_damaged_streams_are_errors_and_the_next_file_is_decoded(
    damaged: Callable[[bytes, random.Random], bytes],
) -> None:
    chance = random.Random(1)
    refused = 0
    for _ in range(40):
        data = lossless()
        data.PixelData = damaged(data.PixelData, chance)
        try:
            decode(data)
        except Exception:
            refused += 1
    assert refused > 5
    np.testing.assert_array_equal(decode(lossless()), truth())


def test_a_decoder_that_ended_is_told_and_started_again() -> None:
    decode(lossless())
    os.kill(decoder(), signal.SIGSTOP)
    os.kill(decoder(), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the decoder ended on it"):
        decoding._decoder.ask({"syntax": str(uid.JPEGLosslessSV1)}, b"")
    np.testing.assert_array_equal(decode(lossless()), truth())


def test_a_decoder_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    decode(lossless())
    os.kill(decoder(), signal.SIGSTOP)
    monkeypatch.setattr(decoding, "_LONGEST", 0.5)
    with pytest.raises(RuntimeError, match="the decoder ended on it"):
        decode(lossless())
    monkeypatch.undo()
    np.testing.assert_array_equal(decode(lossless()), truth())


def test_the_decoder_ends_with_its_process() -> None:
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:];"
        "import pydicom; from pydicom.data import get_testdata_file; from medclipsam.imaging import decoding;"
        "decoding.decode(pydicom.dcmread(get_testdata_file('SC_rgb_jpeg_gdcm.dcm', download=False)));"
        "print(decoding._decoder._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, stdout=subprocess.PIPE, text=True, timeout=120)
    pid = int(done.stdout)
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
