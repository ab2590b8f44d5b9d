"""aiohttp glue: one entry for every request, replies from rules, listening sockets, health,
graceful stop."""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler
from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest

from shared import metrics
from shared.config import Settings
from shared.protocol.errors import BadRequest, BodyTooLarge, ProtocolError, Unavailable
from shared.protocol.reply import COMMON_HEADERS, PREFLIGHT_HEADERS, Reply, refused

_log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_BACKLOG: Final = 4096  # aiohttp's 128 overflows when a crowd comes back at once
_KEEPALIVE_S: Final = 75.0  # longer than common proxies keep theirs, so that they close first
# Of all bodies together: a few dozen of the largest, or any number of ordinary ones.
_BODIES_BYTES_MAX: Final = 256 * 1024 * 1024
_LINE_BYTES_MAX: Final = 8190  # request line and each header
_HEADERS_MAX: Final = 100


def respond(reply: Reply) -> web.Response:
    """Turn a reply of the rules into a response."""
    # As `headers=`, a content type goes out exactly as it stands: no charset is added.
    headers = {**reply.headers, **COMMON_HEADERS}
    return web.Response(status=reply.status, headers=headers, body=reply.body or None)


def failure(error: BaseException) -> Reply:
    """Return the reply to whatever a handler raised."""
    if isinstance(error, ProtocolError | Unavailable):
        return refused(error)
    _log.error("unexpected error", exc_info=error)
    return _plain(500, "internal", "internal error, see the server's log")


def _plain(status: int, code: str, message: str) -> Reply:
    reply = refused(Unavailable(message))
    body = reply.body.replace(b'"unavailable"', f'"{code}"'.encode())
    return Reply(status, {k: v for k, v in reply.headers.items() if k != "Retry-After"}, body)


class Bodies:
    """Reads request bodies within bounds: of each, and of all that are being handled at once."""

    def __init__(self, each_bytes_max: int) -> None:
        self._each_bytes_max = each_bytes_max
        self._all_bytes_max = max(_BODIES_BYTES_MAX, each_bytes_max)
        self._held_bytes = 0

    async def read(self, request: web.BaseRequest) -> bytes:
        """Read a body, known length or chunked; `release` it when it has been handled.

        Raises:
            BodyTooLarge: told by the length before anything is read, or found while reading.
            BadRequest: the body ends early, or is malformed.
            Unavailable: too many bytes of other bodies are held.
        """
        declared = request.content_length
        if declared is not None and declared > self._each_bytes_max:
            raise BodyTooLarge(self._each_bytes_max, declared)
        if hdrs.EXPECT in request.headers and _expects_continue(request):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # that was no part of the reply
        content = request.content
        if content.is_eof() and content.exception() is None and declared is not None:
            body = content.read_nowait()  # most bodies are here when their head is
            self._held_bytes += len(body)
            return body
        pieces: list[bytes] = []
        size = 0
        try:
            while not content.at_eof():
                piece = await content.readany()
                pieces.append(piece)
                size += len(piece)
                self._held_bytes += len(piece)
                if size > self._each_bytes_max:
                    raise BodyTooLarge(self._each_bytes_max)
                if self._held_bytes > self._all_bytes_max:
                    raise Unavailable("too many request bodies are under way")
        except (web.RequestPayloadError, ValueError) as error:
            self._held_bytes -= size
            raise BadRequest(f"the body cannot be read: {error}") from None
        except BaseException:
            self._held_bytes -= size
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def release(self, body: bytes) -> None:
        """Account for a body that is no longer held."""
        self._held_bytes -= len(body)


def _expects_continue(request: web.BaseRequest) -> bool:
    return request.headers[hdrs.EXPECT].lower() == "100-continue"


class _Connection(RequestHandler):
    """aiohttp's connection, with refusals of ours for what it cannot parse."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status < 500:
            detail = " ".join((message or "malformed request").split())[:200]
            response = respond(_plain(status, "bad_request", detail))
        else:
            response = respond(failure(exc or RuntimeError(message)))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


@dataclass(slots=True)
class Listener:
    """One HTTP entry: its requests, its sockets, its way to stop."""

    handler: Handler
    active: int = 0
    draining: bool = False
    _idle: asyncio.Event = field(default_factory=asyncio.Event)  # set once draining is done
    _server: _Server | None = None
    _listening: list[asyncio.Server] = field(default_factory=list)

    async def listen(
        self,
        *,
        host: str | None = None,
        port: int = 0,
        path: Path | None = None,
        reuse_port: bool = False,
    ) -> int:
        """Listen on a TCP port (0 picks one) or a Unix socket; return the port."""
        loop = asyncio.get_running_loop()
        if self._server is None:
            self._server = _Server(
                self._handle,
                # Without it, a reader that has left keeps its place until something is sent to it.
                handler_cancellation=True,
                access_log=None,
                keepalive_timeout=_KEEPALIVE_S,
                max_line_size=_LINE_BYTES_MAX,
                max_field_size=_LINE_BYTES_MAX,
                max_headers=_HEADERS_MAX,
                auto_decompress=False,
            )
        if path is not None:
            # asyncio unlinks a socket that a predecessor left behind.
            server = await loop.create_unix_server(self._server, str(path), backlog=_BACKLOG)
            self._listening.append(server)
            return 0
        sock = socket.socket(socket.AF_INET6 if ":" in (host or "") else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host or "127.0.0.1", port))
        self._listening.append(await loop.create_server(self._server, sock=sock, backlog=_BACKLOG))
        return int(sock.getsockname()[1])

    async def drain(self, window_s: float) -> None:
        """Stop: go on answering until nothing is under way, at most window_s; then close.

        The sockets listen until the end: closing them earlier would reset who waits to be accepted.
        """
        self.draining = True
        if self.active:
            with suppress(TimeoutError):
                async with asyncio.timeout(window_s):
                    await self._idle.wait()
        for server in self._listening:
            server.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(timeout=1.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.active += 1
        response: web.StreamResponse
        try:
            if request.method == hdrs.METH_OPTIONS:
                response = respond(Reply(204, dict(PREFLIGHT_HEADERS)))
            else:
                response = await self.handler(request)
        except ConnectionError:
            raise
        except Exception as error:
            response = respond(failure(error))
        finally:
            self.active -= 1
            if self.draining and not self.active:
                self._idle.set()
        if self.draining and not response.prepared:
            response.force_close()
        _count(request.method, response.status).inc()
        return response


@lru_cache(maxsize=1024)  # methods times statuses; looking a label up costs as much as counting
def _count(method: str, status: int) -> Counter:
    """Return the counter of a kind of request; clients may send any method, labels are bounded."""
    known = method in ("GET", "POST", "PUT", "HEAD", "DELETE")
    return metrics.REQUESTS.labels(method if known else "other", str(status))


@dataclass(slots=True)
class Health:
    """What the admin port tells."""

    ready: bool = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer /healthz (the loop turns), /readyz (send traffic here) and /metrics."""
        match request.path:
            case "/healthz" | "/health":
                return _text(200, "ok\n")
            case "/readyz":
                return _text(200, "ready\n") if self.ready else _text(503, "not ready\n")
            case "/metrics":
                response = web.Response(body=generate_latest())
                response.headers["Content-Type"] = CONTENT_TYPE_LATEST
                return response
            case _:
                return respond(_plain(404, "not_found", "only /healthz, /readyz and /metrics"))


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers={"Cache-Control": "no-store"})


async def listen_admin(admin: Listener, settings: Settings) -> int:
    """Listen where an operator looks; return the port."""
    if settings.admin_socket is not None:
        return await admin.listen(path=settings.admin_socket)
    return await admin.listen(host=settings.admin_host, port=settings.admin_port)


async def watch_loop_delay() -> None:
    """Measure how late the loop is, for ever."""
    loop = asyncio.get_running_loop()
    step_s = 0.1
    while True:
        due = loop.time() + step_s
        await asyncio.sleep(step_s)
        metrics.LOOP_DELAY.observe(max(0.0, loop.time() - due))


def tune_interpreter() -> None:
    """Let the commit thread have its turn soon, and the collector run seldom."""
    sys.setswitchinterval(0.0005)  # 5 ms, the default, is many fsyncs long
    # Requests leave few cycles behind; by default every 700 of their objects would set off a
    # search.
    gc.set_threshold(50_000, 20, 50)


def base_url(request: web.BaseRequest, public_url: str | None) -> str:
    """Return scheme and host as the client used them, without a slash at the end."""
    if public_url is not None:
        return public_url.rstrip("/")
    forwarded = request.headers.get("X-Forwarded-Proto", "").lower()
    scheme = forwarded if forwarded in ("http", "https") else "http"
    return f"{scheme}://{request.host}"
