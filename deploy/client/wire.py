"""HTTP with the server of one stream: one request and its answer, sent again where that is safe.

A read may always be sent again. A write is, only where that can't store it twice: when the server
was never reached, when it said 429, or when it recognises a repeat.
"""

import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from deploy.client.connections import Connector
from deploy.client.failures import ClientFailure, Refused, Unavailable
from deploy.client.refusals import failure_from, failure_of
from deploy.client.retry import Outage, Timing
from shared.protocol import names

CONNECT_TIMEOUT_S = 10.0
# Longer than a server takes for a commit or a chunk by far, even on a line that crawls.
IDLE_TIMEOUT_S = 30.0
# Servers hold a live reply for 20 to 60 s, and nothing need be said meanwhile.
LIVE_EXTRA_S = 60.0
# A body that takes long to send is no dead server, unless it moves more slowly than this.
UPLOAD_BYTES_PER_S_MIN = 32 << 10
READ_BUFFER_BYTES = 256 << 10

Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to anything but a read."""

    status: int
    headers: Mapping[str, str]
    repeated: bool = False  # an earlier attempt may have been applied

    @property
    def next_offset(self) -> str | None:
        return self.headers.get(names.STREAM_NEXT_OFFSET)

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")

    @property
    def closed(self) -> bool:
        return is_true(self.headers, names.STREAM_CLOSED)


class Wire:
    """The connections to the server of one stream; a context manager that closes them.

    Args:
        url: the stream's URL, without parameters of the protocol.
        token: sent as `Authorization: Bearer`, to the origin of url alone.
        retry_for_s: how long a request is tried again, from its first failure on.
        idle_timeout_s: how long the server may be silent; live reads wait LIVE_EXTRA_S longer.
        notice: called with one line when the server stays away.
    """

    def __init__(
        self,
        url: URL,
        *,
        token: str | None = None,
        retry_for_s: float = 10.0,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        timing: Timing | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.url = url
        self.timing = timing or Timing()
        self._token = token
        self._retry_for_s = retry_for_s
        self._idle_timeout_s = idle_timeout_s
        self._notice = notice

    async def __aenter__(self) -> Self:
        # What must not be sent twice does not go where the server may just be hanging up.
        self._connectors = Connector(), Connector(force_close=True)
        self._kept, self._fresh = map(self._session, self._connectors)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for connector in self._connectors:
            connector.abort()  # all that was asked for is done, or given up
        await self._kept.close()
        await self._fresh.close()

    def _session(self, connector: Connector) -> aiohttp.ClientSession:
        headers = {"User-Agent": "headwater"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            middlewares=(send_once,),
            read_bufsize=READ_BUFFER_BYTES,
        )

    def outage(self) -> Outage:
        """Return the patience with one request."""
        return Outage(self._retry_for_s, self.timing, self._notice)

    async def ask(
        self, method: str, headers: Headers, body: bytes = b"", *, repeatable: bool = True
    ) -> Answer:
        """Send one request until it is answered, refused, or must not be sent again.

        Args:
            repeatable: whether the server stores it once, however often it is sent.

        Raises:
            ClientFailure: with `uncertain`, when it may have been applied all the same.
        """
        session = self._kept if repeatable else self._fresh
        seconds = self._idle_timeout_s + len(body) / UPLOAD_BYTES_PER_S_MIN
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIMEOUT_S)
        outage = self.outage()
        uncertain = False
        while True:
            try:
                async with (
                    translated(),
                    session.request(
                        method,
                        self.url,
                        headers=headers,
                        data=io.BytesIO(body) if body else None,  # written in pieces
                        timeout=timeout,
                        # A redirected POST turns into a GET, whose 200 would look like success.
                        allow_redirects=method == "HEAD",
                        skip_auto_headers=("Content-Type",),
                    ) as response,
                ):
                    if response.status < 300:
                        return Answer(response.status, response.headers, uncertain)
                    raise await failure_of(response)
            except ClientFailure as failure:
                uncertain = failure.uncertain = uncertain or failure.uncertain
                if isinstance(failure, Refused):
                    raise
                if uncertain and not repeatable:
                    raise Unavailable(str(failure), uncertain=True) from failure
                if not isinstance(failure, Unavailable):
                    raise
                await outage.wait(failure)

    @asynccontextmanager
    async def get(self, query: Headers) -> AsyncIterator[aiohttp.ClientResponse]:
        """Read once, and yield the answer, whose body is still to come.

        Raises:
            ClientFailure: it is no success, or was lost before its end.
        """
        idle_s = self._idle_timeout_s + (LIVE_EXTRA_S if names.LIVE in query else 0)
        # Sorted, so that caches see one URL for one question (PROTOCOL §10.1).
        parameters = sorted([*self.url.query.items(), *query.items()])
        async with (
            translated(),
            self._kept.get(
                self.url.with_query(parameters),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_s
                ),
            ) as response,
        ):
            if response.status not in (200, 204):
                raise await failure_of(response)
            yield response


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Raise what goes wrong with a connection as a ClientFailure."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        raise failure_from(error) from error


async def send_once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send a request once.

    aiohttp by itself repeats what it calls idempotent when the connection is lost, without a pause
    and without telling: no count of what may have been applied. It can't repeat after our failures.
    """
    async with translated():
        return await send(request)


def is_true(headers: Mapping[str, str], name: str) -> bool:
    """Tell whether a flag header is set (PROTOCOL §4.1: in any case of "true")."""
    return headers.get(name, "").strip().lower() == "true"
