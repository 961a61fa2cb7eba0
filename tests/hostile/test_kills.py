"""A server that is killed while labels are saved: those that it has acknowledged are there after its next start."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import SimpleITK
from PIL import Image

pytestmark = pytest.mark.timeout(3600)

SHAPE = (24, 32)
IMAGES = [f"image{number}" for number in range(6)]
# What one person after the other saves, each for images of their own.
PERSONS = [IMAGES[:3], IMAGES[3:]]


@dataclass
class Saved:
    """What a person has saved of an image: the label that was acknowledged last, and the one that was sent after it."""

    acknowledged: np.ndarray | None = None
    sent: np.ndarray | None = None

    def fits(self, found: np.ndarray | None) -> bool:
        """Whether what a server returns is one of the two."""
        for label in (self.acknowledged, self.sent):
            if (label is None) == (found is None) and (label is None or np.array_equal(label, found)):
                return True
        return False


@dataclass
class Server:
    """The application in processes of its own, one after the other."""

    place: Path
    process: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_server.py")), str(self.place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "MONAI_LABEL_SESSION_PATH": str(self.place / "sessions"), "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def start(self) -> None:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.write("start\n")
        self.parent.stdin.flush()
        process, port = self.parent.stdout.readline().split()
        self.process, self.url = int(process), f"http://127.0.0.1:{port}"
        assert requests.get(f"{self.url}/healthz", timeout=120).ok

    def kill(self) -> None:
        process = psutil.Process(self.process)
        process.kill()
        process.wait(60)

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.kill()
        self.parent.kill()
        self.parent.communicate()

    def save(self, image: str, label: np.ndarray, file: Path) -> bool:
        """Save a label; returns whether that was acknowledged."""
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label[None]), str(file))
        try:
            with file.open("rb") as content:
                where = {"image": image, "tag": "final"}
                files = {"label": (file.name, content)}
                answer = requests.put(f"{self.url}/datastore/label", params=where, files=files, timeout=60)
        except requests.RequestException:
            return False
        assert answer.ok, answer.text
        return True

    def label_of(self, image: str, file: Path) -> np.ndarray | None:
        """Return the final label of an image."""
        where = {"label": image, "tag": "final"}
        answer = requests.get(f"{self.url}/datastore/label", params=where, timeout=60)
        if answer.status_code == 404:
            return None
        assert answer.ok, answer.text
        file.write_bytes(answer.content)
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))[0]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "studies").mkdir()
    (tmp_path / "space" / "networks").mkdir(parents=True)
    past = time.time() - 3600
    for number, image in enumerate(IMAGES):
        file = tmp_path / "studies" / f"{image}.png"
        Image.fromarray(np.full(SHAPE, 40 * number, np.uint8)).save(file)
        # what was written just now may be on its way
        os.utime(file, (past, past))
    made = Server(tmp_path)
    yield made
    made.close()


def test_acknowledged_labels_outlive_kills(
    server: Server,
    tmp_path: Path,
    drill_size: Callable[[str, int], int],
    note: Callable[[str, str, object], None],
) -> None:
    kills = drill_size("kills", 10)
    chance = random.Random(5)
    state = {image: Saved() for image in IMAGES}
    acknowledged = 0
    for number in range(kills):
        server.start()
        first, stop = threading.Event(), threading.Event()

        def work(person: int, seed: int, first: threading.Event = first, stop: threading.Event = stop) -> None:
            nonlocal acknowledged
            draw = np.random.default_rng(seed)
            while not stop.is_set():
                image = PERSONS[person][int(draw.integers(3))]
                saved = state[image]
                saved.sent = draw.integers(0, 3, SHAPE).astype(np.uint8)
                if not server.save(image, saved.sent, tmp_path / f"{person}.nii.gz"):
                    return
                saved.acknowledged = saved.sent
                acknowledged += 1
                first.set()

        persons = [threading.Thread(target=work, args=(person, 2 * number + person)) for person in range(2)]
        for person in persons:
            person.start()
        assert first.wait(60)
        time.sleep(chance.uniform(0, 0.3))
        stop.set()
        server.kill()
        for person in persons:
            person.join(90)

        server.start()
        for image, saved in state.items():
            found = server.label_of(image, tmp_path / "found.nii.gz")
            assert saved.fits(found), image
            saved.acknowledged = saved.sent = found
        hidden = {path.name for path in (tmp_path / "studies").rglob(".*")}
        assert hidden <= {".lock", ".medclipsam.json", ".versions"}
        server.kill()
    assert acknowledged >= kills
    note("kill -9", "kills / labels acknowledged / lost", f"{kills} / {acknowledged} / 0")
