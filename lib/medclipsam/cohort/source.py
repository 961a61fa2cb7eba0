"""Where the studies of a cohort are: a folder, a DICOMweb server, or a list of them."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from medclipsam.base.errors import InputError, UpstreamBusyError, UpstreamError
from medclipsam.dicomweb.client import UID, Credentials, Pacs
from medclipsam.dicomweb.options import PacsOptions

if TYPE_CHECKING:
    from medclipsam.studies.scan import Found

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Modalities whose series may hold several pictures, each of which is an image.
_PICTURES = frozenset({"CR", "DX", "MG", "US"})
_FIELDS = ("NumberOfSeriesRelatedInstances", "PatientID")
# Columns of a list of studies.
MANIFEST_COLUMNS = ("image", "study_uid", "series_uid", "id", "text", "modality", "patient")
# Longest pause between two attempts to reach a server.
_LONGEST_PAUSE = 15.0
# Failures of a request to a server that answers others, after which it is given up.
_OWN_FAILURES = 3


@dataclass(frozen=True)
class Study:
    """What is worked on at once: an image of a folder, or a series.

    Attributes
    ----------
    study : str
        Its id: that of the image in a studies folder, or the SeriesInstanceUID.
    where : str
        File or folder, from the source's folder on; empty for a series of a DICOMweb server.
    files : tuple of str
        Files of a series that shares its folder with other images, from the source's folder on.
    volume : str
        Key of the volume, where the file holds several.
    stamp : str
        Changes with the content: number, size and time of files, or the number of instances.
    study_uid, series_uid, patient, modality : str
        As far as the source tells them.
    text : str
        What is looked for in this study; empty for the text of the run.
    """

    study: str
    where: str = ""
    files: tuple[str, ...] = ()
    volume: str = ""
    stamp: str = ""
    study_uid: str = ""
    series_uid: str = ""
    patient: str = ""
    modality: str = ""
    text: str = ""

    @property
    def digest(self) -> int:
        """A number of 64 bits for the study and its content."""
        told = f"{self.study}\n{self.where}\n{self.stamp}\n{self.text}"
        return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "big")

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class StudyFile:
    """An image of a study, as it is read.

    Attributes
    ----------
    image : str
        Its id, the one that a server gives it.
    path : Path
        What `read_image` reads.
    """

    image: str
    path: Path


class Source(Protocol):
    """Where studies come from."""

    def studies(self) -> Iterator[Study]:
        """Yield the studies that there are now, in an order that does not change by itself."""

    @property
    def faults(self) -> Mapping[str, str]:
        """What could not be listed, and why; known after `studies`."""

    @contextmanager
    def fetched(self, study: Study) -> Iterator[list[StudyFile]]:
        """Give the images of a study, which can be read while the block runs."""


@dataclass
class FolderSource:
    """The images of a folder, see `medclipsam.studies.find`.

    Parameters
    ----------
    folder : Path
    """

    folder: Path
    faults: dict[str, str] = field(default_factory=dict)

    def studies(self) -> Iterator[Study]:
        """Yield the images by their ids."""
        from medclipsam.studies.find import look_into

        listing = look_into(self.folder, only_whole=True)
        self.faults = dict(listing.faults)
        for image, found in sorted(listing.images.items()):
            try:
                states = [file.stat() for file in found.files]
            except OSError as error:  # it went away
                self.faults[str(found.path)] = f"it cannot be opened ({error.strerror or error})"
                continue
            names = () if found.alone else tuple(self._inside(file) for file in found.files)
            times = max(state.st_mtime_ns for state in states)
            yield Study(
                image,
                self._inside(found.path),
                names,
                found.volume,
                stamp=f"{len(states)}-{sum(state.st_size for state in states)}-{times}",
            )

    @contextmanager
    def fetched(self, study: Study) -> Iterator[list[StudyFile]]:
        """Give the image where it is, or links to its files."""
        from medclipsam.studies.scan import Found

        if not study.files:
            yield [StudyFile(study.study, self.folder / study.where)]
            return
        with tempfile.TemporaryDirectory(prefix="series-") as place:
            files = tuple(self.folder / name for name in study.files)
            found = Found(study.study, self.folder / study.where, files, "", alone=False, volume=study.volume)
            yield [StudyFile(study.study, _linked(found, Path(place)))]

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


class PacsSource:
    """The series of a DICOMweb server that a query finds.

    Parameters
    ----------
    url : str
        Root of the service, without user name and password.
    options : PacsOptions
        Modalities, further conditions, time limits.
    credentials : Credentials
    patience : float
        Seconds for which a study waits for a server that does not answer.
    clock, sleep : callable
        Time.
    """

    def __init__(
        self,
        url: str,
        options: PacsOptions,
        credentials: Credentials | None = None,
        *,
        patience: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.pacs = Pacs(url, options, credentials)
        self.faults: dict[str, str] = {}
        self._patience = patience
        self._clock = clock
        self._sleep = sleep

    def studies(self) -> Iterator[Study]:
        """Yield the series, a page of the server's answers after the other."""
        self.faults = {}
        # several modalities in one search are no part of the standard
        for modality in self.pacs.options.modalities:
            conditions = {**dict(self.pacs.options.filters), "Modality": modality}
            for page in self.pacs.search_pages("series", conditions, _FIELDS):
                for header in page:
                    study, series = (str(header.get(f"{level}InstanceUID", "")) for level in ("Study", "Series"))
                    if not all(UID.fullmatch(each) and len(each) <= 64 for each in (study, series)):
                        self.faults[f"series {series!r:.70}"] = "its UIDs are not valid"
                        continue
                    count = str(header.get("NumberOfSeriesRelatedInstances", "") or "")
                    patient = str(header.get("PatientID", "") or "")
                    yield Study(series, "", (), "", count, study, series, patient, modality)

    @contextmanager
    def fetched(self, study: Study) -> Iterator[list[StudyFile]]:
        """Retrieve the series into a temporary folder, which is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="series-") as place:
            folder = Path(place) / study.series_uid
            self.patiently(lambda: self._retrieve(study, folder))
            yield images_in(folder, study, Path(place) / "images")

    def patiently(self, attempt: Callable[[], T]) -> T:
        """Call until it succeeds, while errors of the server may pass, and as long as patience lasts.

        Raises
        ------
        UpstreamError
            The last one.
        """
        end, pause, own = self._clock() + self._patience, 1.0, 0
        while True:
            try:
                return attempt()
            except UpstreamError as error:
                wait = float(error.retry_after) if isinstance(error, UpstreamBusyError) else pause
                # where the server answers other requests, something is wrong with this one
                own += self.answers()
                if error.permanent or own >= _OWN_FAILURES or self._clock() + wait > end:
                    raise
                logger.warning("The DICOMweb server fails (%s); trying again in %g seconds", error, wait)
            self._sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def answers(self) -> bool:
        """Whether the server answers a small search now."""
        try:
            with self.pacs.send("GET", self.pacs.address("qido", "studies"), params={"limit": 1}) as answer:
                return answer.ok
        except UpstreamError:
            return False

    def _retrieve(self, study: Study, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        expected = self.pacs.instances(study.study_uid, study.series_uid)
        self.pacs.retrieve(study.study_uid, study.series_uid, folder, expected=expected)


class ManifestSource:
    """The studies of a list, a CSV or Parquet file that is read a part after the other.

    Parameters
    ----------
    file : Path
        A row for each study, with the columns `image` (a file or folder, from the list's folder on) or `series_uid` and
        `study_uid`; and, as wanted, `id`, `text`, `modality` and `patient`. Others are passed over.
    pacs : PacsSource, optional
        The server that series are retrieved from.
    """

    def __init__(self, file: Path, pacs: PacsSource | None = None) -> None:
        self.file = file
        self.pacs = pacs
        self.faults: dict[str, str] = {}

    def studies(self) -> Iterator[Study]:
        """Yield the rows in their order.

        Raises
        ------
        InputError
            If the file cannot be read, a row names no study, or two rows have one id.
        """
        self.faults = {}
        seen: set[int] = set()
        for number, row in enumerate(self._rows(), start=1):
            told = {name: str(row.get(name) or "").strip() for name in MANIFEST_COLUMNS}
            study = self._study(told, number)
            key = hash(study.study)
            if key in seen:
                raise InputError(f"Row {number} of {self.file} has the id {study.study!r}, which another row has too.")
            seen.add(key)
            yield study

    @contextmanager
    def fetched(self, study: Study) -> Iterator[list[StudyFile]]:
        """Give the images of a row."""
        if not study.where:
            assert self.pacs is not None
            with self.pacs.fetched(study) as images:
                yield images
            return
        with tempfile.TemporaryDirectory(prefix="series-") as place:
            yield images_in(self.file.parent / study.where, study, Path(place))

    def _study(self, told: Mapping[str, str], number: int) -> Study:
        about: dict[str, Any] = {
            name: told[name] for name in ("patient", "modality", "text", "study_uid", "series_uid")
        }
        if told["image"]:
            path = self.file.parent / told["image"]
            try:
                state = path.stat()
                stamp = f"{state.st_size}-{state.st_mtime_ns}"
            except OSError:
                stamp = ""  # who reads it says so
            return Study(
                told["id"] or told["series_uid"] or _name_of(told["image"]), told["image"], stamp=stamp, **about
            )
        if not told["series_uid"] or not told["study_uid"]:
            raise InputError(
                f"Row {number} of {self.file} names no study; allowed: the column image, or series_uid with study_uid."
            )
        if self.pacs is None:
            raise InputError(f"Row {number} of {self.file} names a series; give the DICOMweb server with --pacs URL.")
        for name in ("study_uid", "series_uid"):
            if not UID.fullmatch(told[name]) or len(told[name]) > 64:
                raise InputError(f"Row {number} of {self.file} has the {name} {told[name]!r:.70}, which is not a UID.")
        return Study(told["id"] or told["series_uid"], **about)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        wanted = set(MANIFEST_COLUMNS)
        try:
            if self.file.suffix.lower() == ".parquet":
                with pa.parquet.ParquetFile(self.file) as file:
                    names = [name for name in file.schema_arrow.names if name in wanted]
                    self._check_columns(file.schema_arrow.names)
                    for batch in file.iter_batches(columns=names):
                        yield from batch.to_pylist()
                return
            as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(MANIFEST_COLUMNS, pa.string()))
            with pa.csv.open_csv(self.file, convert_options=as_text) as reader:
                self._check_columns(reader.schema.names)
                for batch in reader:
                    kept = [name for name in batch.schema.names if name in wanted]
                    yield from batch.select(kept).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.file} cannot be read as a list of studies: {error}.") from error

    def _check_columns(self, names: list[str]) -> None:
        if "image" not in names and not {"study_uid", "series_uid"} <= set(names):
            raise InputError(
                f"{self.file} has the columns {', '.join(names)}; needed: image, or series_uid and study_uid."
            )


AnySource = FolderSource | PacsSource | ManifestSource


def images_in(path: Path, study: Study, place: Path) -> list[StudyFile]:
    """Return the images of a file or of a folder with one series, by the ids that a server gives them.

    Parameters
    ----------
    path : Path
        The file or folder.
    study : Study
    place : Path
        Folder for links to the files of images that share theirs with others.

    Raises
    ------
    InputError
        If there is none.
    """
    from medclipsam.imaging.dicom import looks_like_dicom, read_frame_volumes
    from medclipsam.studies.find import look_into
    from medclipsam.studies.scan import Found

    if not path.is_dir():
        volumes = read_frame_volumes(path) if path.is_file() and looks_like_dicom(path) else []
        names = [f"{study.study}-{volume.key}" for volume in volumes]
        return [
            StudyFile(name, _linked(Found(name, path, (path.absolute(),), "", False, volume=volume.key), place))
            for name, volume in zip(names, volumes, strict=True)
        ] or [StudyFile(study.study, path)]
    images = look_into(path).images
    if not images:
        raise InputError(f"The folder {path} holds no image.")
    pictures = study.modality in _PICTURES and len(list(path.iterdir())) > 1
    if len(images) == 1 and not pictures:
        return [StudyFile(study.study, _linked(found, place)) for found in images.values()]
    files = []
    for image, found in sorted(images.items()):
        own = found.instance if found.path.is_file() and not found.volume else ""
        files.append(
            StudyFile(own or f"{study.study}-{image.removeprefix(f'{study.series_uid}-')}", _linked(found, place))
        )
    return files


def _linked(found: Found, place: Path) -> Path:
    """Return what an image is read from: its file, its folder, or a folder of links to its files."""
    from medclipsam.studies.links import link_files

    if found.alone:
        return found.path
    folder = place / found.image_id
    folder.mkdir(parents=True)
    link_files([file.absolute() for file in found.files], folder, found.volume)
    return folder


def open_source(
    about: Mapping[str, Any], *, patience: float = 600.0, credentials: Credentials | None = None
) -> AnySource:
    """Return the source that a run's file describes, see `describe_source`."""
    pacs = None
    if about.get("pacs"):
        options = PacsOptions.from_mapping(about.get("pacs_options", {}))
        pacs = PacsSource(about["pacs"], options, credentials, patience=patience)
    if about["kind"] == "folder":
        return FolderSource(Path(about["path"]))
    if about["kind"] == "manifest":
        return ManifestSource(Path(about["path"]), pacs)
    assert pacs is not None
    return pacs


def _name_of(image: str) -> str:
    """Return the id of a file of a list: its path without the ending, as a name."""
    from medclipsam.base.formats import stem_of

    path = Path(image)
    parts = [*path.parent.parts, stem_of(path.name)] if path.parent != Path() else [stem_of(path.name)]
    return "_".join(part for part in parts if part not in ("/", "..", ".", "")) or image
