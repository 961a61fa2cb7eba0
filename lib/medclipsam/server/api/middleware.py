"""What holds for every request: its origin, its size, and that no error leaves as a traceback."""

from __future__ import annotations

import logging
import secrets
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

import anyio.to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medclipsam.base.errors import MedClipSamError, UpstreamError
from medclipsam.server.api.access import Access, is_loopback
from medclipsam.server.base.errors import UnauthenticatedError, headers_of, status_of, storage_error, told

logger = logging.getLogger(__name__)

# Bytes of a body that is parsed in memory.
MAX_TEXT_BODY = 4 * 2**20
# Bytes of a text body with masks: twenty findings on two hundred planes take eight million.
MAX_MASKS_BODY = 64 * 2**20
# Bytes of a body that anyone may send.
MAX_LOGIN_BODY = 64 * 2**10
# Bodies of these types are written to disk while they arrive.
_IN_FILES = ("multipart/", "application/dicom")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def refused(request: Request, error: Exception) -> Response:
    """Answer an error of this package: its sentence and a 4xx or 5xx, or the log-in for a browser that needs one.

    Parameters
    ----------
    request : Request
    error : MedClipSamError
    """
    assert isinstance(error, MedClipSamError)
    error = told(error)
    headers = headers_of(error)
    if isinstance(error, UnauthenticatedError):
        access: Access = request.app.state.access
        path = request.url.path
        if access.oidc is not None and _is_page(request) and path != request.url_for("callback").path:
            wanted = f"{path}?{request.url.query}" if request.url.query else path
            return RedirectResponse(request.url_for("login").include_query_params(next=wanted), status_code=303)
        # a browser that is asked for Basic asks its user, and sends the answer with all that the page asks for
        headers["WWW-Authenticate"] = "Bearer" if access.oidc else 'Basic realm="medclipsam", charset="UTF-8"'
    return JSONResponse({"detail": str(error)}, status_code=status_of(error), headers=headers)


def _is_page(request: Request) -> bool:
    """Return whether a browser asks for a page, and not a script for data."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


# Of answers that state no policy of their own: they are data, not pages.
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"


class SafeHeaders:
    """Add to every answer that browsers must not guess its type, and a policy where it has none: nothing is loaded."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Content-Security-Policy", _DATA_POLICY)
            await send(message)

        await self.app(scope, receive, adding)


class UnforeseenErrors:
    """Answer an error that nobody foresaw with a sentence and a number, under which the log has the traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and answer what comes out."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            # it left, or sent what is not HTTP; nobody waits for an answer
            logger.info("A client did not complete its request to %s %s", scope["method"], _route(scope))
        except Exception as error:
            cut_off = next((each for each in _causes(error) if isinstance(each, UpstreamError)), None)
            if started and cut_off is not None:
                # the connection is closed before the answer's end, which tells the client
                logger.warning("An answer was cut off: %s", cut_off)
                return
            if not started and any(map(_is_no_text, _causes(error))):
                sentence = "The request holds characters that are no text (surrogates); allowed: text in UTF-8."
                await JSONResponse({"detail": sentence}, status_code=400)(scope, receive, send)
                return
            storage = storage_error(error)
            if storage is not None and not started:
                logger.error("%s at %s %s", storage, scope["method"], _route(scope), exc_info=error)
                await JSONResponse({"detail": str(storage)}, status_of(storage))(scope, receive, send)
                return
            number = secrets.token_hex(4)
            logger.exception("Error %s at %s %s", number, scope["method"], _route(scope))
            if started:
                raise
            sentence = f"Internal error; see log entry {number}."
            await JSONResponse({"detail": sentence}, status_code=500)(scope, receive, send)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_no_text(error: BaseException) -> bool:
    """Return whether text from a request could not be written since it holds halves of characters."""
    return isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed"


class ComposedNames:
    """Write names in the address of a request as they are written in ids: with composed characters.

    A name with an accent can be written in two ways in Unicode (NFC and NFD) that look the same; macOS, browsers and
    file systems differ in which they use.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] == "http" and b"%" in scope["query_string"]:
            given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            composed = [(name, unicodedata.normalize("NFC", value)) for name, value in given]
            if composed != given:
                scope = {**scope, "query_string": urlencode(composed).encode()}
        await self.app(scope, receive, send)


class SameOrigin:
    """Refuse what a page of another origin makes its visitor's browser send.

    A browser sends forms and other simple requests to any address, a server on its own machine included, and names the
    page's origin with them. A page can also give its own host name this machine's address: a server that only its own
    machine reaches answers to that machine's names alone.

    Parameters
    ----------
    app : ASGI application
        What follows.
    origins : sequence of str
        Other origins that are let in, such as "https://viewer.example".
    local : bool
        Whether the server is reached by loopback addresses only.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], local: bool) -> None:
        self.app = app
        self.origins = {origin.rstrip("/").lower() for origin in origins}
        self.local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] == "http" and (reason := self._refusal(scope)):
            await JSONResponse({"detail": reason}, status_code=403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        own = f"{scope.get('scheme', 'http')}://{host}"
        if self.local and not is_loopback(_name(host)):
            return f"This server answers to addresses of its own machine only, not to {host!r}."
        origin = headers.get("origin", "").rstrip("/").lower()
        if scope["method"] in _SAFE_METHODS or not origin or origin in self.origins:
            return ""
        if host and _same(origin, own):
            return ""
        return f"Pages of {origin!r} may not change anything here; MONAI_LABEL_CORS_ORIGINS names origins that may."


class AccessFirst:
    """Refuse requests with a body from callers who are not known, before a byte of the body is read.

    Routes check roles; they do so after the body was parsed.

    Parameters
    ----------
    app : ASGI application
        What follows.
    known : callable
        Is called with the request, in a thread; raises an error of this package for unknown callers.
    refuse : callable
        Makes the answer of such an error.
    open_paths : collection of str
        Paths that callers use in order to become known or unknown.
    """

    def __init__(
        self,
        app: ASGIApp,
        known: Callable[[Request], object],
        refuse: Callable[[Request, Exception], Response],
        open_paths: Collection[str],
    ) -> None:
        self.app = app
        self.known = known
        self.refuse = refuse
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests of known callers."""
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS and scope["path"] not in self.open_paths:
            try:
                await anyio.to_thread.run_sync(self.known, Request(scope))
            except MedClipSamError as error:
                answer = self.refuse(Request(scope), error)
                answer.headers["Connection"] = "close"
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuse a body of more bytes than a server takes, before or while it is read.

    Parameters
    ----------
    app : ASGI application
        What follows.
    max_bytes : int
        Most bytes of a body.
    max_text_bytes : int
        Most bytes of a body that is neither multipart nor DICOM: such are kept and parsed in memory.
    login : str
        The path that anyone may send a body to; at most `MAX_LOGIN_BODY` bytes.
    with_masks : tuple of str
        Beginnings of paths whose text bodies hold masks; at most `MAX_MASKS_BODY` bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        max_text_bytes: int = MAX_TEXT_BODY,
        login: str | None = None,
        with_masks: tuple[str, ...] = (),
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_text_bytes = min(max_bytes, max_text_bytes)
        self.login = login
        self.with_masks = with_masks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, counting."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        in_files = headers.get("content-type", "").lower().startswith(_IN_FILES)
        limit = self.max_bytes if in_files else self.max_text_bytes
        if not in_files and scope["path"].startswith(self.with_masks):
            limit = min(self.max_bytes, MAX_MASKS_BODY)
        if scope["path"] == self.login:
            limit = min(limit, MAX_LOGIN_BODY)
        told = headers.get("content-length", "")
        if told.isascii() and told.isdigit() and (len(told) > 18 or int(told) > limit):
            await self._refuse(limit, scope, receive, send)
            return
        read = 0
        answered = False

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise _TooLarge
            return message

        async def replacing(message: Message) -> None:
            # whoever read the body may have made another error of ours
            nonlocal answered
            if read <= limit:
                await send(message)
            elif not answered:
                answered = True
                await self._refuse(limit, scope, receive, send)

        try:
            await self.app(scope, counting, replacing)
        except _TooLarge:
            if not answered:
                await self._refuse(limit, scope, receive, send)

    async def _refuse(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        of = "the server's max_upload_mb" if limit == self.max_bytes else "allowed for requests of this kind"
        sentence = f"The request is larger than {limit / 2**20:g} MiB, which is {of}."
        await JSONResponse({"detail": sentence}, status_code=413, headers={"Connection": "close"})(scope, receive, send)


class _TooLarge(Exception):
    """A body went over the limit while it was read."""


def _same(one: str, other: str) -> bool:
    """Return whether two origins have the same scheme, host name and port."""
    try:
        parts = [urlsplit(origin) for origin in (one, other)]
        first, second = (
            (part.scheme, part.hostname, part.port or {"http": 80, "https": 443}.get(part.scheme)) for part in parts
        )
    except ValueError:
        return False
    return first == second and None not in first


def _name(host: str) -> str:
    """Return the name of a Host header without its port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _route(scope: Scope) -> str:
    """Return the pattern of the route: what stands in an address may be a patient's."""
    return str(getattr(scope.get("route"), "path", "an unknown path"))
