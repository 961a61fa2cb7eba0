"""DICOMweb for viewers (DICOM PS3.18): a studies folder is answered here, other studies by the server that has them."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
    SegmentationStorage,
)

from medclipsam.base.errors import InputError, MedClipSamError, OptionError
from medclipsam.dicomweb.multipart import IncompleteError, boundary_of, write_parts
from medclipsam.imaging import Window
from medclipsam.imaging.dicom import read_elements
from medclipsam.imaging.dicom_parts import bulk_value, frames, metadata, to_json
from medclipsam.server.api.access import AsAnnotator, AsUser
from medclipsam.server.api.routes.common import App, caller_of, viewer_turns
from medclipsam.server.api.routes.proxy import is_search, pass_on, pass_on_store, receive_body
from medclipsam.server.base.errors import ForbiddenError, UnknownError, told
from medclipsam.server.inference.results import jsonable
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.studies.catalogue import SERIES_TAGS, STUDY_TAGS, Catalogue, Entry, Instance, render
from medclipsam.server.studies.dicomweb import DicomWebStudies
from medclipsam.server.studies.qido import Query

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])

_JSON = "application/dicom+json"
_DICOM = "application/dicom"
_BYTES = "application/octet-stream"
_BLOCK = 256 * 1024
_UID = r"[0-9.]{1,128}"
_STUDY, _SERIES, _INSTANCE = "studies/(?P<study>U)", "/series/(?P<series>U)", "/instances/(?P<instance>U)"
# Media types of compressed frames (PS3.18, 8.7.3.3).
_OF_SYNTAX = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), "image/jpeg"),
    **dict.fromkeys(map(UID, ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")), "image/jls"),
    **dict.fromkeys((UID("1.2.840.10008.1.2.4.90"), JPEG2000), "image/jp2"),
    RLELossless: "image/dicom-rle",
}
# DICOM failure reasons (PS3.4, B.2.3): no such SOP class is taken; the data set is not understood; anything else.
_NOT_SUPPORTED, _NOT_UNDERSTOOD, _FAILED = 0x0122, 0xC000, 0x0110


@router.get("/{path:path}", summary="Search and retrieve studies by DICOMweb", response_model=None)
async def retrieve(request: Request, app: App, user: AsUser, path: str) -> Response:
    """Answer searches (QIDO-RS) and retrievals (WADO-RS) of studies, series, instances, frames and pictures.

    Studies in a folder are answered by this server, those of a DICOMweb server are passed on.
    """
    store = app.datastore()
    path = path.strip("/")
    if isinstance(store, DicomWebStudies):
        operation = "qido" if is_search(path) else "wado"
        return await pass_on(request, store.pacs, operation, path, _base(request))
    return await run_in_threadpool(_answer, request, app, user.username, path)


@router.post("/{path:path}", summary="Store DICOM segmentations as labels", response_model=None)
async def store(request: Request, app: App, user: AsAnnotator, path: str) -> Response:
    """Save segmentations (DICOM SEG) of images in the studies folder as their final labels (STOW-RS).

    Studies of a DICOMweb server: what is sent is passed on.
    """
    path = path.strip("/")
    if isinstance(app.datastore(), DicomWebStudies):
        return await pass_on_store(request, app, user.username, path)
    if not re.fullmatch(f"studies(/{_UID})?", path):
        raise ForbiddenError(f"{path[:80]!r} is no DICOMweb store; allowed: studies, or studies and a UID.")
    with tempfile.TemporaryFile() as body:
        await receive_body(request, body)
        return await run_in_threadpool(_store_labels, request, app, user.username, body)


def _base(request: Request) -> str:
    url = request.url
    return f"{url.scheme}://{url.netloc}{url.path.partition('/dicom-web')[0]}/dicom-web"


def _answer(request: Request, app: MedClipSamApp, user: str, path: str) -> Response:
    catalogue = catalogue_of(app)
    for route, handle in _ROUTES:
        found = route.fullmatch(path)
        if found is not None:
            return handle(_Asked(request, catalogue, user, found.groupdict()))
    raise UnknownError(
        f"{path[:80]!r} is not a resource of DICOMweb; allowed: studies, series, instances, their parts."
    )


def catalogue_of(app: MedClipSamApp) -> Catalogue:
    """Return the studies folder as DICOM.

    Raises
    ------
    UnknownError
        If the studies are not in a folder.
    """
    catalogue = app.viewed.catalogue
    if catalogue is None:
        raise UnknownError("The studies are not in a folder; the server that has them is asked at /dicom-web.")
    return catalogue


@dataclass(frozen=True)
class _Asked:
    """A request for a resource: where from, and the parts of its path."""

    request: Request
    catalogue: Catalogue
    user: str
    names: dict[str, str]

    @property
    def entries(self) -> list[Entry]:
        """The images of the study or series that is named; all where none is."""
        study, series = self.names.get("study"), self.names.get("series")
        if study and series:
            return self.catalogue.series(study, series)
        found = [entry for entry in self.catalogue.entries() if study in (None, entry.study)]
        if study and not found:
            raise UnknownError(f"Study {study!r} is not among the studies.")
        return found

    @property
    def instances(self) -> list[Instance]:
        """The instances of what is named."""
        name = self.names.get("instance")
        if name:
            return [self.catalogue.instance(self.names["study"], self.names["series"], name)]
        return self.catalogue.instances(self.entries)

    @property
    def query(self) -> Query:
        return Query.from_params(self.request.query_params.multi_items())

    @property
    def base(self) -> str:
        """The address of this service, as the client has it."""
        return _base(self.request)

    def address(self, instance: Instance) -> str:
        """The address of an instance."""
        header = instance.header
        series = f"studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
        return f"{self.base}/{series}/instances/{instance.uid}"

    def accepts(self, *types: str) -> str:
        """Return the first of some media types that the client accepts; the first where it accepts anything.

        Raises
        ------
        NotAcceptableError
            If it accepts none of them.
        """
        header = self.request.query_params.get("accept") or self.request.headers.get("accept") or "*/*"
        wanted = [part.split(";")[0].strip().lower() for part in header.split(",")]
        for kind in types:
            if any(each in ("*/*", kind, f"{kind.split('/')[0]}/*") for each in wanted):
                return kind
        # clients name one type or another for what has one form only
        return types[0]


def _search_studies(asked: _Asked) -> Response:
    query, catalogue = asked.query, asked.catalogue
    found = asked.entries
    catalogue.wait()
    studies: dict[str, list[Entry]] = defaultdict(list)
    for entry in found:
        studies[entry.study].append(entry)
    return _found(query, (_of_study(asked, entries) for entries in studies.values()))


def _search_series(asked: _Asked) -> Response:
    query = asked.query
    found = asked.entries
    asked.catalogue.wait()
    series: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in found:
        series[entry.study, entry.series].append(entry)
    return _found(query, (_of_series(asked, entries) for entries in series.values()))


def _search_instances(asked: _Asked) -> Response:
    query = asked.query
    found = []
    for entry in asked.entries:
        series = _of_series(asked, [entry])
        for instance in asked.catalogue.instances([entry]):
            data = Dataset()
            data.update(series)
            data.update(instance.header)
            data.RetrieveURL = asked.address(instance)
            found.append(data)
    unique = {str(data.SOPInstanceUID): data for data in reversed(found)}
    return _found(query, list(reversed(unique.values())))


def _of_study(asked: _Asked, entries: Sequence[Entry]) -> Dataset:
    data = _chosen(entries[0].header, STUDY_TAGS)
    modalities = sorted({modality for entry in entries if (modality := _modality(asked.catalogue, entry))})
    data.ModalitiesInStudy = modalities or None
    data.NumberOfStudyRelatedSeries = len({entry.series for entry in entries})
    count = _count(asked.catalogue, entries)
    if count is not None:
        data.NumberOfStudyRelatedInstances = count
    data.InstanceAvailability = "ONLINE"
    data.RetrieveURL = f"{asked.base}/studies/{entries[0].study}"
    return data


def _of_series(asked: _Asked, entries: Sequence[Entry]) -> Dataset:
    data = _chosen(entries[0].header, (*STUDY_TAGS, *SERIES_TAGS))
    data.Modality = _modality(asked.catalogue, entries[0]) or "OT"
    count = _count(asked.catalogue, entries)
    if count is not None:
        data.NumberOfSeriesRelatedInstances = count
    data.RetrieveURL = f"{asked.base}/studies/{entries[0].study}/series/{entries[0].series}"
    return data


def _chosen(header: Dataset, keywords: Iterable[str]) -> Dataset:
    data = Dataset()
    for keyword in keywords:
        if keyword in header:
            data[keyword] = header[keyword]
    return data


def _modality(catalogue: Catalogue, entry: Entry) -> str | None:
    if not entry.made:
        return str(entry.header.get("Modality") or "") or None
    known = catalogue.told(entry)
    return None if known is None else known.get("modality")


def _count(catalogue: Catalogue, entries: Sequence[Entry]) -> int | None:
    """Return the number of instances; None where an image has not been looked at yet."""
    files = {file for entry in entries if not entry.made for file in entry.found.files}
    made = [(catalogue.told(entry) or {}).get("instances") for entry in entries if entry.made]
    return None if None in made else len(files) + sum(filter(None, made))


def _found(query: Query, found: Iterable[Dataset]) -> Response:
    return _json([to_json(data) for data in query.select(found)])


def _json(content: Any, status: int = 200) -> Response:
    return JSONResponse(jsonable(content), status, {"Cache-Control": "private, no-cache"}, media_type=_JSON)


def _metadata(asked: _Asked) -> Response:
    instances = asked.instances
    tag = _tag(instances, "metadata")
    if _is_known(asked, tag):
        return _unchanged(tag)
    answer = _json([metadata(each.path, asked.address(each)) for each in instances])
    answer.headers["ETag"] = tag
    return answer


def _files(asked: _Asked) -> Response:
    instances = asked.instances
    if asked.names.get("instance") and asked.accepts("multipart/related", _DICOM) == _DICOM:
        headers = {"Content-Length": str(instances[0].path.stat().st_size)}
        return StreamingResponse(_blocks(instances[0].path), media_type=_DICOM, headers=headers)
    return _multipart(_DICOM, ((_DICOM, _blocks(each.path)) for each in instances))


def _frames(asked: _Asked) -> Response:
    (instance,) = asked.instances
    numbers = [int(number) for number in asked.names["frames"].split(",")]
    tag = _tag([instance], f"frames {numbers} {asked.request.headers.get('accept')}")
    if _is_known(asked, tag):
        return _unchanged(tag)
    answer = _pixels(asked, instance, numbers)
    answer.headers["ETag"] = tag
    return answer


def _pixels(asked: _Asked, instance: Instance, numbers: Sequence[int]) -> Response:
    accept = asked.request.headers.get("accept", "").lower()
    found = frames(instance.path, numbers)
    kind = _OF_SYNTAX.get(UID(found.syntax), _BYTES)
    # who names no transfer syntax but asks for plain bytes must be able to read them (PS3.18, 8.7.3.5.2)
    compressed = UID(found.syntax).is_encapsulated
    named = "transfer-syntax" in accept or kind in accept or "*/*" in accept or not accept
    if compressed and not ((named and kind != _BYTES) or found.syntax in accept or "transfer-syntax=*" in accept):
        found, kind = frames(instance.path, numbers, plain=True), _BYTES
    syntax = f"{kind}; transfer-syntax={found.syntax}"
    if asked.accepts("multipart/related", kind) == kind and len(found.content) == 1 and "multipart" not in accept:
        return Response(found.content[0], media_type=syntax)
    return _multipart(kind, ((syntax, iter([content])) for content in found.content))


def _bulk(asked: _Asked) -> Response:
    (instance,) = asked.instances
    name = asked.names["bulk"]
    if name.upper() == "7FE00010":
        return _pixels(asked, instance, range(1, instance.n_frames + 1))
    if not re.fullmatch(r"[0-9]{1,6}", name):
        raise UnknownError(f"The instance has no bulk data {name[:40]!r}.")
    try:
        content = bulk_value(instance.path, int(name))
    except InputError as error:
        raise UnknownError(str(error)) from None
    return _multipart(_BYTES, [(_BYTES, iter([content]))])


def _rendered(asked: _Asked) -> Response:
    instances = asked.instances
    instance = instances[len(instances) // 2]
    frame = int(asked.names.get("frames") or (instance.n_frames // 2 + 1))
    if not 1 <= frame <= instance.n_frames:
        raise UnknownError(f"The instance has no frame {frame}; allowed: 1 to {instance.n_frames}.")
    kind = asked.accepts("image/jpeg", "image/png")
    params = asked.request.query_params
    with viewer_turns.of(asked.user):
        content = render(
            instance.path,
            frame,
            kind="PNG" if kind == "image/png" else "JPEG",
            window=_window(params.get("window")),
            size=_viewport(params.get("viewport")),
            quality=_quality(params.get("quality")),
        )
    return Response(content, media_type=kind, headers={"Cache-Control": "private, no-cache"})


def _window(given: str | None) -> Window | None:
    if given is None:
        return None
    try:
        centre, width = map(float, given.split(",")[:2])
    except ValueError:
        raise OptionError("window", given[:40], "centre,width or centre,width,linear, such as 40,400,linear") from None
    return Window(centre, width)


def _viewport(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    sizes = re.fullmatch(r"([1-9][0-9]{0,3}),([1-9][0-9]{0,3})(,.*)?", given)
    if sizes is None:
        raise OptionError("viewport", given[:40], "columns,rows, each from 1 to 9999")
    return int(sizes[1]), int(sizes[2])


def _quality(given: str | None) -> int:
    if given is None:
        return 90
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= 100:
        raise OptionError("quality", given[:40], "a whole number from 1 to 100")
    return int(given)


def _thumbnail(asked: _Asked) -> Response:
    entries = asked.entries
    tag = f'"{hashlib.sha256(entries[0].stamp.encode()).hexdigest()[:24]}"'
    if asked.names.get("instance"):
        return _rendered(asked)
    if _is_known(asked, tag):
        return _unchanged(tag)
    with viewer_turns.of(asked.user):
        content = asked.catalogue.thumbnail(entries)
    return Response(content, media_type="image/jpeg", headers={"ETag": tag, "Cache-Control": "private, no-cache"})


def _routes() -> Iterator[tuple[re.Pattern[str], Callable[[_Asked], Response]]]:
    series, instance = _STUDY + _SERIES, _STUDY + _SERIES + _INSTANCE
    some = f"{_STUDY}(?:{_SERIES}(?:{_INSTANCE})?)?"
    frame = "(?P<frames>[0-9]{1,7})"
    for pattern, handle in (
        ("studies", _search_studies),
        (f"series|{_STUDY}/series", _search_series),
        (f"instances|{_STUDY}/instances", _search_instances),
        (f"{series}/instances", _search_instances),
        (f"{some}/metadata", _metadata),
        (f"{some}/thumbnail", _thumbnail),
        (f"{instance}/frames/{frame}/thumbnail", _rendered),
        (f"{instance}/frames/{frame}/rendered", _rendered),
        (f"{some}/rendered", _rendered),
        (f"{instance}/frames/(?P<frames>[0-9]{{1,7}}(?:,[0-9]{{1,7}}){{0,999}})", _frames),
        (f"{instance}/bulkdata/(?P<bulk>[^/]+)", _bulk),
        (some, _files),
    ):
        yield re.compile(pattern.replace("U)", f"{_UID})")), handle


_ROUTES = list(_routes())


def _multipart(kind: str, parts: Iterable[tuple[str, Iterator[bytes]]]) -> StreamingResponse:
    """Return an answer of several parts, which are read while it is sent."""
    boundary = secrets.token_hex(16)

    def content() -> Iterator[bytes]:
        for each, blocks in parts:
            yield f"--{boundary}\r\nContent-Type: {each}\r\n\r\n".encode()
            yield from blocks
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    return StreamingResponse(
        content(),
        media_type=f'multipart/related; type="{kind}"; boundary={boundary}',
        headers={"Cache-Control": "private, no-cache"},
    )


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _tag(instances: Sequence[Instance], what: str) -> str:
    """Return an ETag that changes with the files."""
    digest = hashlib.sha256(what.encode())
    for each in instances:
        state = os.stat(each.path)
        digest.update(f"{each.path}/{state.st_mtime_ns}/{state.st_size}".encode("utf-8", "surrogateescape"))
    return f'"{digest.hexdigest()[:24]}"'


def _is_known(asked: _Asked, tag: str) -> bool:
    return tag in [each.strip() for each in asked.request.headers.get("if-none-match", "").split(",")]


def _unchanged(tag: str) -> Response:
    return Response(status_code=304, headers={"ETag": tag, "Cache-Control": "private, no-cache"})


def _store_labels(request: Request, app: MedClipSamApp, user: str, body: IO[bytes]) -> Response:
    kind = request.headers.get("content-type", "")
    boundary = boundary_of(kind)
    if boundary is None or not kind.lower().startswith("multipart/related"):
        raise InputError(
            f"The body of the request is of the type {kind[:60]!r}; allowed: multipart/related with parts of the type "
            f"application/dicom."
        )
    caller, base = caller_of(request, user), _Asked(request, catalogue_of(app), user, {}).base
    stored, failed = [], []
    body.seek(0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = write_parts(iter(partial(body.read, _BLOCK), b""), boundary, Path(folder))
        except IncompleteError as error:
            raise InputError(f"The body of the request is incomplete: {error}.") from None
        for file in files:
            item = _named(file)
            try:
                with viewer_turns.of(user):
                    header = app.store_segmentation(file, caller)
                item.RetrieveURL = f"{base}/studies/{header.StudyInstanceUID}"
                stored.append(item)
            except MedClipSamError as raised:
                problem = told(raised)
                item.FailureReason = _NOT_SUPPORTED
                if item.ReferencedSOPClassUID == SegmentationStorage:
                    item.FailureReason = _NOT_UNDERSTOOD if isinstance(problem, InputError) else _FAILED
                failed.append((item, str(problem)))
    if not stored and not failed:
        raise InputError("The request holds no DICOM instance; allowed: parts of the type application/dicom.")
    answer = Dataset()
    if stored:
        answer.ReferencedSOPSequence = stored
    if failed:
        answer.FailedSOPSequence = [item for item, _ in failed]
    content = to_json(answer)
    status = 200 if not failed else 202 if stored else 409
    return _json({**content, **({"detail": " ".join(sentence for _, sentence in failed)} if failed else {})}, status)


def _named(file: Path) -> Dataset:
    """Return SOP class and UID of an instance that was sent, empty where it cannot be read."""
    item = Dataset()
    try:
        header = read_elements(file, ["SOPClassUID", "SOPInstanceUID"])
    except Exception:  # whoever reads the file says what is wrong with it
        header = Dataset()
    item.ReferencedSOPClassUID = str(header.get("SOPClassUID") or "")
    item.ReferencedSOPInstanceUID = str(header.get("SOPInstanceUID") or "")
    return item
