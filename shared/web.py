"""aiohttp glue: one entry for every request, replies from rules, listening sockets, health,
graceful stop."""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared import metrics
from shared.config import Settings
from shared.connection import Connection, Connections, Handler
from shared.plain import forwarded_scheme
from shared.protocol.errors import (
    BadRequest,
    BodyTooLarge,
    ProtocolError,
    RequestTimeout,
    Unavailable,
)
from shared.protocol.reply import COMMON_HEADERS, PREFLIGHT_HEADERS, Reply, refused
from shared.sockets import BACKLOG, listen_tcp, listen_unix
from shared.tasks import wait_while

_log = logging.getLogger(__name__)

# A body may take as long as its line is slow, but it has to go on.
_SILENCE_S: Final = 30.0
_KEEPALIVE_S: Final = 75.0  # longer than common proxies keep theirs, so that they close first
_HEADER_S: Final = 10.0  # from the first byte of a head to its end
# Of all bodies together: a few dozen of the largest, or any number of ordinary ones.
_BODIES_BYTES_MAX: Final = 256 * 1024 * 1024
# Connections that are kept get this long, before a server stops, to bring one more request: its
# reply tells them that it is the last. Who writes more often than that never sees one break off.
REST_S: Final = 0.25


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
            RequestTimeout: it does not go on.
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
                async with asyncio.timeout(_SILENCE_S):
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
        except TimeoutError:
            self._held_bytes -= size
            raise RequestTimeout(f"no more of the body within {_SILENCE_S:g} s") from None
        except BaseException:
            self._held_bytes -= size
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def release(self, body: bytes) -> None:
        """Account for a body that is no longer held."""
        self._held_bytes -= len(body)


def _expects_continue(request: web.BaseRequest) -> bool:
    return request.headers[hdrs.EXPECT].lower() == "100-continue"


def _refuse(status: int, error: BaseException | None, message: str | None) -> web.Response:
    """Return the reply to what aiohttp could not parse, or a handler could not answer."""
    if status < 500:
        detail = " ".join((message or "malformed request").split())[:200]
        return respond(_plain(status, "bad_request", detail))
    return respond(failure(error or RuntimeError(message)))


@dataclass(slots=True)
class Listener:
    """One HTTP entry: its requests, its sockets, its way to stop."""

    handler: Handler
    keepalive_s: float = _KEEPALIVE_S
    header_s: float = _HEADER_S
    counted: bool = True  # probes and scrapes are no requests of clients
    active: int = 0
    draining: bool = False
    _made: Connections | None = None
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
        sock = listen_unix(path) if path is not None else None
        if sock is None:
            sock = listen_tcp(host or "127.0.0.1", port, reuse_port=reuse_port)
            port = int(sock.getsockname()[1])
        loop = asyncio.get_running_loop()
        if path is not None:
            server = await loop.create_unix_server(self._connections(), sock=sock, backlog=BACKLOG)
        else:
            server = await loop.create_server(self._connections(), sock=sock, backlog=BACKLOG)
        self._listening.append(server)
        return port

    @property
    def connections(self) -> int:
        """How many are open."""
        return 0 if self._made is None else self._made.count

    async def take(self, sock: socket.socket, received: bytes) -> None:
        """Serve a connection that somebody else has accepted, and perhaps read from.

        This listener need not listen itself.

        Args:
            sock: belongs to the connection from now on, and is closed if this fails.
            received: the bytes that were read and not answered; they come first.
        """
        await self._connections().take(sock, received)

    def adopt(self, received: bytes) -> Connection:
        """Return a connection for a transport whose protocol somebody else was until now; whoever
        sets it calls `connection_made` and `hold_back`.

        Args:
            received: the bytes that were read and not answered; they come first.
        """
        return self._connections().connection(received)

    def give_back(self, request: web.BaseRequest) -> socket.socket | None:
        """Give away the connection of a request, before there is any reply.

        The handler answers on the socket, or lets somebody do so, and ends at once by raising
        `GivenBack`: no await in between.

        Returns:
            None: it must stay: not HTTP/1.1, not kept alive, a body, more received than the
            request, or a reply before that is not sent to its end.
        """
        connection = request.protocol
        assert isinstance(connection, Connection)
        return None if self.draining else connection.let_go(request)

    async def drain(self, window_s: float) -> None:
        """Stop: go on answering until nothing is under way, and connections that are used have
        heard that they end, at most window_s; then close.

        The sockets listen until the end: closing them earlier would reset who waits to be accepted.
        """
        self.draining = True
        rest_s = min(REST_S, window_s)
        await wait_while(lambda: bool(self.active or self.connections), rest_s)
        await wait_while(lambda: bool(self.active), window_s - rest_s)
        for server in self._listening:
            server.close()
        if self._made is not None:
            self._made.pre_shutdown()
            await self._made.shutdown(timeout=1.0)

    def _connections(self) -> Connections:
        if self._made is None:
            self._made = Connections(self._handle, _refuse, self.keepalive_s, self.header_s)
        return self._made

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
            if isinstance(error, RequestTimeout):
                response.force_close()  # what follows is not the next request
        finally:
            self.active -= 1
        if self.draining and not response.prepared:
            response.force_close()
        if self.counted:
            metrics.count_requests(request.method, response.status)
        return response


@dataclass(slots=True)
class Health:
    """What the admin port tells."""

    ready: bool = False
    more: Callable[[web.BaseRequest], web.Response | None] = lambda request: None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer /healthz (the loop turns), /readyz (send traffic here), /metrics, and what a role
        adds."""
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
                return self.more(request) or respond(
                    _plain(404, "not_found", "only /healthz, /readyz and /metrics")
                )


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
    step_s = 0.25
    while True:
        due = loop.time() + step_s
        await asyncio.sleep(step_s)
        metrics.LOOP_DELAY.observe(max(0.0, loop.time() - due))


def base_url(request: web.BaseRequest, public_url: str | None) -> str:
    """Return scheme and host as the client used them, without a slash at the end."""
    if public_url is not None:
        return public_url.rstrip("/")
    scheme = forwarded_scheme(request.headers.get("X-Forwarded-Proto", ""))
    return f"{scheme}://{request.host}"
