"""Speaking with a DICOMweb server: searches, retrievals and stores, with time limits, retries and credentials.

Credentials go to the server that they were given for and nowhere else: redirects are not followed, and neither proxies
nor `.netrc` files of the environment are looked at. Certificates are checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import random
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import pydicom
import requests
from pydicom.dataelem import empty_value_for_VR

from medclipsam.base.errors import (
    OptionError,
    UnknownError,
    UpstreamBusyError,
    UpstreamContentError,
    UpstreamError,
    UpstreamTimeoutError,
)
from medclipsam.dicomweb.addresses import user_of, without_user
from medclipsam.dicomweb.multipart import IncompleteError, boundary_of, write_parts
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.dicomweb.transport import LEAST_RATE, TimedAdapter, TooMuchError, TotalTimeout, timed_chunks
from medclipsam.imaging.dicom import read_elements
from medclipsam.imaging.whole import is_whole

logger = logging.getLogger(__name__)

UID = re.compile(r"[0-9]+(\.[0-9]+)*")

_PAGE = 1000
# Bytes of an answer that is kept and parsed in memory.
_MAX_TEXT = 256 * 2**20
# Longest that this server waits by itself where the other one names a time; further ones are told to the client.
_MAX_WAIT = 10.0
_MAX_RETRY_AFTER = 3600.0
# Answers that may be other ones in a moment.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True)
class Credentials:
    """Who this server is for the DICOMweb server: a user name and password, a bearer token, or nobody."""

    user: str = ""
    password: str = field(default="", repr=False)
    token_file: str | None = None
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(
        cls, token_file: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> Credentials:
        """Return what the environment holds: MONAI Label's variables, or MEDCLIPSAM_PACS_TOKEN.

        Raises
        ------
        OptionError
            If both a user and a token are given.
        """
        names = ("MONAI_LABEL_DICOMWEB", "MONAI_LABEL_DATASTORE")
        user = next((value for name in names if (value := environment.get(f"{name}_USERNAME"))), "")
        password = next((value for name in names if (value := environment.get(f"{name}_PASSWORD"))), "")
        token = environment.get("MEDCLIPSAM_PACS_TOKEN", "").strip()
        if user and (token or token_file):
            raise OptionError("pacs_token_file", token_file or "MEDCLIPSAM_PACS_TOKEN", "a token or a user, not both")
        return cls(user, password, token_file, token)

    def header(self) -> str | None:
        """Return the Authorization header.

        Raises
        ------
        UpstreamError
            If the token's file cannot be read.
        """
        token = self.token
        if self.token_file:
            try:
                token = Path(self.token_file).read_text().strip()
            except OSError as error:
                raise UpstreamError(
                    f"The DICOMweb server's token file cannot be read: {error.strerror or error}."
                ) from None
        if token:
            return f"Bearer {token}"
        if self.user:
            return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return None


class Pacs:
    """A DICOMweb server (DICOM PS3.18).

    Safe to use from several threads.

    Parameters
    ----------
    url : str
        Root of the service. A user name and password in it are used as credentials, and shown nowhere.
    options : PacsOptions
        Time limit, retries and certificates.
    credentials : Credentials
        Those in the URL count before them.
    prefixes : mapping of str to str
        Path below the root for "qido", "wado" and "stow", where it is not the root itself.
    """

    def __init__(
        self,
        url: str,
        options: PacsOptions | None = None,
        credentials: Credentials | None = None,
        prefixes: Mapping[str, str | None] | None = None,
    ) -> None:
        self.url = without_user(url).partition("?")[0]
        self.options = options or PacsOptions()
        self._credentials = credentials or Credentials()
        user = user_of(url)
        if user is not None:
            self._credentials = Credentials(*user)
        self._prefixes = {service: prefix.strip("/") for service, prefix in (prefixes or {}).items() if prefix}
        self._local = threading.local()

    # MONAI Label's datastore asks its client for its address by this name
    @property
    def base_url(self) -> str:
        """The root of the service."""
        return self.url

    def address(self, service: str, path: str) -> str:
        """Return the URL of a path of a service ("qido", "wado", "stow", or "" for the root)."""
        prefix = self._prefixes.get(service)
        return "/".join(part for part in (self.url, prefix, path.strip("/")) if part)

    def send(
        self,
        method: str,
        address: str,
        *,
        params: Any = None,
        data: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> requests.Response:
        """Send one request and return its answer, whose body is not read yet and which the caller closes.

        Raises
        ------
        UpstreamTimeoutError
            If the server does not answer in time.
        UpstreamError
            If it does not answer, refuses the credentials, answers with a redirect or with an error of its own (5xx).
        """
        seconds = timeout or self.options.timeout
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        authorization = self._credentials.header()
        if authorization:
            sent["Authorization"] = authorization
        try:
            answer = self._session().request(
                method,
                address,
                params=params,
                data=data,
                headers=sent,
                stream=True,
                allow_redirects=False,
                timeout=(min(seconds, 10.0), seconds),
            )
        except requests.Timeout:
            raise self._late(seconds) from None
        except requests.exceptions.SSLError as error:
            raise UpstreamError(
                f"The DICOMweb server {self.url} has a certificate that is not trusted ({_reason(error)}); "
                "name the certificate of who vouches for it with pacs_ca_file."
            ).as_permanent() from None
        except (requests.RequestException, OSError, ValueError) as error:
            raise UpstreamError(f"The DICOMweb server {self.url} does not answer ({type(error).__name__}).") from None
        self._check(answer)
        return answer

    def search(self, path: str, conditions: Mapping[str, str], fields: Sequence[str] = ()) -> list[pydicom.Dataset]:
        """Search, page by page.

        Parameters
        ----------
        path : str
            "studies", "series", "studies/1.2.3/series" ...
        conditions : mapping of str to str
            DICOM keyword to value.
        fields : sequence of str
            Further keywords to answer.

        Raises
        ------
        UpstreamError
            If the server does not answer as DICOM PS3.18 says.
        """
        return [entry for page in self.search_pages(path, conditions, fields) for entry in page]

    def search_pages(
        self, path: str, conditions: Mapping[str, str], fields: Sequence[str] = ()
    ) -> Iterator[list[pydicom.Dataset]]:
        """Yield what `search` returns page by page, each when the server has answered it.

        Only the identifiers of what was found are kept, so that a search of a whole archive fits the memory.

        Parameters
        ----------
        path, conditions, fields
            As for `search`, whose errors it raises.
        """
        seen: set[int] = set()
        offset = 0
        while True:
            params = [*conditions.items(), *(("includefield", name) for name in fields)]
            page = self._page(path, [*params, ("limit", str(_PAGE)), ("offset", str(offset))])
            new = {key: entry for entry in page if (key := _identity(entry)) not in seen}
            seen |= new.keys()
            offset += len(page)
            yield [entry for entry in new.values() if _fits(entry, conditions)]
            # a server that ignores the offset answers the same again
            if len(page) < _PAGE or not new:
                return

    def metadata(self, study: str, series: str) -> list[pydicom.Dataset]:
        """Return the metadata of a series' instances; none where the series is gone.

        Raises
        ------
        UpstreamError
            As `search`.
        """
        where = self.address("wado", f"studies/{study}/series/{series}/metadata")
        return self._again(lambda: self._json(where, []))

    def instances(self, study: str, series: str) -> frozenset[str]:
        """Return the SOP Instance UIDs of a series; empty where the server does not list instances.

        Raises
        ------
        UpstreamError
            As `search`.
        """
        found = self.search(f"studies/{study}/series/{series}/instances", {})
        return frozenset(str(entry.get("SOPInstanceUID", "")) for entry in found) - {""}

    def retrieve(
        self,
        study: str,
        series: str,
        folder: Path,
        instance: str | None = None,
        count: int = 0,
        expected: frozenset[str] = frozenset(),
    ) -> None:
        """Retrieve the instances of a series, or one of them, as they are stored.

        Parameters
        ----------
        study, series, instance : str
            UIDs.
        folder : Path
            Made; must not be there. After an error it is not there either.
        count : int
            How many instances there must be at least.
        expected : frozenset of str
            SOP Instance UIDs of the instances that there must be, and no others; not checked where empty.

        Raises
        ------
        UnknownError
            If there is no such series any more.
        UpstreamContentError
            If what the server sends is damaged, of another series, or not what is expected.
        UpstreamError
            If the server fails, or breaks off.
        """
        path = f"studies/{study}/series/{series}" + (f"/instances/{instance}" if instance else "")

        def attempt() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                self._retrieve_once(path, series, folder, count, expected)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

        self._again(attempt)

    def store(self, content: bytes, study: str, series: str, instance: str) -> None:
        """Store one instance, and make sure that it is stored.

        Only an answer that names the instance as stored is believed. After any other one, and after none, the server is
        searched for the instance.

        Parameters
        ----------
        content : bytes
            The instance, a DICOM file.
        study, series, instance : str
            Its UIDs.

        Raises
        ------
        UpstreamTimeoutError
            If the server did not answer in time, and does not list the instance.
        UpstreamError
            If it does not store the instance. The error is permanent where the server says so itself; else the
            instance may appear later.
        """
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        said: bool | None = None
        try:
            with self._again(
                lambda: self.send("POST", self.address("stow", f"studies/{study}"), data=body, headers=headers),
                UpstreamBusyError,
            ) as answer:
                said = says_stored(self.body(answer), instance) if answer.ok else False
                problem = UpstreamError(
                    f"The DICOMweb server {self.url} did not store the label ({answer.status_code} {answer.reason})."
                )
        except UpstreamError as error:
            if error.permanent:
                raise
            problem = error
        if said is False:
            raise problem.as_permanent()
        if said:
            return
        try:
            found = self._appears(study, series, instance)
        except UpstreamError:
            raise problem.adding("Whether the label is stored is not known; save it again.") from None
        if not found:
            raise problem.adding("It does not list the label, which is not saved.")

    def holds(self, study: str, series: str, instance: str) -> bool:
        """Whether the server lists an instance.

        Raises
        ------
        UpstreamError
            As `search`.
        """
        where = f"studies/{study}/series/{series}/instances"
        found = self.search(where, {"SOPInstanceUID": instance})
        return any(str(entry.get("SOPInstanceUID", "")) == instance for entry in found)

    def _appears(self, study: str, series: str, instance: str) -> bool:
        """Whether the server lists an instance now or in a moment: searches may know of it later than its store."""
        for tried in range(self.options.retries):
            if self.holds(study, series, instance):
                return True
            time.sleep(0.5 * 2**tried)
        return self.holds(study, series, instance)

    def _session(self) -> requests.Session:
        session = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False
            session.verify = self.options.ca_file or True
            for scheme in ("http://", "https://"):
                session.mount(scheme, TimedAdapter())
            self._local.session = session
        return session

    def _check(self, answer: requests.Response) -> None:
        """Raise where the answer is none; errors of the request itself (4xx) are the caller's business."""
        status = answer.status_code
        seconds = _retry_after(answer) if status in (429, 503) else None
        if seconds is not None:
            answer.close()
            raise UpstreamBusyError(
                f"The DICOMweb server {self.url} answers {status} {answer.reason}; ask again later.", seconds
            )
        if not answer.is_redirect and status not in (401, 403, 407) and not 300 <= status < 400 and status < 500:
            return
        answer.close()
        if status in (401, 403, 407):
            says = "refuses the credentials" if self._credentials.header() else "asks for credentials"
            raise UpstreamError(f"The DICOMweb server {self.url} {says} ({status}).").as_permanent()
        if status < 400:
            raise UpstreamError(
                f"The DICOMweb server {self.url} sends to another address ({status}), to which nothing is sent."
            ).as_permanent()
        error = UpstreamTimeoutError if status == 504 else UpstreamError
        raise error(f"The DICOMweb server {self.url} answers {status} {answer.reason}.")

    def _late(self, seconds: float) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(f"The DICOMweb server {self.url} did not answer within {seconds:g} seconds.")

    def _again(self, attempt: Callable[[], T], failure: type[UpstreamError] = UpstreamError) -> T:
        """Call until it succeeds, as often as the options allow, waiting longer each time or as long as it says."""
        for tried in range(self.options.retries):
            try:
                return attempt()
            except failure as error:
                wait = error.retry_after if isinstance(error, UpstreamBusyError) else 0.25 * 2**tried
                if error.permanent or wait > _MAX_WAIT:
                    raise
                logger.warning("The DICOMweb server failed; trying again (%s)", type(error).__name__)
            time.sleep(wait * random.uniform(1.0, 1.25))
        return attempt()

    def _page(self, path: str, params: list[tuple[str, str]]) -> list[pydicom.Dataset]:
        return self._again(lambda: self._json(self.address("qido", path), params))

    def _json(self, address: str, params: list[tuple[str, str]]) -> list[pydicom.Dataset]:
        """Return the data sets of an answer in DICOM JSON; none where there is nothing."""
        with self.send("GET", address, params=params, headers={"Accept": "application/dicom+json"}) as answer:
            if answer.status_code in (204, 404, 410):
                return []
            if not answer.ok:
                raise self._refused(answer)
            content = self.body(answer)
        try:
            entries = json.loads(content) if content else []
            if not isinstance(entries, list):
                raise TypeError("not a list")
            return [_data_set(entry) for entry in entries]
        except Exception as error:
            logger.warning("DICOM JSON that cannot be read (%s)", type(error).__name__)
            raise UpstreamError(
                f"The DICOMweb server {self.url} answers with something else than DICOM JSON."
            ).as_permanent() from None

    def _refused(self, answer: requests.Response) -> UpstreamError:
        error = UpstreamError(f"The DICOMweb server {self.url} answers {answer.status_code} {answer.reason}.")
        return error if answer.status_code in _TRANSIENT else error.as_permanent()

    def chunks(
        self, answer: requests.Response, *, decode: bool = True, most: int | None = None
    ) -> Generator[bytes, None, None]:
        """Yield the body of an answer as it arrives.

        Parameters
        ----------
        answer : requests.Response
            As `send` returns it.
        decode : bool
            Whether a content encoding is undone.
        most : int, optional
            Bytes that are read at the most.

        Raises
        ------
        UpstreamTimeoutError
            If the body takes too long, as a whole or on its way.
        UpstreamError
            If it is cut off or too large.
        """
        try:
            yield from timed_chunks(answer, self.options.timeout, self.options.max_seconds, decode=decode, most=most)
        except TotalTimeout:
            raise UpstreamTimeoutError(
                f"The DICOMweb server {self.url} did not complete its answer within {self.options.max_seconds} seconds "
                "(pacs_max_seconds)."
            ).as_permanent() from None
        except requests.Timeout:
            raise UpstreamTimeoutError(
                f"The DICOMweb server {self.url} sends its answer too slowly, less than {LEAST_RATE} bytes a second "
                f"for {self.options.timeout} seconds."
            ) from None
        except TooMuchError:
            raise UpstreamError(
                f"The DICOMweb server {self.url} sends more than {most} bytes, which are allowed for this answer."
            ).as_permanent() from None
        except requests.RequestException as error:
            if "timed out" in str(error):
                raise self._late(self.options.timeout) from None
            raise UpstreamError(f"The DICOMweb server {self.url} broke off its answer.") from None

    def body(self, answer: requests.Response) -> bytes:
        """Return the body of an answer that is parsed in memory; raises as `chunks` does."""
        return b"".join(self.chunks(answer, most=_MAX_TEXT))

    def _retrieve_once(self, path: str, series: str, folder: Path, count: int, expected: frozenset[str]) -> None:
        address = self.address("wado", path)
        kinds = ('multipart/related; type="application/dicom"; transfer-syntax=*', _PLAIN)
        for kind in kinds:
            answer = self.send("GET", address, headers={"Accept": kind})
            with answer:
                # a server that does not know "as it is stored"
                if kind != _PLAIN and answer.status_code in (400, 406, 415):
                    continue
                if answer.status_code in (204, 404, 410):
                    raise UnknownError(f"Series {series} is not on the DICOMweb server {self.url} any more.")
                if not answer.ok:
                    raise self._refused(answer)
                files = self._write(answer, folder)
            break
        self._check_files(files, series, count, expected)

    def _write(self, answer: requests.Response, folder: Path) -> list[Path]:
        kind = answer.headers.get("Content-Type", "")
        chunks = self.chunks(answer, most=self.options.cache_mb * 2**20)
        try:
            boundary = boundary_of(kind)
            if boundary is None:
                single = folder / "0.dcm"
                with single.open("wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                return [single]
            return write_parts(chunks, boundary, folder)
        except IncompleteError:
            raise UpstreamError(f"The DICOMweb server {self.url} broke off its answer.") from None

    def _check_files(self, files: Sequence[Path], series: str, count: int, expected: frozenset[str]) -> None:
        """Raise where an instance is cut off, is of another series, comes twice, is not expected, or is missing."""
        tags = ["SeriesInstanceUID", "SOPInstanceUID"]
        found: set[str] = set()
        for file in files:
            try:
                header = read_elements(file, tags)
                fits = str(header.get("SeriesInstanceUID", "")) == series and is_whole(file)
                instance = str(header.get("SOPInstanceUID", ""))
            except Exception:
                fits = False
            if not fits:
                raise UpstreamContentError(
                    f"The DICOMweb server {self.url} sent a damaged instance of the series {series}."
                )
            if instance and instance in found:
                raise UpstreamContentError(f"The DICOMweb server {self.url} sent instance {instance} twice.")
            found.add(instance)
        if len(files) < max(count, 1) or expected - found:
            n_sent = len(found & expected) if expected else len(files)
            raise UpstreamContentError(
                f"The DICOMweb server {self.url} sent {n_sent} of {max(count, len(expected))} instances of the "
                f"series {series}."
            )
        if expected and found - expected:
            raise UpstreamContentError(
                f"The DICOMweb server {self.url} sent {len(found - expected)} instances that it does not list for the "
                f"series {series}."
            )


_PLAIN = 'multipart/related; type="application/dicom"'


def says_stored(content: bytes, instance: str) -> bool | None:
    """Whether the answer to a store (DICOM JSON) names an instance as stored or failed; None where it does neither."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return None
    entries = told if isinstance(told, list) else [told]
    # Failed SOP Sequence, Referenced SOP Sequence
    for sequence, answer in (("00081198", False), ("00081199", True)):
        if any(instance in _instances_named(entry, sequence) for entry in entries):
            return answer
    return None


def _instances_named(entry: Any, sequence: str) -> list[Any]:
    """Return the Referenced SOP Instance UIDs of a sequence in DICOM JSON, whatever else it is."""
    named = []
    for item in _json_values(entry, sequence):
        named += _json_values(item, "00081155")
    return named


def _json_values(entry: Any, tag: str) -> list[Any]:
    element = entry.get(tag) if isinstance(entry, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _data_set(entry: Any) -> pydicom.Dataset:
    """Return the data set of an entry of DICOM JSON, without the elements that cannot be read."""
    try:
        return pydicom.Dataset.from_json(entry, _left_there)
    except Exception:
        if not isinstance(entry, dict):
            raise
    found = pydicom.Dataset()
    for tag, element in entry.items():
        try:
            found.update(pydicom.Dataset.from_json({tag: element}, _left_there))
        except Exception as error:
            logger.info("An element of DICOM JSON cannot be read and is left out (%s)", type(error).__name__)
    return found


def _left_there(tag: str, vr: str, address: str) -> Any:
    """Return the empty value for pixels and other bulk data, of which metadata hold the address alone."""
    return empty_value_for_VR(vr)


def _identity(entry: pydicom.Dataset) -> int:
    """Return a number of 128 bits for the identifiers of an answer."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    told = " ".join(str(entry.get(name, "")) for name in names)
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=16).digest(), "big")


def _fits(entry: pydicom.Dataset, conditions: Mapping[str, str]) -> bool:
    """Whether an answer fits the conditions with a plain value: some servers ignore those that they do not know."""
    return all(
        name not in entry
        or any(mark in value for mark in "*?-\\,^")
        or str(entry[name].value).casefold() in ("", "none", value.casefold())
        for name, value in conditions.items()
    )


def _retry_after(answer: requests.Response) -> float | None:
    """Return the seconds of a Retry-After header, within bounds; None where there is none that can be read."""
    text = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = float(text)
    else:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, TypeError):
            return None
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 1.0), _MAX_RETRY_AFTER)


def _reason(error: Exception) -> str:
    found = re.search(r"certificate verify failed: ([^(\]]+)", str(error))
    return found[1].strip() if found else type(error).__name__
