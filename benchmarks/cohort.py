"""A cohort: its overhead, its memory on three nodes, and what kills leave of it.

The method is a stand-in for the models (pixels above half of the range), so that all that is measured is what is around
them; `overhead` measures the bare pipeline with the demo weights too.

    python benchmarks/cohort.py                      everything, with few studies
    python benchmarks/cohort.py nodes --studies 10000
    python benchmarks/cohort.py kills --away 60
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Workers import the stand-in from here.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

STANDIN = "tests.cohort.standin:Bright"
OBJECT_STORE = 100 * 2**20


def write_images(folder: Path, count: int, side: int = 64) -> Path:
    """Write grey PNG files, in folders of a thousand."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (side, side), np.uint8)
        Image.fromarray(pixels).save(place / f"im{number:06d}.png", compress_level=1)
    return folder


def make_run(out: Path, studies: Path, **arguments: Any) -> Any:
    """Return a run of the stand-in on a folder, its studies listed."""
    from medclipsam.cohort.command import Machine, folder_source, list_studies
    from medclipsam.cohort.methods import describe_request, own_request
    from medclipsam.cohort.store import Run

    run = Run.create(out, describe_request(own_request(STANDIN, **arguments), ("nifti",)), folder_source(studies))
    list_studies(run, Machine())
    return run


def result_of(run: Any) -> dict[str, int]:
    """Return how many studies a finished run has, and how many rows and images the table has."""
    import pyarrow.parquet as pq

    images = [image for part in run.parts() for image in pq.read_table(part, columns=["image"])["image"].to_pylist()]
    counts = run.counts()
    return {
        "studies": counts.studies,
        "done": counts.done,
        "set aside": counts.failed,
        "rows": len(images),
        "images": len(set(images)),
    }


# -- overhead ----------------------------------------------------------------------------------------------------


def overhead(studies: int, images: int) -> None:
    """Print the milliseconds of a study bare and in a run with one worker, for the stand-in and the demo weights."""
    from medclipsam.base.options import ZeroShotOptions
    from medclipsam.cohort.methods import describe_request, own_request, zero_shot_request

    with tempfile.TemporaryDirectory() as place:
        folder = write_images(Path(place) / "studies", studies)
        method = own_request(STANDIN)
        _compare("stand-in", Path(place) / "a", folder, describe_request(method, ("nifti",)))
        phantoms = _phantoms(Path(place) / "phantoms", images)
        method = zero_shot_request("breast tumour", "demo", ZeroShotOptions())
        _compare("demo weights", Path(place) / "b", phantoms, describe_request(method, ("nifti",), "US"))


def _phantoms(folder: Path, count: int) -> Path:
    from medclipsam.demo.phantoms import make_phantom

    folder.mkdir()
    for number in range(count):
        Image.fromarray(make_phantom("US", number).image).save(folder / f"us{number:04d}.png")
    return folder


def _compare(name: str, out: Path, folder: Path, request: dict[str, Any]) -> None:
    from medclipsam.cohort.command import Machine, folder_source, list_studies, work
    from medclipsam.cohort.methods import load_method
    from medclipsam.cohort.options import CohortOptions
    from medclipsam.cohort.store import Run
    from medclipsam.imaging import read_image, write_mask

    files = sorted(folder.rglob("*.png"))
    method = load_method(request["method"], "cpu")
    bare = out / "bare"
    bare.mkdir(parents=True)

    def one(file: Path) -> None:
        image = read_image(file, modality=request["modality"])
        write_mask(method.segment(image, "").labels, image, bare / f"{file.stem}.nii.gz", read_back=True)

    def all_of_them() -> float:
        begun = time.perf_counter()
        for file in files:
            one(file)
        return (time.perf_counter() - begun) / len(files)

    one(files[0])
    before = all_of_them()
    times = {}
    for ahead in (1, 3):
        run = Run.create(out / str(ahead), request, folder_source(folder))
        machine = Machine(
            engine="local", device="cpu", options=CohortOptions(workers=1, cpus_per_worker=1, ahead=ahead)
        )
        list_studies(run, machine)
        work(run, machine)
        finished = [row["finished"] for part in run.parts() for row in _rows(part)]
        # from the first result on: loading the models is no part of it
        times[ahead] = (max(finished) - min(finished)) / (len(finished) - 1)
    # before and after, since the machine may be slower at one time than at another
    alone = (before + all_of_them()) / 2
    more = {ahead: f"{1000 * seconds:.1f} ms ({1000 * (seconds - alone):+.1f} ms)" for ahead, seconds in times.items()}
    print(
        f"{name}: bare {1000 * alone:.1f} ms a study; in a run {more[1]} one after the other, {more[3]} overlapped; "
        f"{len(files)} studies"
    )


def _rows(part: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(part, columns=["finished"]).to_pylist())


# -- a large archive ------------------------------------------------------------------------------------------------


class _Numbers:
    """A source of made-up series."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.faults: dict[str, str] = {}

    def studies(self) -> Iterator[Any]:
        from medclipsam.cohort.source import Study

        for number in range(self._count):
            uid = f"1.2.826.0.1.3680043.8.498.{number:039d}"
            yield Study(uid, stamp="120", study_uid=f"{uid}.1", series_uid=uid, patient=f"P{number:07d}", modality="CT")


def archive(studies: int) -> None:
    """Print seconds, bytes and memory of list, resumption, status and table for made-up results of many series."""
    from medclipsam.cohort.methods import describe_request, own_request
    from medclipsam.cohort.store import BLOCK, Run
    from medclipsam.cohort.table import compact, write_part

    with tempfile.TemporaryDirectory() as place:
        request = describe_request(own_request(STANDIN), ("nifti",))
        rng = np.random.default_rng(0)
        run = Run.create(Path(place) / "out", request, {"kind": "pacs", "pacs": "http://127.0.0.1:9"})
        seconds: dict[str, float] = {}
        with _timed(seconds, "list"):
            run.extend(_Numbers(studies))  # type: ignore[arg-type]
        with _timed(seconds, "list again, nothing new"):
            run.extend(_Numbers(studies))  # type: ignore[arg-type]
        blocks = int(run.listed()["blocks"])
        begun = time.perf_counter()
        for block in range(blocks):
            own = run.studies(block)
            rows = [_made_up_row(rng, each, n) for n, each in enumerate(own)]
            run.part(block).parent.mkdir(exist_ok=True)
            write_part(run.part(block), rows, studies=len(own), failed=0)
        seconds["a block into the table"] = (time.perf_counter() - begun) / blocks
        with _timed(seconds, "look whether anything is left"):
            assert all(run.is_finished(block) for block in range(blocks))
        with _timed(seconds, "status"):
            assert run.counts().done == studies
        with _timed(seconds, "one table of all"):
            compact(run.parts(), run.folder / "findings.parquet")
        sizes = {name: _bytes(run.folder / name) for name in ("list", "table", "findings.parquet")}
    for name, value in seconds.items():
        print(f"{studies} studies in {-(-studies // BLOCK)} blocks: {name} {value:.3f} s")
    print(", ".join(f"{name} {size / 1e6:.1f} MB ({size / studies:.0f} bytes a study)" for name, size in sizes.items()))
    print(f"greatest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def rounds(images: int) -> None:
    """Print the seconds that it takes to put made-up findings and embeddings into a project's ledger."""
    from medclipsam.active import LEDGER_FILE
    from medclipsam.active.ledger import Ledger
    from medclipsam.active.pool import Pool
    from medclipsam.cohort.methods import describe_request, own_request
    from medclipsam.cohort.rounds import feed_rounds
    from medclipsam.cohort.store import Run
    from medclipsam.cohort.table import write_part

    with tempfile.TemporaryDirectory() as place:
        request = describe_request(own_request(STANDIN), ("nifti",))
        run = Run.create(Path(place) / "out", request, {"kind": "pacs", "pacs": "http://127.0.0.1:9"})
        run.extend(_Numbers(images))
        rng = np.random.default_rng(0)
        for block in range(int(run.listed()["blocks"])):
            own = run.studies(block)
            rows = [_made_up_row(rng, each, place_in_block) for place_in_block, each in enumerate(own)]
            for row in rows:
                row |= {"embedding": rng.random(512).astype(np.float16).tobytes().hex(), "encoder": "made up"}
            run.part(block).parent.mkdir(exist_ok=True)
            write_part(run.part(block), rows, studies=len(own), failed=0)
        workspace = Path(place) / "workspace"
        seconds: dict[str, float] = {}
        with _timed(seconds, "into the ledger"):
            feed_rounds(run, workspace)
        with _timed(seconds, "the pool that images are chosen from"):
            assert len(Pool(Ledger(workspace / LEDGER_FILE))) == images
    print(f"{images} images: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))


def _made_up_row(rng: np.random.Generator, study: Any, place: int) -> dict[str, Any]:
    """Return a row whose numbers are random, with boxes and scores of ten planes, as a finding in a volume has."""
    values = [round(float(value), 4) for value in rng.random(60)]
    planes = [
        {"plane": int(plane), "presence": values[2 * n], "prompt": {"boxes": rng.integers(0, 512, (1, 4)).tolist()}}
        for n, plane in enumerate(rng.integers(0, 120, 10))
    ]
    measured = {name: values[20 + n] for n, name in enumerate(("area_mm2", "mean", "sd", "minimum", "maximum"))}
    return {
        **{"study": study.study, "image": study.study, "place": place, "status": "done", "finding": "lung nodule"},
        **{"label": 22, "found": values[30] > 0.5, "presence": values[31], "threshold": 0.4, "voxels": place * 17},
        **{"volume_mm3": 1000 * values[32], "diameter_mm": 30 * values[33], "measurements": json.dumps(measured)},
        **{"sam_score": values[34], "reason": f"Found on 10 of 120 planes, {values[32]} mL.", "text": "lung nodule"},
        **{"evidence": json.dumps({"planes": planes}), "mask": f"masks/ab/{study.study}.0123456789ab.nii.gz"},
        **{"patient": study.patient, "study_uid": study.study_uid, "series_uid": study.series_uid, "modality": "CT"},
        **{"planes": 120, "rows": 512, "columns": 512, "weights": "{}", "seconds": values[35], "attempts": 1},
        **{"read_seconds": values[36], "compute_seconds": values[37], "write_seconds": values[38]},
        **{"worker": "worker-node-1", "version": "0.1.0", "finished": time.time()},
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


# -- three nodes -------------------------------------------------------------------------------------------------


@contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """Start nodes of Ray on this machine, each with one core."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": OBJECT_STORE, "include_dashboard": False},
    )
    try:
        for _ in range(nodes - 1):
            made.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
        yield made
    finally:
        made.shutdown()


def start_driver(run: Any, address: str | None, **options: Any) -> subprocess.Popen[str]:
    """Start a driver as a process of its own; it prints its greatest memory when it ends."""
    given = json.dumps({"cpus_per_worker": 1, **options})
    command = [sys.executable, __file__, "drive", "--run", str(run.folder), "--options", given]
    command += ["--address", address] if address else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def drive(folder: Path, address: str | None, options: dict[str, Any]) -> None:
    """Drive a run, and print the greatest memory of this process in MiB; the main function of a driver's process."""
    from medclipsam.cohort.command import Machine, work
    from medclipsam.cohort.options import CohortOptions
    from medclipsam.cohort.store import Run
    from medclipsam.dicomweb.client import Credentials

    machine = Machine(
        engine="ray" if address else "local",
        address=address,
        device="cpu",
        options=CohortOptions(**options),
        credentials=Credentials.from_environment(),
    )
    begun = time.perf_counter()
    work(Run(folder), machine)
    told = {"MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "seconds": time.perf_counter() - begun}
    print(json.dumps(told), flush=True)


def nodes(counts: list[int]) -> list[float]:
    """Print throughput and the driver's memory for numbers of studies on three nodes; returns the memory in MiB."""
    memory = []
    with tempfile.TemporaryDirectory() as place, cluster(3) as made:
        for count in counts:
            folder = write_images(Path(place) / f"studies-{count}", count)
            begun = time.perf_counter()
            run = make_run(Path(place) / f"out-{count}", folder)
            listed = time.perf_counter() - begun
            driver = start_driver(run, made.address)
            told = json.loads(driver.communicate()[0].splitlines()[-1])
            memory.append(told["MiB"])
            size = sum(file.stat().st_size for file in (run.folder / "table").rglob("*.parquet"))
            listing = sum(file.stat().st_size for file in (run.folder / "list").rglob("*.parquet"))
            print(
                f"{count} studies on 3 nodes: {result_of(run)}; listed in {listed:.1f} s, done in "
                f"{told['seconds']:.1f} s ({count / told['seconds']:.1f} a second); driver {told['MiB']:.1f} MiB; "
                f"table {size / count:.0f} and list {listing / count:.0f} bytes a study"
            )
            shutil.rmtree(folder)
    if len(memory) > 1:
        print(f"memory of the driver, {counts[-1]} against {counts[0]}: {100 * (memory[-1] / memory[0] - 1):+.1f} %")
    return memory


# -- kills -------------------------------------------------------------------------------------------------------


def kills(studies: int) -> dict[str, dict[str, int]]:
    """Kill a worker, a node, the driver; start two drivers. Returns what each run came to."""
    results: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = write_images(Path(place) / "studies", studies)
        with cluster(3) as made:
            for name, act in (("worker", _kill_worker), ("node", _kill_node), ("driver", _kill_driver)):
                results[name] = _with(Path(place) / name, folder, made, act)
                print(f"kill -9 of a {name}: {results[name]}", flush=True)
            results["two drivers"] = _with(Path(place) / "two", folder, made, _second_driver)
            print(f"two drivers on one run: {results['two drivers']}", flush=True)
    return results


Act = Callable[[Any, Any, subprocess.Popen[str], Path], None]


def _with(place: Path, folder: Path, made: Any, act: Act) -> dict[str, int]:
    """Drive a run on a cluster, let something happen when a third of it is done, and return what came of it."""
    tries = place / "tries"
    tries.mkdir(parents=True)
    run = make_run(place / "out", folder, seconds=0.1, tries=str(tries))
    total = int(run.listed()["studies"])
    driver = start_driver(run, made.address, ahead=2)
    _until(lambda: len(list(tries.iterdir())) > total / 3)
    act(made, run, driver, tries)
    driver.communicate()
    if run.counts().done < total:
        start_driver(run, made.address, ahead=2).communicate()
    calls = Counter(file.name.partition(".png")[0] for file in tries.iterdir())
    return {**result_of(run), "calls": sum(calls.values()), "done again": sum(calls.values()) - len(calls)}


def _kill_worker(made: Any, run: Any, driver: subprocess.Popen[str], tries: Path) -> None:
    latest = max(tries.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    os.kill(int(latest.name.split(".")[2]), signal.SIGKILL)


def _kill_node(made: Any, run: Any, driver: subprocess.Popen[str], tries: Path) -> None:
    node = next(iter(made.worker_nodes))
    made.remove_node(node, allow_graceful=False)
    made.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)


def _kill_driver(made: Any, run: Any, driver: subprocess.Popen[str], tries: Path) -> None:
    driver.kill()


def _second_driver(made: Any, run: Any, driver: subprocess.Popen[str], tries: Path) -> None:
    # processes of this machine, since the first one's actors have the nodes' cores
    start_driver(run, None, workers=1).communicate()


def pacs_away(away: float) -> dict[str, int]:
    """Do the series of a real Orthanc, which is stopped for some seconds in the midst; returns what came of the run."""
    from medclipsam.cohort.command import Machine, list_studies, pacs_source
    from medclipsam.cohort.methods import describe_request, own_request
    from medclipsam.cohort.store import Run
    from medclipsam.demo.dicom import phantom_series
    from medclipsam.demo.pacs import Orthanc, load
    from medclipsam.dicomweb.client import Credentials

    with tempfile.TemporaryDirectory() as name, Orthanc(Path(name) / "orthanc") as orthanc:
        place = Path(name)
        tries = place / "tries"
        tries.mkdir()
        load(orthanc, phantom_series(8, size=96, n_planes=6))
        os.environ["MONAI_LABEL_DICOMWEB_USERNAME"] = orthanc.user
        os.environ["MONAI_LABEL_DICOMWEB_PASSWORD"] = orthanc.password
        request = describe_request(own_request(STANDIN, seconds=0.3, tries=str(tries)), ("nifti", "pacs"))
        run = Run.create(place / "out", request, pacs_source(orthanc.url, {"modalities": "MR,CT,DX,US"}))
        list_studies(run, Machine(credentials=Credentials.from_environment()))
        driver = start_driver(run, None, workers=1)
        _until(lambda: len(list(tries.iterdir())) > 5)
        orthanc.stop()
        time.sleep(away)
        orthanc.start()
        driver.communicate()
        stored = orthanc.session().get(f"{orthanc.url}/instances", params={"Modality": "SEG"}, timeout=30).json()
        result = {**result_of(run), "segmentations": len(stored)}
    print(f"PACS away for {away:g} s: {result}", flush=True)
    return result


def _until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("The run does not come far enough.")
        time.sleep(0.1)


def main(arguments: list[str] | None = None) -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part",
        nargs="?",
        choices=("all", "overhead", "nodes", "kills", "pacs", "archive", "rounds", "drive"),
        default="all",
    )
    parser.add_argument("--studies", type=int, default=0, help="studies of a part (default: few)")
    parser.add_argument("--images", type=int, default=12, help="images for the demo weights")
    parser.add_argument("--away", type=float, default=10.0, help="seconds without the PACS")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--options", default="{}")
    given = parser.parse_args(arguments)
    if given.part == "drive":
        drive(given.run, given.address, json.loads(given.options))
        return
    if given.part in ("all", "overhead"):
        overhead(given.studies or 300, given.images)
    if given.part in ("all", "nodes"):
        most = given.studies or 600
        nodes([most // 10, most])
    if given.part in ("all", "archive"):
        archive(given.studies or 5000)
    if given.part in ("all", "rounds"):
        rounds(given.studies or 2000)
    if given.part in ("all", "kills"):
        kills(given.studies or 60)
    if given.part in ("all", "pacs"):
        pacs_away(given.away)


if __name__ == "__main__":
    main()
