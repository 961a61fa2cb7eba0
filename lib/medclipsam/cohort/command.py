"""A cohort as the command line asks for it: request, list, workers, table, report, rounds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError, MedClipSamError
from medclipsam.base.extras import MissingExtraError
from medclipsam.cohort.claims import Claims
from medclipsam.cohort.drive import Driver
from medclipsam.cohort.engine import Engine, LocalEngine, own_devices
from medclipsam.cohort.metrics import RunMetrics
from medclipsam.cohort.options import CohortOptions
from medclipsam.cohort.store import FINDINGS, REPORT, Counts, Run, differences, digest_of, run_name, runs_in
from medclipsam.cohort.work import OUTPUTS, WorkerSettings
from medclipsam.dicomweb.client import Credentials

ENGINES = ("ray", "local")
# Cores of a worker where nothing else is given.
_CORES = 4


@dataclass(frozen=True)
class Cohort:
    """What is asked for.

    Attributes
    ----------
    out : Path
        Folder of the runs.
    request : mapping
        Of `medclipsam.cohort.methods.describe_request`.
    source : mapping
        Of `folder_source`, `pacs_source` or `manifest_source`.
    """

    out: Path
    request: Mapping[str, Any]
    source: Mapping[str, Any]

    def __post_init__(self) -> None:
        outputs = self.request["outputs"]
        for output in outputs:
            if output not in OUTPUTS:
                raise InputError(f"Masks cannot be written as {output!r}; allowed: {', '.join(OUTPUTS)}.")
        if "pacs" in outputs and not self.source.get("pacs"):
            raise InputError("Masks can be stored in a PACS only where the studies are there; name it with --pacs URL.")
        if self.request["seg_type"] == "FRACTIONAL" and self.request["method"]["kind"] == "zero_shot":
            raise InputError(
                "A DICOM SEG of the kind FRACTIONAL holds the probabilities of a network; allowed for a text: "
                "BINARY and LABELMAP."
            )

    def open(self, *, continue_anyway: bool = False) -> Run:
        """Return the run of this request, which is made where there is none.

        Parameters
        ----------
        continue_anyway : bool
            Whether an earlier run of the folder is meant, whatever has changed since.

        Raises
        ------
        InputError
            If something has changed and an earlier run was meant: its results would not belong together.
        """
        about = {"request": dict(self.request), "source": dict(self.source)}
        if continue_anyway and not (self.out / run_name(about)).is_dir():
            with suppress(InputError):
                before = runs_in(self.out)[-1]
                changed = differences({"request": dict(self.request), "source": dict(self.source)}, before.about)
                raise ChangedRequestError(
                    f"The run {before.folder} cannot be continued with --continue-anyway: {'; '.join(changed)}. A "
                    "changed request is a new run: leave the flag out."
                )
        return Run.create(self.out, self.request, self.source)


class ChangedRequestError(MedClipSamError):
    """A run was to be continued with a request that is not the one it began with."""


@dataclass(frozen=True)
class Machine:
    """Who does the work.

    Attributes
    ----------
    engine : {"ray", "local"}
    address : str or None
        Of a Ray cluster; None for this machine.
    device : str
        Where the models run; "auto" for a GPU where there is one.
    shard : (int, int) or None
        Part and number of parts.
    options : CohortOptions
    pacs : mapping
        See `WorkerSettings`.
    credentials : Credentials
        For the DICOMweb server.
    """

    engine: str = "ray"
    address: str | None = None
    device: str = "auto"
    shard: tuple[int, int] | None = None
    options: CohortOptions = field(default_factory=CohortOptions)
    pacs: Mapping[str, Any] = field(default_factory=dict)
    credentials: Credentials = field(default_factory=Credentials, repr=False)

    @property
    def cores(self) -> int:
        """Cores of a worker."""
        return self.options.cpus_per_worker or min(_CORES, os.cpu_count() or 1)

    def settings(self, device: str) -> WorkerSettings:
        """Return what the workers of a device are told."""
        return WorkerSettings(
            device=device,
            threads=0 if device.startswith("cuda") else self.cores,
            ahead=self.options.ahead,
            patience=float(self.options.patience),
            pacs=self.pacs,
            credentials=self.credentials,
        )

    def own_device(self) -> str:
        """Return the device of this machine."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def start(self, run: Run, name: str) -> Engine:
        """Start the workers.

        Raises
        ------
        InputError
            If there is no cluster at the address.
        MissingExtraError
            If Ray is not installed.
        """
        if self.engine == "local" or self.shard is not None:
            return self._start_processes(run, name)
        try:
            from medclipsam.cohort.ray_engine import RayEngine, connect, resources
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise MissingExtraError("ray", "A cohort on Ray (not one with --engine local or --shard)") from None
        connect(self.address)
        device = self.device
        if device == "auto":
            device = "cuda" if resources().get("GPU") else "cpu"
        needed: dict[str, float] = {"num_cpus": self.cores}
        if device.startswith("cuda"):
            needed = {"num_cpus": 1, "num_gpus": self.options.gpus_per_worker}
        return RayEngine(
            run,
            self.settings(device),
            workers=self.options.workers,
            needed=needed,
            may_grow=self.address is not None,
            name=name,
        )

    def _start_processes(self, run: Run, name: str) -> LocalEngine:
        device = self.own_device()
        devices = own_devices(device)
        if device.startswith("cuda"):
            fit = int(len(devices) / self.options.gpus_per_worker)
        else:
            fit = (os.cpu_count() or 1) // self.cores
        return LocalEngine(run, self.options.workers or max(1, fit), self.settings(device), devices, name)


def folder_source(folder: Path) -> dict[str, Any]:
    """Describe a folder of studies."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of studies.")
    return {"kind": "folder", "path": str(folder.absolute())}


def pacs_source(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a DICOMweb server and a query, as settings `pacs_...` without their prefix."""
    return {"kind": "pacs", "pacs": url, "pacs_options": dict(options)}


def manifest_source(file: Path, url: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe a list of studies."""
    if not file.is_file() or file.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"{file} is not a list of studies; allowed: a CSV or Parquet file.")
    return {"kind": "manifest", "path": str(file.absolute()), "pacs": url, "pacs_options": dict(options or {})}


def list_studies(run: Run, machine: Machine, *, again: bool = True) -> int:
    """List the studies of a run in a process of its own, whose memory is free afterwards; returns how many are new.

    Parameters
    ----------
    run : Run
    machine : Machine
    again : bool
        Whether to look for new studies where the list was made already.

    Raises
    ------
    MedClipSamError
        If they cannot be listed.
    """
    if run.is_listed and not again:
        return 0
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            added, sentence = pool.submit(_extend, run.folder, machine.settings("cpu")).result()
        except BrokenProcessPool:
            raise InputError("The studies could not be listed: the process that did it ended, out of memory?") from None
    if sentence:
        raise InputError(sentence)
    return added


def work(run: Run, machine: Machine, *, show: bool = False, stopped: Callable[[], bool] = lambda: False) -> Counts:
    """Do all that is missing in a run, and return how far it is then.

    Raises
    ------
    StoppedError, CancelledError
        As `Driver.run`.
    """
    metrics = RunMetrics(machine.options.metrics_port)
    with Claims(run.folder / "owners", float(machine.options.lease)) as claims:
        engine = machine.start(run, f"worker-{claims.owner}")
        try:
            return Driver(
                run,
                engine,
                claims,
                machine.options,
                shard=machine.shard,
                metrics=metrics,
                show=show,
                stopped=stopped,
            ).run()
        finally:
            engine.close()


def conclude(run: Run, machine: Machine) -> str:
    """Write the table of all findings and the report, and return in a sentence what there is."""
    from medclipsam.cohort.report import write_report
    from medclipsam.cohort.table import compact

    findings = compact(run.parts(), run.folder / FINDINGS)
    write_report(run, machine.settings("cpu"))
    counts = run.counts()
    return (
        f"{counts.done} of {counts.studies} studies are done, {counts.failed} of them set aside. {findings} findings: "
        f"{run.folder / FINDINGS}; report: {run.folder / REPORT}."
    )


def retry(run: Run) -> int:
    """Give studies that were set aside further attempts, and return how many these are."""
    return sum(run.reopen(block) for block in range(int(run.listed()["blocks"])))


def status(run: Run) -> dict[str, Any]:
    """Return how far a run is, JSON-able."""
    counts, listed = run.counts(), run.listed()
    return {
        "run": str(run.folder),
        "studies": counts.studies,
        "done": counts.done,
        "set_aside": counts.failed,
        "left": counts.studies - counts.done,
        "findings": counts.findings,
        "not_listed": len(listed["faults"]),
        "request": run.request,
        "source": run.source,
        "digest": digest_of(run.about),
    }


def parse_shard(text: str) -> tuple[int, int]:
    """Read "3/40": the third of forty parts.

    Raises
    ------
    InputError
        If it is something else.
    """
    part, slash, parts = text.partition("/")
    if slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= 1_000_000:
        return int(part), int(parts)
    raise InputError(f"The shard {text!r} cannot be used; allowed: PART/PARTS, such as 3/40, from 1/40 to 40/40.")


def _extend(folder: Path, settings: WorkerSettings) -> tuple[int, str]:
    run = Run(folder)
    try:
        return run.extend(settings.open(run.source)), ""
    except MedClipSamError as error:
        return 0, str(error)
