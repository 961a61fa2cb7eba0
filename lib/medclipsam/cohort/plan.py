"""What a run would take: counts, and estimates of time, disk and memory from a few studies that are really done."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from medclipsam.cohort.command import Machine, list_studies
from medclipsam.cohort.source import Study
from medclipsam.cohort.store import BLOCK, Run
from medclipsam.cohort.work import Task, Worker, failure_sentence

# Bytes of a row of the table and of an entry of the list, compressed; measured by benchmarks/cohort.py.
_ROW_BYTES, _STUDY_BYTES = 320, 25


@dataclass(frozen=True)
class Plan:
    """Estimates for a run.

    Attributes
    ----------
    studies, not_listed : int
        Studies, and files that cannot be listed.
    sampled, failed : int
        Studies that were done for the estimate, and those of them that failed.
    seconds : float
        Mean seconds of a study on a worker, where reading and writing overlap with computing.
    spread : float
        Standard error of that mean.
    workers : int
        For which the time is estimated.
    disk : float
        Bytes of masks and table.
    memory : float
        Bytes of a worker.
    sentences : tuple of str
        What went wrong in the sample.
    """

    studies: int
    not_listed: int
    sampled: int
    failed: int
    seconds: float
    spread: float
    workers: int
    disk: float
    memory: float
    sentences: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.sampled or self.sampled == self.failed:
            told = "none of the sample could be done" if self.failed else "there is nothing to do"
            return "\n".join([f"{self.studies} studies; {told}.", *self.sentences])
        hours = self.studies * self.seconds / self.workers / 3600
        spread = 1.96 * self.studies * self.spread / self.workers / 3600
        lines = [
            f"{self.studies} studies; {self.not_listed} files cannot be listed.",
            f"Sample of {self.sampled} studies: {self.seconds:.2f} s each on one worker, {self.failed} failed.",
            f"With {self.workers} worker(s): {_duration(hours)}, {_duration(max(hours - spread, 0.0))} to "
            f"{_duration(hours + spread)} by the spread of the sample.",
            f"Disk: {self.disk / 1e9:.2f} GB of masks and table. Memory: {self.memory / 1e9:.1f} GB a worker.",
        ]
        return "\n".join([*lines, *self.sentences])


def make_plan(run: Run, machine: Machine, *, sample: int = 5, workers: int | None = None) -> Plan:
    """List the studies, do a few of them in this process, and estimate the rest; nothing of the sample is kept.

    Parameters
    ----------
    run : Run
        In a temporary folder or its own; only the list is written.
    machine : Machine
    sample : int
        Studies that are done, spread evenly over the list.
    workers : int, optional
        For which the time is estimated; those of the options by default, else one.
    """
    list_studies(run, machine)
    listed = run.listed()
    total, faults = int(listed["studies"]), len(listed["faults"])
    with tempfile.TemporaryDirectory(prefix="cohort-plan-") as place:
        trial = Run.create(Path(place), run.request, run.source)
        numbers = sorted({round(x) for x in np.linspace(0, total - 1, min(sample, total))}) if total else []
        worker = Worker(trial, "plan", machine.settings(machine.own_device())) if numbers else None
        times, sizes, rows, sentences = [], [], [], []
        for number in numbers:
            block, index = divmod(number, BLOCK)
            study = _study_at(run, block, index)
            try:
                assert worker is not None
                _, outcome = worker.results(Task(block, index, study, 1))
            except Exception as error:  # whatever is wrong with a study, the plan is for all of them
                sentences.append(f"{study.study}: {failure_sentence(error)}")
                continue
            seconds = outcome.seconds
            overlapped = max(seconds["compute"], sum(seconds.values()) / machine.options.ahead)
            times.append(overlapped)
            sizes.append(outcome.size)
            rows.append(outcome.findings)
    mean = float(np.mean(times)) if times else 0.0
    spread = float(np.std(times, ddof=1) / math.sqrt(len(times))) if len(times) > 1 else mean
    bytes_each = (np.mean(sizes) + _ROW_BYTES * np.mean(rows) if times else 0.0) + _STUDY_BYTES
    return Plan(
        studies=total,
        not_listed=faults,
        sampled=len(numbers),
        failed=len(sentences),
        seconds=mean,
        spread=spread,
        workers=workers or machine.options.workers or 1,
        disk=float(total * bytes_each),
        memory=float(psutil.Process().memory_info().rss),
        sentences=tuple(sentences),
    )


def _study_at(run: Run, block: int, index: int) -> Study:
    blocks = int(run.listed()["blocks"])
    # a list that was added to has blocks that are not full
    while block < blocks:
        studies = run.studies(block)
        if index < len(studies):
            return studies[index]
        block, index = block + 1, index - len(studies)
    return run.studies(blocks - 1)[-1]


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
