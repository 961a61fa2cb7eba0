"""The work on one study: retrieve and read, compute, write; the same whoever has it done."""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medclipsam
from medclipsam.base.errors import InputError, MedClipSamError, StorageError, UpstreamError
from medclipsam.base.formats import SEG_SUFFIX
from medclipsam.cohort.source import AnySource, ManifestSource, PacsSource, Study, StudyFile, open_source
from medclipsam.cohort.store import Run
from medclipsam.dicomweb.client import Credentials

if TYPE_CHECKING:
    from medclipsam.cohort.methods import Made
    from medclipsam.imaging import MedicalImage

logger = logging.getLogger(__name__)

OUTPUTS = ("nifti", "seg", "pacs")
# Errors of the operating system for which no study is to blame.
_NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class Task:
    """One attempt at a study.

    Attributes
    ----------
    block, place : int
        The study in the list.
    study : Study
    claim : int
        Number of the claim.
    attempt : int
        Which attempt it is, from 1.
    alone : bool
        Whether the worker does nothing else meanwhile: a worker ended while it worked on this study.
    avoid : frozenset of str
        Workers at which it failed.
    """

    block: int
    place: int
    study: Study
    claim: int
    attempt: int = 1
    alone: bool = False
    avoid: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[int, int]:
        """What tells the study."""
        return self.block, self.place


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Attributes
    ----------
    status : {"done", "failed", "stop"}
        "stop": nothing is wrong with the study; no study can be done, since the disk is full or the server away.
    sentence, log : str
        Why, for people; and all that is known of it.
    seconds : dict
        Seconds of `read`, `compute` and `write`.
    findings, found : int
        Rows, and those with a mask that is not empty.
    size : int
        Bytes of the masks.
    """

    status: str
    sentence: str = ""
    log: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    findings: int = 0
    found: int = 0
    size: int = 0


@dataclass(frozen=True)
class WorkerSettings:
    """How workers work, on which no result depends.

    Attributes
    ----------
    device : str
        Where the models run.
    threads : int
        Threads of the models on a CPU; 0 for the library's choice.
    ahead : int
        Studies that a worker has in hand: while one is computed the others are read or written.
    patience : float
        Seconds for which a study waits for a DICOMweb server that does not answer.
    pacs : mapping
        Options of that server on which no result depends, such as time limits, see `PacsOptions`.
    credentials : Credentials
        For that server.
    """

    device: str = "cpu"
    threads: int = 0
    ahead: int = 3
    patience: float = 600.0
    pacs: Mapping[str, Any] = field(default_factory=dict)
    credentials: Credentials = field(default_factory=Credentials, repr=False)

    def open(self, source: Mapping[str, Any]) -> AnySource:
        """Return a source, which is asked with these settings."""
        merged = {**source, "pacs_options": {**source.get("pacs_options", {}), **self.pacs}}
        return open_source(merged, patience=self.patience, credentials=self.credentials)


class Worker:
    """Does studies; `do` may be called by several threads, of which one computes at a time.

    Parameters
    ----------
    run : Run
    name : str
        What it is called in the table.
    settings : WorkerSettings
    """

    def __init__(self, run: Run, name: str, settings: WorkerSettings) -> None:
        from medclipsam.cohort.methods import load_method

        self._run = run
        self._name = name
        self._outputs = tuple(run.request["outputs"])
        self._modality = run.request.get("modality")
        self._source = settings.open(run.source)
        self._seg_type = run.request["seg_type"]
        fractions = self._seg_type == "FRACTIONAL"
        self._method = load_method(run.request["method"], settings.device, probabilities=fractions)
        if settings.threads and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(settings.threads)
        self._computing = threading.Lock()

    def do(self, task: Task) -> Outcome:
        """Work on a study, and keep its result; never raises for what is wrong with the study."""
        try:
            rows, outcome = self.results(task)
            self._run.add_result(task.block, task.place, {"status": "done", "rows": rows})
            return outcome
        except Exception as error:
            status = "stop" if self._is_stopped_by(error) else "failed"
            return Outcome(status, failure_sentence(error), traceback.format_exc())

    def results(self, task: Task) -> tuple[list[dict[str, Any]], Outcome]:
        """Work on a study, write its masks, and return its rows."""
        clock = _Clock()
        rows: list[dict[str, Any]] = []
        size = 0
        with self._source.fetched(task.study) as files:
            for file in files:
                image, origin = self._read(file, task.study)
                clock.lap("read")
                with self._computing:
                    clock.lap("wait")
                    made = self._method.segment(image, task.study.text)
                    clock.lap("compute")
                written = self._write(made, image, file, task.study)
                size += written.pop("size")
                clock.lap("write")
                shared = {**self._about(task, file, image, origin), **made.about, **written}
                rows += [{**shared, **finding} for finding in made.findings]
                # freed before the next image is read
                del image, made
        seconds = clock.rounded()
        told = {
            "seconds": sum(seconds.values()),
            **{f"{name}_seconds": value for name, value in seconds.items()},
            "finished": time.time(),
        }
        rows = [{**row, **told} for row in rows]
        return rows, Outcome("done", "", "", seconds, len(rows), sum(bool(row.get("found")) for row in rows), size)

    def _read(self, file: StudyFile, study: Study) -> tuple[MedicalImage, dict[str, str]]:
        from medclipsam.imaging import read_image, read_origin

        patient, uid, own = read_origin(file.path)
        # what a DICOM file says counts, whatever a list says
        image = read_image(file.path, modality=None if own else study.modality or self._modality)
        return image, {"patient": study.patient or patient or "", "study_uid": study.study_uid or uid or ""}

    def _about(self, task: Task, file: StudyFile, image: MedicalImage, origin: Mapping[str, str]) -> dict[str, Any]:
        rows, columns = image.plane_shape
        return {
            "study": task.study.study,
            "place": task.place,
            "image": file.image,
            "status": "done",
            **origin,
            "series_uid": task.study.series_uid,
            "modality": image.modality or "",
            "planes": image.n_planes,
            "rows": rows,
            "columns": columns,
            "attempts": task.attempt,
            "worker": self._name,
            "version": medclipsam.__version__,
        }

    def _write(self, made: Made, image: MedicalImage, file: StudyFile, study: Study) -> dict[str, Any]:
        """Write the masks of an image, and return where they are and their size in bytes."""
        label = made.label_map(image)
        written: dict[str, Any] = {"size": 0}
        if "nifti" in self._outputs:
            # NIfTI has one value for each voxel
            path = label.write(self._run.mask_file(file.image, SEG_SUFFIX if label.overlaps else ".nii.gz"))
            written["mask"] = path.relative_to(self._run.folder).as_posix()
            written["size"] += path.stat().st_size
        if "seg" in self._outputs:
            path = self._run.mask_file(file.image, ".dcm")
            self._write_segmentation(made, image, file, path)
            written["seg"] = path.relative_to(self._run.folder).as_posix()
            written["size"] += path.stat().st_size
        if "pacs" in self._outputs:
            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / "seg.dcm"
                header = self._write_segmentation(made, image, file, path)
                self._store(path, header)
                written["seg_uid"] = str(header.SOPInstanceUID)
                written["size"] += path.stat().st_size
        return written

    def _write_segmentation(self, made: Made, image: MedicalImage, file: StudyFile, path: Path) -> Any:
        from medclipsam.cohort.segments import segments_of
        from medclipsam.imaging.dicom_seg import write_segmentation

        segments = segments_of(made, self._run.request["method"])
        there = [each["finding"] for each in made.findings if each["found"]]
        absent = [each["finding"] for each in made.findings if not each["found"]]
        return write_segmentation(
            made.probabilities or made.label_map(image).drawn,
            image,
            segments,
            path,
            kind=self._seg_type,
            series_description=f"medclipsam: {', '.join(there) or 'no ' + ', '.join(absent)}",
            content_description=f"Absent: {', '.join(absent)}" if absent else "",
            # so that a study that is done again stores the same instance again
            identity=f"{self._run.digest} {file.image}",
        )

    def _store(self, path: Path, header: Any) -> None:
        """Store a segmentation on the server and read it back; one that is there already is not stored again."""
        source = self._pacs()
        study, series, instance = (
            str(header[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )

        def store() -> None:
            if not source.pacs.holds(study, series, instance):
                source.pacs.store(path.read_bytes(), study, series, instance)

        source.patiently(store)
        source.patiently(lambda: self._check_stored(source, path, study, series, instance))

    def _check_stored(self, source: PacsSource, path: Path, study: str, series: str, instance: str) -> None:
        from pydicom import dcmread

        folder = path.parent / "stored"
        source.pacs.retrieve(study, series, folder, instance)
        (stored,) = folder.iterdir()
        same = dcmread(stored).PixelData == dcmread(path).PixelData
        stored.unlink()
        folder.rmdir()
        if not same:
            raise UpstreamError(
                f"The DICOMweb server {source.pacs.url} returns another segmentation than was stored on it."
            ).as_permanent()

    def _pacs(self) -> PacsSource:
        source = self._source
        if isinstance(source, ManifestSource) and source.pacs is not None:
            return source.pacs
        if not isinstance(source, PacsSource):
            raise InputError("Masks can be stored in a PACS only where the studies are there.")
        return source

    def _is_stopped_by(self, error: Exception) -> bool:
        """Whether an error would come for every study."""
        seen: BaseException | None = error
        while seen is not None:
            if isinstance(seen, StorageError) or (isinstance(seen, OSError) and _NO_SPACE in str(seen)):
                return True
            seen = seen.__cause__ or seen.__context__
        return isinstance(error, UpstreamError) and not error.permanent and not self._pacs().answers()


def failure_sentence(error: Exception) -> str:
    """Return what an error says, with its type where it is not one of this package."""
    return str(error) if isinstance(error, MedClipSamError) else f"{type(error).__name__}: {error}"


def set_aside_row(task: Task, attempts: int, sentence: str, log: str) -> dict[str, Any]:
    """Return the row of a study that was set aside."""
    return {
        "study": task.study.study,
        "place": task.place,
        "image": task.study.study,
        "status": "failed",
        "finding": "",
        "patient": task.study.patient,
        "study_uid": task.study.study_uid,
        "series_uid": task.study.series_uid,
        "modality": task.study.modality,
        "text": task.study.text,
        "attempts": attempts,
        "version": medclipsam.__version__,
        "finished": time.time(),
        "error": sentence,
        "log": log,
    }


class _Clock:
    """Seconds of each part of the work; waiting for the models is no work."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self._seconds = {"read": 0.0, "compute": 0.0, "write": 0.0, "wait": 0.0}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name] += now - self._at
        self._at = now

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in self._seconds.items() if name != "wait"}


__all__ = ["OUTPUTS", "Outcome", "Task", "Worker", "WorkerSettings", "failure_sentence", "set_aside_row"]
