"""The protocol as a client speaks it: short calls, and answers as values."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp
import orjson
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

TEXT, JSON, BINARY = "text/plain", "application/json", "application/octet-stream"
ZERO_TOKEN = "0000000000000000_0000000000000000"

# Far above what any answer takes: only a server that hangs gets there.
ANSWER_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def next(self) -> str:
        return self.headers["Stream-Next-Offset"]

    @property
    def closed(self) -> bool:
        return self.headers.get("Stream-Closed") == "true"

    @property
    def up_to_date(self) -> bool:
        return self.headers.get("Stream-Up-To-Date") == "true"

    @property
    def cache_control(self) -> str:
        return self.headers["Cache-Control"]

    def refusal(self, control: str = "no-store") -> tuple[str, str]:
        """Return code and message of an error, whose form is checked on the way."""
        assert self.status >= 400, self
        assert self.headers["Content-Type"] == "application/json"
        assert self.headers.getall("Cache-Control") == [control]
        told = orjson.loads(self.body)
        assert set(told) == {"error"}
        assert set(told["error"]) == {"code", "message"}
        code, message = told["error"]["code"], told["error"]["message"]
        assert isinstance(code, str)
        assert code
        assert isinstance(message, str)
        assert message
        return code, message


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event; a comment has the kind ":"."""

    kind: str
    data: str

    @property
    def control(self) -> dict[str, str | bool]:
        assert self.kind == "control", self
        fields: dict[str, str | bool] = orjson.loads(self.data)
        return fields


@dataclass(frozen=True, slots=True)
class Server:
    """Somewhere to send requests to."""

    url: str
    session: aiohttp.ClientSession
    prefix: str = "/v1/stream/"

    def stream(self, path: str | None = None) -> Stream:
        """Return a stream that no other test has, or the one at a path (not yet escaped)."""
        return Stream(self, self.prefix + quote(path or f"t-{uuid.uuid4().hex}", safe="/"))

    async def ask(
        self, method: str, target: str, headers: Headers = (), body: bytes | None = None
    ) -> Answer:
        """Send a request; target goes out as it is."""
        # aiohttp warns of large bodies in one piece.
        data = io.BytesIO(body) if body is not None and len(body) > 2**19 else body
        async with self.session.request(
            method,
            URL(self.url + target, encoded=True),
            headers=CIMultiDict(headers),
            data=data,
            allow_redirects=False,
        ) as reply:
            return Answer(reply.status, reply.headers, await reply.read())


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream by its URL path."""

    server: Server
    target: str

    @property
    def path(self) -> str:
        """What the server calls it: the path below the prefix (test names need no escapes)."""
        return self.target.removeprefix(self.server.prefix)

    async def put(
        self, body: bytes = b"", kind: str | None = TEXT, headers: Headers = ()
    ) -> Answer:
        return await self._send("PUT", body, kind, headers)

    async def post(self, body: bytes, kind: str | None = TEXT, headers: Headers = ()) -> Answer:
        return await self._send("POST", body, kind, headers)

    async def close(self) -> Answer:
        return await self._send("POST", b"", None, {"Stream-Closed": "true"})

    async def get(self, query: str = "", headers: Headers = ()) -> Answer:
        return await self.server.ask("GET", f"{self.target}?{query}", headers)

    async def at(self, offset: str, headers: Headers = ()) -> Answer:
        return await self.get(f"offset={offset}", headers)

    async def poll(self, offset: str, cursor: str | None = None) -> Answer:
        more = "" if cursor is None else f"&cursor={cursor}"
        return await self.get(f"offset={offset}&live=long-poll{more}")

    async def head(self) -> Answer:
        return await self.server.ask("HEAD", self.target)

    async def delete(self) -> Answer:
        return await self.server.ask("DELETE", self.target)

    async def fork(self, source: Stream, body: bytes = b"", headers: Headers = ()) -> Answer:
        """Create this stream as a fork of another."""
        named = CIMultiDict(headers)
        named["Stream-Forked-From"] = source.target
        return await self.put(body, None, named)

    async def produce(
        self, body: bytes, seq: int, epoch: int = 0, producer: str = "p", close: bool = False
    ) -> Answer:
        """Append as an idempotent producer."""
        headers = {
            "Producer-Id": producer,
            "Producer-Epoch": str(epoch),
            "Producer-Seq": str(seq),
        }
        return await self.post(body, headers=headers | ({"Stream-Closed": "true"} if close else {}))

    async def whole(self) -> bytes:
        """Read everything, chunk by chunk."""
        pieces = []
        answer = await self.at("-1")
        while True:
            assert answer.status == 200, answer
            pieces.append(answer.body)
            if answer.up_to_date:
                return b"".join(pieces)
            answer = await self.at(answer.next)

    async def wait_until_over(self) -> None:
        """Wait for the stream to expire, by what does not renew it."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while (await self.head()).status == 200:  # noqa: ASYNC110  # another process ends it
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def sse(self, offset: str, cursor: str | None = None) -> AsyncIterator[EventStream]:
        """Open an event stream."""
        more = "" if cursor is None else f"&cursor={cursor}"
        target = f"{self.server.url}{self.target}?offset={offset}&live=sse{more}"
        async with self.server.session.get(URL(target, encoded=True)) as reply:
            yield EventStream(reply)

    async def events(self, offset: str) -> list[Event]:
        """Return the events of an event stream that ends by itself, without comments."""
        async with self.sse(offset) as stream:
            assert stream.reply.status == 200
            return [event async for event in stream if event.kind != ":"]

    async def _send(self, method: str, body: bytes, kind: str | None, headers: Headers) -> Answer:
        named = CIMultiDict(headers)
        if kind is not None:
            named.add("Content-Type", kind)
        return await self.server.ask(method, self.target, named, body or None)


@dataclass(slots=True)
class EventStream:
    """Events as they arrive, parsed as a browser does it."""

    reply: aiohttp.ClientResponse
    _buffer: bytes = b""
    _ready: list[Event] = field(default_factory=list)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            piece = await self.reply.content.readany()
            if not piece:
                assert not self._buffer, "an event is cut off"
                raise StopAsyncIteration
            *blocks, self._buffer = (self._buffer + piece).split(b"\n\n")
            self._ready += (_parse_event(block) for block in blocks)
        return self._ready.pop(0)

    async def event(self) -> Event:
        """Return the next event that is no comment."""
        async for event in self:
            if event.kind != ":":
                return event
        raise AssertionError("the event stream has ended")


def _parse_event(block: bytes) -> Event:
    kind, lines = "message", []
    assert b"\r" not in block
    for line in block.split(b"\n"):
        name, _, value = line.decode().partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            lines.append(value)
        else:
            assert name == "", block
            kind = ":"
    return Event(kind, "\n".join(lines))


def token(offset: str) -> tuple[int, int]:
    """Return incarnation and position of an offset, as a Yjs provider takes it apart."""
    incarnation, position = offset.split("_")
    assert len(incarnation) == len(position) == 16
    return int(incarnation), int(position)


def moved(offset: str, by: int) -> str:
    """Return an offset some positions on."""
    incarnation, position = token(offset)
    return f"{incarnation:016d}_{position + by:016d}"
