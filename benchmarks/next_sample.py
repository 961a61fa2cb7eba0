"""How long a client waits for its next image, on a server with many images.

A studies folder is made of hard links to a few small pictures, with a ledger that holds an embedding and a score of
each and some labels; the real server serves it, and several clients ask at once. The table in docs/rounds.md comes from
here.

    python benchmarks/next_sample.py [--images 100000] [--clients 4] [--folder DIR]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image
from tqdm import tqdm

from medclipsam.active.ledger import Ledger, Score
from medclipsam.cli.rounds import LEDGER_FILE
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.training.split import Split

STRATEGIES = ("combined", "random", "coverage", "uncertainty")
# A file has no more than 65,000 names on ext4.
LINKS, SIDE, EMBEDDING, LABELLED = 1000, 32, 512, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=25, help="of each client for each strategy")
    parser.add_argument("--folder", type=Path, help="where studies and workspace are made, and kept for the next run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        names = make_studies(place / "studies", given.images)
        make_ledger(place / "workspace", names)
        measure(place, names, given.clients, given.requests)


def make_studies(folder: Path, count: int) -> list[str]:
    """Fill a folder with pictures and return their ids."""
    names = [f"image-{number:06d}" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(tqdm(names, "pictures", disable=not sys.stderr.isatty())):
        path = folder / f"{name}.png"
        if path.exists():
            continue
        if number % LINKS == 0:
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)).save(path)
        else:
            os.link(folder / f"{names[number - number % LINKS]}.png", path)
    return names


def make_ledger(workspace: Path, names: Sequence[str]) -> None:
    """Fill a ledger as a server would in hours of embedding and scoring."""
    workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in workspace.glob(f"{LEDGER_FILE}*"):
        file.unlink()
    ledger, split, rng = Ledger(workspace / LEDGER_FILE), Split(), np.random.default_rng(1)
    ledger.sync_images({name: (f"image:{name}", split.holds(f"image:{name}")) for name in names})
    vectors = rng.normal(size=(len(names), EMBEDDING)).astype(np.float16)
    # the server would drop what another encoder has seen
    ledger.set_embeddings(ZeroShot.load("demo").encoder.identity, dict(zip(names, vectors, strict=True)))
    doubts = rng.random((len(names), 2)).tolist()
    ledger.set_scores(
        "network",
        {
            name: Score(max(doubt), {"liver": doubt[0], "spleen": doubt[1]}, doubt[0], (), ("liver",))
            for name, doubt in zip(names, doubts, strict=True)
        },
    )
    for name in names[:LABELLED]:
        ledger.record(name, "ada", np.ones((1, SIDE, SIDE), np.uint8))
    ledger.close()


def measure(place: Path, names: Sequence[str], clients: int, count: int) -> None:
    """Serve the folder and print how long clients wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "medclipsam", "serve", "--studies", str(place / "studies")]
    command += ["--workspace", str(place / "workspace"), "--port", str(port), "--retrain-after", "0"]
    begun = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not _answers(url):
            if server.poll() is not None:
                raise SystemExit("The server has ended.")
            time.sleep(0.05)
        ready = time.perf_counter() - begun
        first = ask(url, "combined", "first")
        print(f"{len(names)} images, {clients} clients, load of the machine {os.getloadavg()[0]:.1f}")
        print(f"the server answers after {ready:.1f} s; the first next sample took {first:.0f} ms\n")
        print(f"{'milliseconds':<28}{'median':>8}{'95 %':>8}{'most':>8}")
        for strategy in STRATEGIES:
            with ThreadPoolExecutor(clients) as pool:
                asked = [pool.submit(asks, url, strategy, f"client {each}", count) for each in range(clients)]
            show(strategy, [value for each in asked for value in each.result()])
        for strategy in STRATEGIES:
            show(f"{strategy}, after a label", after_labels(url, strategy, 10))
        alone = [ask(url, "random", "alone") for _ in range(count)]
        show("random, one client", alone)
    finally:
        server.terminate()
        server.wait(60)


def asks(url: str, strategy: str, client: str, count: int) -> list[float]:
    """Ask several times, one after the other."""
    return [ask(url, strategy, client) for _ in range(count)]


def ask(url: str, strategy: str, client: str) -> float:
    """Return the milliseconds until the next image is known."""
    return _timed(url, strategy, client)[0]


def after_labels(url: str, strategy: str, count: int) -> list[float]:
    """Return the milliseconds until the next image is known, each time after a label was saved."""
    found = []
    buffer = io.BytesIO()
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(buffer, "PNG")
    for _ in range(count):
        image = _timed(url, strategy, "reader")[1]["id"]
        answer = requests.put(
            f"{url}/datastore/label",
            params={"image": image, "tag": "final"},
            data={"params": json.dumps({"client_id": "reader"})},
            files={"label": ("mask.png", buffer.getvalue())},
            timeout=600,
        )
        answer.raise_for_status()
        found.append(ask(url, strategy, "reader"))
    return found


def show(what: str, values: Sequence[float]) -> None:
    """Print a line of the table."""
    middle, high = np.percentile(values, [50, 95])
    print(f"{what:<28}{middle:>8.0f}{high:>8.0f}{max(values):>8.0f}", flush=True)


def _timed(url: str, strategy: str, client: str) -> tuple[float, dict[str, Any]]:
    begun = time.perf_counter()
    answer = requests.post(f"{url}/activelearning/{strategy}", json={"client_id": client}, timeout=600)
    answer.raise_for_status()
    return 1000 * (time.perf_counter() - begun), dict(answer.json())


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=60).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    main()
