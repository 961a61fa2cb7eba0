"""The folder of a run: what is looked for, the list of studies, who works on what, and the results.

run.json                    the request, and where the studies come from
list.json, list/            the studies in blocks of 256, a Parquet file each; blocks are added and never changed
owners/, work/              claims, failures and results of the blocks that are being worked on
table/                      the findings of each finished block, a Parquet file each
masks/                      masks by image and request, in 256 folders
failed/                     logs of failures
log/                        a line for each study, by process

A study is found by its block and its place in it. While a block is worked on, its folder in `work` holds

    017.2.claim             the second claim of study 17, see `medclipsam.cohort.claims`
    017.1.failed            what went wrong at the first attempt
    017.done                the result

and a block whose studies are all done becomes a file in `table`, after which its folder is removed. No step lists more
than the folder of one block, however many studies there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.files import write_json, write_new, write_text
from medclipsam.base.locks import locked
from medclipsam.cohort.source import Source, Study

BLOCK = 256
RUN_FILE, LIST_FILE = "run.json", "list.json"
FINDINGS, REPORT = "findings.parquet", "report.html"
_GROUP = 1000
_STATE = re.compile(r"(\d{3})\.(?:(\d+)\.(claim|failed)|done)")


@dataclass(frozen=True)
class BlockState:
    """What has become of the studies of a block that is being worked on.

    Attributes
    ----------
    done : set of int
        Places of studies with a result.
    claims : dict of int to int
        Place to the number of the latest claim.
    failures : dict of int to list of int
        Place to the numbers of the attempts that failed.
    """

    done: set[int] = field(default_factory=set)
    claims: dict[int, int] = field(default_factory=dict)
    failures: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """How far a run is.

    Attributes
    ----------
    studies, done, failed : int
        All that are listed; those with a result, failed ones among them; those that were set aside.
    findings : int
        Rows of finished blocks.
    """

    studies: int
    done: int
    failed: int
    findings: int


class Run:
    """The folder of a run.

    Parameters
    ----------
    folder : Path
        Made by `Run.create`.

    Attributes
    ----------
    about : dict
        What `run.json` says: `request` and `source`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.about: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            self.request: dict[str, Any] = self.about["request"]
            self.source: dict[str, Any] = self.about["source"]
        except FileNotFoundError:
            raise InputError(f"{folder} holds no run of `medclipsam cohort`: there is no {RUN_FILE}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / RUN_FILE} cannot be read ({error}).") from error
        self.digest = digest_of(self.about)

    @classmethod
    def create(cls, out: Path, request: Mapping[str, Any], source: Mapping[str, Any]) -> Run:
        """Return the run of a request in a folder of runs; it is made where it does not exist.

        Parameters
        ----------
        out : Path
            Folder of the runs of a cohort.
        request, source : mapping
            All that the results depend on, JSON-able.

        Raises
        ------
        InputError
            If the folder cannot be made.
        """
        about = json.loads(json.dumps({"request": request, "source": source}))
        folder = out / run_name(about)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("list", "owners", "work", "table", "masks", "failed", "log"):
                (folder / name).mkdir(exist_ok=True)
            write_new(folder / RUN_FILE, json.dumps(about, indent=2).encode())
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error
        return cls(folder)

    # -- the list -------------------------------------------------------------------------------------------------

    @property
    def is_listed(self) -> bool:
        """Whether the studies were ever listed."""
        return (self.folder / LIST_FILE).is_file()

    def listed(self) -> dict[str, Any]:
        """Return `blocks` and `studies`, their numbers, and `faults`: what could not be listed, and why."""
        try:
            return dict(json.loads((self.folder / LIST_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {"blocks": 0, "studies": 0, "faults": {}}

    def extend(self, source: Source) -> int:
        """List the studies of a source, and add those that are new or changed; returns how many these are."""
        import numpy as np

        with locked(self.folder / ".list.lock"):
            known = self.listed()
            blocks, studies = int(known["blocks"]), int(known["studies"])
            parts = [[study.digest for study in self.studies(block)] for block in range(blocks)]
            seen = np.sort(np.array([digest for part in parts for digest in part], dtype=np.uint64))
            added, waiting = 0, []
            for study in source.studies():
                place = int(np.searchsorted(seen, np.uint64(study.digest)))
                if place < len(seen) and int(seen[place]) == study.digest:
                    continue
                waiting.append(study)
                added += 1
                if len(waiting) == BLOCK:
                    self._write_block(blocks, waiting)
                    blocks, waiting = blocks + 1, []
            if waiting:
                self._write_block(blocks, waiting)
                blocks += 1
            write_json(
                self.folder / LIST_FILE,
                {"blocks": blocks, "studies": studies + added, "faults": dict(source.faults)},
            )
            return added

    def studies(self, block: int) -> list[Study]:
        """Return the studies of a block."""
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(self._path("list", block, ".parquet"), memory_map=False).to_pylist()
        return [Study(**{**row, "files": tuple(row["files"])}) for row in rows]

    def _write_block(self, block: int, studies: Sequence[Study]) -> None:
        from medclipsam.cohort.table import write_studies

        path = self._path("list", block, ".parquet")
        path.parent.mkdir(exist_ok=True)
        write_studies(path, studies)

    # -- blocks that are worked on --------------------------------------------------------------------------------

    def part(self, block: int) -> Path:
        """Return the file with the findings of a finished block, whether or not it is finished."""
        return self._path("table", block, ".parquet")

    def is_finished(self, block: int) -> bool:
        """Return whether all studies of a block have a result and are in the table."""
        return self.part(block).is_file()

    def work(self, block: int) -> Path:
        """Return the folder of a block that is being worked on; it is made."""
        folder = self._path("work", block)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def state(self, block: int) -> BlockState:
        """Return what has become of the studies of a block that is not finished."""
        state = BlockState()
        with suppress(FileNotFoundError), os.scandir(self._path("work", block)) as entries:
            for entry in entries:
                found = _STATE.fullmatch(entry.name)
                if found is None:
                    continue
                place = int(found[1])
                if found[3] == "claim":
                    state.claims[place] = max(int(found[2]), state.claims.get(place, 0))
                elif found[3] == "failed":
                    state.failures.setdefault(place, []).append(int(found[2]))
                else:
                    state.done.add(place)
        return state

    def claim_file(self, block: int, place: int, number: int) -> Path:
        """Return the file of a claim."""
        return self._path("work", block) / f"{place:03d}.{number}.claim"

    def is_done(self, block: int, place: int) -> bool:
        """Return whether a study has a result."""
        return (self._path("work", block) / f"{place:03d}.done").exists() or self.is_finished(block)

    def add_result(self, block: int, place: int, result: Mapping[str, Any]) -> bool:
        """Keep the result of a study, and return False where there is one already, which stays.

        Parameters
        ----------
        block, place : int
            The study.
        result : mapping
            `status` ("done" or "failed") and `rows`, see `medclipsam.cohort.table`.
        """
        try:
            return write_new(self._path("work", block) / f"{place:03d}.done", json.dumps(result).encode())
        except FileNotFoundError:  # the block was finished meanwhile
            return False

    def add_failure(self, block: int, place: int, number: int, sentence: str, log: str, *, crashed: bool) -> None:
        """Keep what went wrong at an attempt, and its log."""
        folder = self.folder / "failed" / f"{block:06d}"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{place:03d}.{number}.txt", log)
        told = json.dumps({"error": sentence, "crashed": crashed}).encode()
        with suppress(FileNotFoundError):
            write_new(self._path("work", block) / f"{place:03d}.{number}.failed", told)

    def failure(self, block: int, place: int, number: int) -> dict[str, Any]:
        """Return what went wrong at an attempt: `error`, and whether its worker `crashed`."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self._path("work", block) / f"{place:03d}.{number}.failed").read_bytes()))
        return {"error": "", "crashed": False}

    def failure_log(self, block: int, place: int, number: int) -> str:
        """Return where the log of a failure is, from the run's folder on."""
        return f"failed/{block:06d}/{place:03d}.{number}.txt"

    def finish(self, block: int, size: int) -> bool:
        """Move the results of a block into the table, and return whether all of its studies have one.

        Parameters
        ----------
        block, size : int
            The block, and how many studies it has.
        """
        from medclipsam.cohort.table import write_part

        if self.is_finished(block):
            shutil.rmtree(self._path("work", block), ignore_errors=True)
            return True
        if len(self.state(block).done) < size:
            return False
        folder = self._path("work", block)
        try:
            results = [json.loads((folder / f"{place:03d}.done").read_bytes()) for place in range(size)]
        except FileNotFoundError:  # another process is clearing up
            return self.is_finished(block)
        rows = [row for result in results for row in result["rows"]]
        failed = sum(result["status"] == "failed" for result in results)
        self.part(block).parent.mkdir(exist_ok=True)
        write_part(self.part(block), rows, studies=size, failed=failed)
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def reopen(self, block: int) -> int:
        """Take the studies that were set aside out of the table again, and return how many these are.

        The results of the others stay. Call it while nobody works on the block.
        """
        from medclipsam.cohort.table import part_counts, read_part

        studies = self.studies(block)
        folder = self.work(block)
        if not self.is_finished(block):
            return self._forget_failures(block, range(len(studies)))
        if not part_counts(self.part(block))["failed"]:
            with suppress(OSError):
                folder.rmdir()
            return 0
        shutil.rmtree(folder)
        folder.mkdir()
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in read_part(self.part(block)):
            rows.setdefault(int(row["place"]), []).append(row)
        kept = 0
        for place, own in rows.items():
            if own[0]["status"] != "failed":
                self.add_result(block, place, {"status": "done", "rows": own})
                kept += 1
        self.part(block).unlink()
        return len(studies) - kept

    def _forget_failures(self, block: int, places: Iterable[int]) -> int:
        folder, count = self._path("work", block), 0
        state = self.state(block)
        for place in places:
            path = folder / f"{place:03d}.done"
            if place in state.done and json.loads(path.read_bytes())["status"] == "failed":
                for file in folder.glob(f"{place:03d}.*"):
                    file.unlink(missing_ok=True)
                count += 1
        return count

    # -- results --------------------------------------------------------------------------------------------------

    def mask_file(self, image: str, suffix: str) -> Path:
        """Return the file of a mask, named by its image and the request; its folder is made."""
        spread = hashlib.sha256(image.encode()).hexdigest()
        safe = re.sub(r"[^\w.-]", "_", image)[:120]
        name = safe if safe == image else f"{safe}-{spread[:8]}"
        folder = self.folder / "masks" / spread[:2]
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.{self.digest}{suffix}"

    def parts(self) -> Iterator[Path]:
        """Yield the files of the finished blocks, in their order."""
        for block in range(int(self.listed()["blocks"])):
            if self.is_finished(block):
                yield self.part(block)

    def counts(self) -> Counts:
        """Return how far the run is."""
        from medclipsam.cohort.table import part_counts

        listed = self.listed()
        done = failed = findings = 0
        for block in range(int(listed["blocks"])):
            if self.is_finished(block):
                told = part_counts(self.part(block))
                done, failed, findings = done + told["studies"], failed + told["failed"], findings + told["rows"]
                continue
            for place in self.state(block).done:
                with suppress(OSError, ValueError):
                    result = json.loads((self._path("work", block) / f"{place:03d}.done").read_bytes())
                    done, failed = done + 1, failed + (result["status"] == "failed")
                    findings += len(result["rows"])
        return Counts(int(listed["studies"]), done, failed, findings)

    def _path(self, kind: str, block: int, suffix: str = "") -> Path:
        return self.folder / kind / f"{block // _GROUP:03d}" / f"{block:06d}{suffix}"


def digest_of(about: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits for what the results of a run depend on."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def run_name(about: Mapping[str, Any]) -> str:
    """Return what the folder of a run is called."""
    return f"run-{digest_of(about)}"


def runs_in(out: Path) -> list[Run]:
    """Return the runs of a folder, which may itself be one, oldest first.

    Raises
    ------
    InputError
        If there is none.
    """
    if (out / RUN_FILE).is_file():
        return [Run(out)]
    found = [path for path in out.glob("run-*") if (path / RUN_FILE).is_file()] if out.is_dir() else []
    if not found:
        raise InputError(f"{out} holds no run of `medclipsam cohort`.")
    return [Run(path) for path in sorted(found, key=lambda path: (path / RUN_FILE).stat().st_mtime)]


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return in words what differs between a request and the one before, by the names of the values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = dict.fromkeys((*one, *other))
        return [
            each
            for key in keys
            for each in differences(one.get(key), other.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if one == other else [f"{name} is {one!r} and was {other!r}"]
