"""The HTTP protocol of `medclipsam serve`: uvicorn's, with bounds for clients that send half a request.

uvicorn waits without end for the rest of a request, and for a client to read its answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds within which the headers of a request must be complete.
HEADER_SECONDS = 20.0
# Seconds in which a body that the server waits for must bring so many bytes a second on average.
BODY_SECONDS = 30.0
LEAST_BODY_RATE = 256
# Seconds within which a client must go on to read its answer.
ANSWER_SECONDS = 60.0
# Connections at once, and those of them whose next request is not complete.
MAX_CONNECTIONS = 768
MAX_WAITING = 384
_LOOK_EVERY = 1.0

_ANSWER = (
    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nContent-Length: %d\r\n"
    b"%sConnection: close\r\n\r\n%s"
)


class BoundedProtocol(H11Protocol):
    """A connection that is closed when its client takes too long to send a request, or to read the answer.

    Of the connections that wait for headers, the one that waits longest is closed when there are too many, one that has
    sent a part of them first: a client that sends its request at once is served, even if its bytes are still unread.
    """

    header_seconds: ClassVar[float] = HEADER_SECONDS
    body_seconds: ClassVar[float] = BODY_SECONDS
    answer_seconds: ClassVar[float] = ANSWER_SECONDS
    # in the order in which they began to wait
    waiting: ClassVar[dict[BoundedProtocol, None]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._unread_since: float | None = None
        self._wait_for_headers()
        self._watch = self.loop.call_later(_LOOK_EVERY, self._look)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(b"503 Service Unavailable", "The server has too many connections.", b"Retry-After: 5\r\n")
            return
        if len(self.waiting) > MAX_WAITING:
            next((each for each in self.waiting if each._received), next(iter(self.waiting))).close_late()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.waiting.pop(self, None)
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        self._received += len(data)
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # garbage after an answer
            self.transport.abort()

    def handle_events(self) -> None:
        """Note when the headers of a request are complete."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self.waiting.pop(self, None)
            self._body_since, self._received = time.monotonic(), 0

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait_for_headers()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Note since when the client does not read."""
        self._unread_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it reads."""
        self._unread_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, unless an answer has begun."""
        if self.cycle is not None and not self.cycle.response_complete:
            # the application waits for a body that does not come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(b"400 Bad Request", msg)
        else:
            self.transport.abort()

    def close_late(self) -> None:
        """Close the connection: what was begun does not go on."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
        else:
            self._refuse(b"408 Request Timeout", "The request did not arrive in time.")

    def _wait_for_headers(self) -> None:
        self.waiting.pop(self, None)
        self.waiting[self] = None
        self._headers_since, self._received = time.monotonic(), 0

    def _look(self) -> None:
        now = time.monotonic()
        if self.transport.is_closing() and self._unread_since is None:
            # what is left of the answer is on its way
            self._unread_since = now
        if self._unread_since is not None:
            if now - self._unread_since > self.answer_seconds:
                self.transport.abort()
                return
            late = False
        elif self in self.waiting:
            late = now - self._headers_since > self.header_seconds
        else:
            late = self._is_body_late(now)
        if late:
            self.close_late()
        else:
            self._watch = self.loop.call_later(_LOOK_EVERY, self._look)

    def _is_body_late(self, now: float) -> bool:
        if not self.cycle.more_body or self.cycle.response_complete or self.flow.read_paused:
            self._body_since, self._received = now, 0
            return False
        waited = now - self._body_since
        if waited < self.body_seconds:
            return False
        late = self._received < LEAST_BODY_RATE * waited
        self._body_since, self._received = now, 0
        return late

    def _refuse(self, status: bytes, sentence: str, headers: bytes = b"") -> None:
        body = b'{"detail":"%s"}' % sentence.encode("ascii")
        self.transport.write(_ANSWER % (status, len(body), headers, body))
        self.waiting.pop(self, None)
        # it counts no more, also where more connections come before it is closed
        self.connections.discard(self)
        self.transport.close()
