"""Claims of several processes: one wins, a dead one's expires, a living one's does not."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medclipsam.cohort.claims import Claims

RACE = """
import sys, time
from pathlib import Path
from medclipsam.cohort.claims import Claims
place, begin = Path(sys.argv[1]), float(sys.argv[2])
with Claims(place / "owners", 60) as claims:
    time.sleep(max(0, begin - time.time()))
    print([number for number in range(200) if claims.take(place / f"{number}.claim")])
"""
HOLD = """
import sys, time
from pathlib import Path
from medclipsam.cohort.claims import Claims
claims = Claims(Path(sys.argv[1]) / "owners", 60)
print(claims.take(Path(sys.argv[1]) / "a.claim"), flush=True)
time.sleep(60)
"""


def test_of_several_processes_one_gets_each_claim(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path), str(time.time() + 3)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    got = [json.loads(process.communicate()[0]) for process in processes]
    assert sorted(number for own in got for number in own) == list(range(200))


def test_a_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    with Claims(tmp_path / "owners", 60) as claims:
        assert claims.is_alive(tmp_path / "a.claim")
        assert not claims.take(tmp_path / "a.claim")
        process.kill()
        process.wait()
        assert not claims.is_alive(tmp_path / "a.claim")


def test_a_claim_of_another_machine_expires_with_its_signs_of_life(tmp_path: Path) -> None:
    other = tmp_path / "owners" / "elsewhere"
    other.parent.mkdir()
    other.write_text(json.dumps({"owner": "elsewhere", "machine": "another", "pid": 1, "start": "x"}))
    os.link(other, tmp_path / "a.claim")
    with Claims(tmp_path / "owners", 60) as claims:
        now = time.time()
        os.utime(other, (now - 30, now - 30))
        assert claims.is_alive(tmp_path / "a.claim")
        os.utime(other, (now - 90, now - 90))
        assert not claims.is_alive(tmp_path / "a.claim")
        # it comes back: the file of its claim is the one whose time it renews
        os.utime(other)
        assert claims.is_alive(tmp_path / "a.claim")
        other.unlink()
        assert not claims.is_alive(tmp_path / "a.claim")


def test_signs_of_life_are_renewed(tmp_path: Path) -> None:
    with Claims(tmp_path / "owners", 0.3) as claims:
        (file,) = (tmp_path / "owners").iterdir()
        assert file.name == claims.owner
        os.utime(file, (0, 0))
        end = time.monotonic() + 10
        while not file.stat().st_mtime and time.monotonic() < end:
            time.sleep(0.02)
        assert file.stat().st_mtime
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"{"])
def test_what_cannot_be_read_counts_as_alive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.claim").write_bytes(content)
    with Claims(tmp_path / "owners", 60) as claims:
        assert claims.is_alive(tmp_path / "a.claim")
        assert not claims.is_alive(tmp_path / "b.claim")


def test_what_ended_processes_left_is_cleared_and_a_process_that_wakes_goes_on(tmp_path: Path) -> None:
    with Claims(tmp_path / "owners", 60) as sleeper:
        gone = tmp_path / "owners" / "gone"
        gone.write_text(json.dumps({"owner": "gone", "machine": "another", "pid": 1, "start": ""}))
        os.utime(gone, (0, 0))
        with Claims(tmp_path / "owners", 60):
            assert not gone.exists()
        (tmp_path / "owners" / sleeper.owner).unlink()
        assert sleeper.take(tmp_path / "a.claim")
        assert sleeper.is_alive(tmp_path / "a.claim")
    assert not sleeper.take(tmp_path / "nowhere" / "a.claim")
