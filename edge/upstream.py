"""Upstream: reads from an origin, another edge, or any server of the protocol."""

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import SOCK_STREAM
from typing import Final
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from aiohappyeyeballs import start_connection
from yarl import URL

from edge.getter import IDLE_S, BrokenReply, Getter, Got
from shared import metrics
from shared.protocol import caching, jsonmode, media, names
from shared.protocol.chunk import Chunk
from shared.protocol.errors import ProtocolError, Unavailable
from shared.protocol.reply import COMMON_HEADERS
from shared.protocol.request import Live

_NEXT_ADDRESS_S: Final = 0.25  # how long one address of a name is tried alone (RFC 8305 §8)
_GREETING_S: Final = 1.0  # a start is not held up for longer
# Refusals pass these on; what else a server says of itself stays with it.
_REFUSAL_HEADERS: Final = (
    *("Retry-After", "Allow", names.STREAM_CLOSED),
    *(names.STREAM_NEXT_OFFSET, names.STREAM_EARLIEST_OFFSET),
)
_TRANSIENT: Final = (408, 425, 429)
_NEXT, _UP_TO_DATE, _CLOSED, _TTL, _EXPIRES_AT = (
    name.lower()
    for name in (
        names.STREAM_NEXT_OFFSET,
        names.STREAM_UP_TO_DATE,
        names.STREAM_CLOSED,
        names.STREAM_TTL,
        names.STREAM_EXPIRES_AT,
    )
)
_DIGITS: Final = re.compile(r"[0-9]{1,12}")


class Refused(ProtocolError):
    """The upstream refuses a read; its reply is passed on."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]  # one class for all that an upstream may say
        self.code = code  # type: ignore[misc]
        self._headers = dict(headers)

    def headers(self) -> dict[str, str]:
        return self._headers


class BrokeOff(Exception):
    """The upstream went away after it may have got a request."""


class OutcomeUnknown(Unavailable):
    """The upstream went away after it may have got the request."""

    status = 502
    code = "outcome_unknown"

    def headers(self) -> dict[str, str]:
        return {}  # no Retry-After: repeating a plain append could double it


def outcome_unknown(reason: str) -> OutcomeUnknown:
    """Return the refusal to whoever can't be told what came of their request."""
    return OutcomeUnknown(
        f"the upstream broke off, the request may or may not have had its effect: {reason}"
    )


async def _send_once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send a request once: aiohttp repeats PUT and DELETE when a kept connection breaks.

    The second DELETE would tell a client that its stream was never there. An error that is none of
    aiohttp's own is not repeated.
    """
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ClientError as error:
        raise BrokeOff(str(error) or type(error).__name__) from error


class Upstream:
    """One server to read from, and to pass other requests on to."""

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        timeout_s: float,
        connections: int,
        socket: Path | None = None,
    ) -> None:
        """Prepare; connects when it is asked something.

        Args:
            url: scheme, host and port.
            timeout_s: until the head of a reply, and between two pieces of its body.
            connections: bound on reads under way, and once more on waits under way.
            socket: Unix socket to connect to instead.
        """
        self._url = url.rstrip("/")
        self._socket = socket
        self._prefix = prefix
        self._timeout_s = timeout_s
        # Whether it is one of ours, with nothing in between, as its last reply has it. Unix sockets
        # are between processes of one service.
        self.is_headwater = socket is not None
        self.reads = asyncio.Semaphore(connections)
        self.waits = asyncio.Semaphore(connections)
        where = URL(self._url)
        # Made once: to read the system's certificates takes 20 ms.
        self._tls = ssl.create_default_context() if where.scheme == "https" else None
        self._getter = Getter(self.connect, where.host_port_subcomponent or "", timeout_s)
        self._identity: dict[str, str] = {}
        if where.user is not None or where.password is not None:
            login = f"{where.user or ''}:{where.password or ''}".encode()
            self._identity["Authorization"] = f"Basic {b64encode(login).decode()}"
        connector = (
            aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
            if socket is None
            else aiohttp.UnixConnector(str(socket), limit=0, keepalive_timeout=IDLE_S)
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # What a client did not say is not said for it: a Content-Type that aiohttp makes up
            # would become the stream's.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def close(self) -> None:
        """Close all connections."""
        self._getter.close()
        await self._session.close()

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect a protocol of somebody else's."""
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            await loop.create_unix_connection(factory, str(self._socket))
            return
        url = URL(self._url)
        assert url.host is not None
        found = await loop.getaddrinfo(url.host, url.port, type=SOCK_STREAM)
        # A name may have addresses that do not answer (RFC 8305).
        sock = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1)
        name = url.host if self._tls is not None else None
        try:
            await loop.create_connection(factory, sock=sock, ssl=self._tls, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    async def greet(self) -> None:
        """Learn whether it is one of ours, if it says so soon; else its first reply tells."""
        if self.is_headwater:
            return
        with suppress(Unavailable, BrokeOff, aiohttp.ClientError, TimeoutError):
            async with (
                asyncio.timeout(min(self._timeout_s, _GREETING_S)),
                self.pass_on("GET", "/health", {}, None),
            ):
                pass

    def _look_at(self, server: str | None, via: str | None) -> None:
        if self._socket is None:
            self.is_headwater = server == COMMON_HEADERS["Server"] and via is None

    async def read(self, path: str, offset: str, held: Chunk | None = None) -> Chunk:
        """Read what is at an offset now.

        Args:
            held: a chunk of that very offset: returned again if it is still what the upstream has.

        Raises:
            Refused: the upstream says no.
            Unavailable: it cannot be reached, or says nothing sensible.
        """
        headers = {} if held is None or held.etag is None else {"If-None-Match": held.etag}
        got = await self._get("read", path, {"offset": offset}, headers, 0.0)
        if got.status == 304:
            assert held is not None
            return held
        return _chunk(got)

    async def wait(self, path: str, offset: str, cursor: str | None, wait_s: float) -> Chunk:
        """Long-poll at an offset; an empty chunk when nothing came.

        Args:
            wait_s: how long the upstream may take beyond an ordinary reply.

        Raises:
            Refused, Unavailable: as `read`.
        """
        query = {"offset": offset, "live": Live.LONG_POLL.value}
        if cursor is not None:
            query["cursor"] = cursor
        return _chunk(await self._get("wait", path, query, {}, wait_s))

    @asynccontextmanager
    async def pass_on(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request as it came, and yield the reply.

        Raises:
            Unavailable: nothing was sent, so it may be sent again.
            BrokeOff, aiohttp.ClientError, TimeoutError: it is not known what came of it.
        """
        url = URL(self._url + target, encoded=True)
        timeout = aiohttp.ClientTimeout(sock_connect=self._timeout_s, sock_read=self._timeout_s)
        try:
            reply = await self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                timeout=timeout,
                allow_redirects=False,
                middlewares=(_send_once,),
            )
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"the upstream cannot be reached: {error.os_error}") from None
        async with reply:
            self._look_at(reply.headers.get("Server"), reply.headers.get("Via"))
            yield reply

    async def _get(
        self,
        mode: str,
        path: str,
        query: dict[str, str],
        headers: dict[str, str],
        wait_s: float,
    ) -> Got:
        # Parameters in lexicographic order: one URL for one question, wherever it is cached.
        target = f"{self._prefix}{quote(path, safe='/')}?{urlencode(sorted(query.items()))}"
        places = self.reads if mode == "read" else self.waits
        await self._take(places)
        outcome = "failed"
        try:
            got = await self._getter.get(target, self._identity | headers, self._timeout_s + wait_s)
            outcome = str(got.status)
        except (OSError, BrokenReply) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the upstream cannot be read: {reason}") from None
        finally:
            places.release()
            metrics.UPSTREAM_READS.labels(mode, outcome).inc()
        self._look_at(got.headers.get("server"), got.headers.get("via"))
        if got.status not in (200, 204) and not (got.status == 304 and "If-None-Match" in headers):
            _refuse(got)
        return got

    async def _take(self, places: asyncio.Semaphore) -> None:
        """Wait for one of the bounded places, but not for ever: a crowd that has left must not
        queue on."""
        if not places.locked():
            await places.acquire()  # at once, without a timer
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await places.acquire()
        except TimeoutError:
            raise Unavailable("too many reads of the upstream are under way") from None


def _refuse(got: Got) -> None:
    """Raise what a reply that is no success says."""
    if got.status >= 500 or got.status in _TRANSIENT or got.status < 400:
        # One reader's bad moment must not end what all the others wait for.
        raise Unavailable(f"the upstream answers {got.status}")
    words = got.body.decode(errors="replace").strip()
    code, message = "refused", words[:500] or f"the upstream answers {got.status}"
    try:
        told = orjson.loads(got.body)["error"]
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        pass  # a foreign server words its refusals as it likes
    headers = {k: got.headers[k.lower()] for k in _REFUSAL_HEADERS if k.lower() in got.headers}
    raise Refused(got.status, code, message, headers)


def _chunk(got: Got) -> Chunk:
    """Return the chunk in a reply."""
    headers, body = got.headers, got.body
    following = headers.get(_NEXT)
    if following is None:
        raise Unavailable("the upstream's reply has no Stream-Next-Offset: not a stream server?")
    content_type = headers.get("content-type", names.DEFAULT_CONTENT_TYPE)
    ttl = headers.get(_TTL, "")
    return Chunk(
        content_type=content_type,
        next=following,
        body=body,
        empty=jsonmode.is_empty(body) if media.is_json(content_type) else not body,
        at_tail=_UP_TO_DATE in headers,
        closed=headers.get(_CLOSED, "").lower() == "true",
        etag=headers.get("etag"),
        cache_control=headers.get("cache-control", caching.NO_STORE),
        ttl_s=int(ttl) if _DIGITS.fullmatch(ttl) else None,
        expires_at=headers.get(_EXPIRES_AT),
    )
