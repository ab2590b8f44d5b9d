"""Lines: how a person speaks to a server, one connection at a time; each request is counted."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from locust.env import Environment

from loadtests.locusts.notes import Events
from loadtests.locusts.tally import count

_PATIENCE_S: Final = 60.0  # longer than any long-poll waits, and than an event stream is silent
_GONE: Final = (OSError, http.client.HTTPException)


class Failed(Exception):
    """A request went wrong, and was counted as a failure."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        """Say what happened."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def next(self) -> str:
        """Return the offset that follows what was read."""
        return self.headers["Stream-Next-Offset"]


class Line:
    """A connection that is opened anew when it was lost; nothing is sent twice of its own accord.

    The standard library's client, which gevent lets wait in good company: it speaks TLS, looks
    hosts up, and keeps out of the way of what is checked here.
    """

    def __init__(self, environment: Environment) -> None:
        """Connect when something is asked."""
        self._environment = environment
        assert environment.host is not None
        self._url = urlsplit(environment.host)
        self._connection: http.client.HTTPConnection | None = None

    def ask(
        self,
        method: str,
        target: str,
        name: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        expect: Collection[int] = (200,),
    ) -> Answer:
        """Send a request and return the reply.

        Raises:
            Failed: no reply, or another status than expected.
        """
        began = time.perf_counter()
        try:
            reply = self._send(method, target, headers or {}, body)
            answer = Answer(reply.status, reply.headers, reply.read())
        except _GONE as error:
            self.close()
            raise self._failed(method, name, began, _named(error)) from None
        if answer.status not in expect:
            raise self._failed(method, name, began, *_refusal(answer))
        self._count(method, name, began, len(answer.body))
        return answer

    def ask_in_vain(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Send a request, and lose the connection before its reply."""
        with suppress(*_GONE):  # which is as good
            self._open().request(method, target, body=body, headers=dict(headers))
        self.close()

    def events(self, target: str, name: str) -> Iterator[tuple[str, bytes]]:
        """Open an event stream, and yield its events as they come, until it ends.

        Raises:
            Failed: there is none, or it is cut off.
        """
        began = time.perf_counter()
        events = Events()
        try:
            reply = self._send("GET", target, {"Accept": "text/event-stream"}, None)
            if reply.status != 200:
                raise self._failed(
                    "SSE", name, began, *_refusal(Answer(reply.status, reply.headers, reply.read()))
                )
            self._count("SSE", name, began, 0)
            while piece := reply.read1(1 << 16):
                yield from events.feed(piece)
        except _GONE as error:
            raise self._failed("SSE", name, began, _named(error)) from None
        finally:
            self.close()  # whoever leaves early does not read the rest
        if not events.whole:
            raise self._failed("SSE", name, began, "an event was cut off")

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> http.client.HTTPResponse:
        connection = self._open()
        connection.request(method, target, body=body, headers=dict(headers))
        return connection.getresponse()

    def _open(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host = self._url.hostname or ""
            self._connection = (
                http.client.HTTPSConnection(
                    host, self._url.port, timeout=_PATIENCE_S, context=ssl.create_default_context()
                )
                if self._url.scheme == "https"
                else http.client.HTTPConnection(host, self._url.port, timeout=_PATIENCE_S)
            )
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    def _count(self, method: str, name: str, began: float, size: int) -> None:
        late_s = time.perf_counter() - began
        count(self._environment, method, name, late_s, size=size)

    def _failed(
        self, method: str, name: str, began: float, message: str, retry_after_s: float = 0.0
    ) -> Failed:
        error = Failed(message, retry_after_s)
        count(self._environment, method, name, time.perf_counter() - began, error)
        return error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _refusal(answer: Answer) -> tuple[str, float]:
    seconds = answer.headers.get("Retry-After", "")
    # The status alone, so that locust counts all like it together.
    return f"answered {answer.status}", float(seconds) if seconds.isdigit() else 0.0
