"""How time grows with planes, targets, images in the folder and clients, with the default weights.

Each row says how much longer it takes than the row before it, beside how much more there is to do. The last two parts
ask a real server: how long it takes to list a folder, and how many prompts clients get a minute, beside the library's
own time for the same prompt, from which the server's overhead follows.

    python benchmarks/growth.py [--planes 4 16 64] [--targets 1 2 4] [--images 1000 10000] [--clients 1 4 8]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
import torch
from PIL import Image

from medclipsam.base.options import ZeroShotOptions
from medclipsam.demo.phantoms import make_phantom, make_volume
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.pipeline.zero_shot import ZeroShot

TARGETS = ("left lung", "right lung", "heart", "spine")
# The loop of prompts of one number of clients.
REQUESTS = 12


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, numbers in (("planes", [4, 16, 64]), ("targets", [1, 2, 4]), ("images", [1000, 10000])):
        parser.add_argument(f"--{name}", type=int, nargs="*", default=numbers, help="none leaves the part out")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    given = parser.parse_args(arguments)
    print(f"{torch.get_num_threads()} threads, default weights, {given.size} pixels")
    print(f"{'':<32}{'seconds':>10}{'times':>10}{'for times':>12}")
    pipeline = ZeroShot.load()
    rows("planes, lungs on a chest CT", given.planes, lambda n: volume(pipeline, n, given.size))
    rows("targets on a chest X-ray", given.targets, lambda n: targets(pipeline, n, given.size))
    rows("images of a folder listed", given.images, listing)
    if given.clients:
        with tempfile.TemporaryDirectory() as folder:
            clients(pipeline, Path(folder), given.clients, given.size)


def rows(what: str, numbers: Sequence[int], seconds: Callable[[int], float]) -> None:
    print(what)
    before: tuple[int, float] | None = None
    for number in numbers:
        spent = seconds(number)
        told = "" if before is None else f"{spent / before[1]:>10.1f}{number / before[0]:>12.1f}"
        print(f"  {number:<30}{spent:>10.3f}{told}", flush=True)
        before = number, spent


def volume(pipeline: ZeroShot, planes: int, size: int) -> float:
    image = MedicalImage.from_array(make_volume("CT", 1, planes, size=size)[0], modality="CT")
    start = time.perf_counter()
    pipeline.segment(image, "both lungs")
    return time.perf_counter() - start


def targets(pipeline: ZeroShot, count: int, size: int) -> float:
    """Return the median time of a first prompt on new images."""
    times = []
    for seed in range(4):
        image = MedicalImage.from_array(make_phantom("XR", 10 * count + seed, size=size).image, modality="DX")
        start = time.perf_counter()
        pipeline.segment(image, list(TARGETS[:count]), ZeroShotOptions(presence=False))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def listing(images: int) -> float:
    """Return the time of the answer to GET /datastore/ on a folder of so many pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        studies = Path(temporary) / "studies"
        studies.mkdir()
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
        for number in range(images):
            if number % 1000 == 0:  # a file has no more than 65,000 names on ext4
                first = studies / f"{number:06d}.png"
                picture.save(first)
            else:
                (studies / f"{number:06d}.png").hardlink_to(first)
        with server(Path(temporary)) as url:
            requests.get(f"{url}/datastore/?output=train", timeout=300).raise_for_status()
            start = time.perf_counter()
            requests.get(f"{url}/datastore/?output=train", timeout=300).raise_for_status()
            return time.perf_counter() - start


def clients(pipeline: ZeroShot, folder: Path, counts: Sequence[int], size: int) -> None:
    """Print the prompts a minute of several clients, and what the server adds to a prompt."""
    studies = folder / "studies"
    studies.mkdir()
    total = max(REQUESTS, *counts) * len(counts) + 2
    for seed in range(total):
        Image.fromarray(make_phantom("XR", seed, size=size).image).save(studies / f"{seed:04d}.png")
    names = iter([f"{seed:04d}" for seed in range(total)])
    with server(folder) as url:

        def prompt(name: str) -> float:
            start = time.perf_counter()
            answer = requests.post(
                f"{url}/infer/text_prompt?image={name}", data={"params": json.dumps({"text": "heart"})}, timeout=600
            )
            answer.raise_for_status()
            return time.perf_counter() - start

        prompt(next(names))
        print(f"{'clients of a server, heart':<32}{'a minute':>10}{'times':>10}{'for times':>12}")
        first: float | None = None
        one: list[float] = []
        for count in counts:
            asked = [next(names) for _ in range(max(REQUESTS, count))]
            start = time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                times = list(pool.map(prompt, asked))
            rate = 60 * len(asked) / (time.perf_counter() - start)
            first, one = first or rate, one or times
            print(f"  {count:<30}{rate:>10.1f}{rate / first:>10.1f}{count / counts[0]:>12.1f}", flush=True)
        alone = []
        for seed in range(5):
            image = read_image(studies / f"{seed:04d}.png", modality="DX")
            start = time.perf_counter()
            pipeline.segment(image, "heart")
            alone.append(time.perf_counter() - start)
        added = statistics.median(one) - statistics.median(alone[1:])
        print(f"a prompt by the library {statistics.median(alone[1:]):.3f} s, by the server {added:+.3f} s")


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run a server on `folder/studies`; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medclipsam", "serve", "--studies", folder / "studies", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([*command, "--workspace", folder / "workspace"], stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                if process.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text()[-2000:])
                try:
                    requests.get(f"{url}/healthz", timeout=60)
                    break
                except requests.exceptions.ConnectionError:
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
