"""Reading as an iteration of chunks: to the tail, or on from there until the stream closes."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import aiohttp

from deploy.client.events import EventParser, decoded, parse_control
from deploy.client.failures import BadAnswer, Unavailable
from deploy.client.retry import backoff_s
from deploy.client.wire import Headers, Wire, is_true
from shared.protocol import jsonmode, names
from shared.protocol.media import is_json
from shared.protocol.request import Live

# An empty live reply that came sooner did not wait: a cache or a server that would be polled hot.
LIVE_WAIT_MIN_S = 0.25
# An event stream that lasted this long was no failure: servers end them every minute or so.
STEADY_S = 1.0
# Servers cut reads at a MiB or a few; one that never ends a body stops here.
CHUNK_BYTES_MAX = 1 << 30


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read returned, complete."""

    body: bytes = field(repr=False)
    next_offset: str
    up_to_date: bool
    closed: bool
    cursor: str | None
    content_type: str

    @property
    def empty(self) -> bool:
        return jsonmode.is_empty(self.body) if is_json(self.content_type) else not self.body


Chunks = AsyncGenerator[Chunk, None]
Received = Callable[[int], None]


async def read(
    wire: Wire, offset: str, live: Live | None = None, received: Received = lambda count: None
) -> Chunks:
    """Yield chunks from offset on to the tail; live, on from there until the stream closes.

    A chunk is yielded once it is complete, so what was yielded ends where `next_offset` says,
    whatever happens afterwards: nothing is lost or doubled, within one call or over several.

    Args:
        offset: a token that the server gave, "-1" for the beginning, or "now" for the tail.
        received: called with the number of body bytes that came, as they come.
    """
    while True:
        # Also before a live read: these replies are the ones that every cache shares.
        chunk = await _chunk(wire, {names.OFFSET: offset}, received)
        yield chunk
        if chunk.closed or chunk.up_to_date:
            break
        if chunk.next_offset == offset:
            raise BadAnswer(f"the read from offset {offset} does not move on")
        offset = chunk.next_offset
    if live is None or chunk.closed:
        return
    follow = _events if live is Live.SSE else _polls
    async with aclosing(follow(wire, chunk, received)) as chunks:
        async for news in chunks:
            yield news


async def _polls(wire: Wire, last: Chunk, received: Received) -> Chunks:
    """Follow by long-polling (PROTOCOL §5.7)."""
    hurried = 0
    while not last.closed:
        asked_at = wire.timing.clock()
        chunk = await _chunk(wire, live_query(Live.LONG_POLL, last), received)
        waited_s = wire.timing.clock() - asked_at
        if is_news(chunk, last):
            yield chunk
            hurried = 0
        elif waited_s < LIVE_WAIT_MIN_S and not chunk.closed:
            hurried += 1
        last = moved(last, chunk)
        if hurried:
            await wire.timing.pause(backoff_s(hurried, wire.timing.chance()))


async def _chunk(wire: Wire, query: Headers, received: Received) -> Chunk:
    """Read one chunk whole, however many attempts it takes."""
    outage = wire.outage()
    while True:
        try:
            async with wire.get(query) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    received(len(piece))
                    check_size(len(body))
                return chunk_of(response, bytes(body), query)
        except Unavailable as failure:
            await outage.wait(failure)


async def _events(wire: Wire, last: Chunk, received: Received) -> Chunks:
    """Follow by server-sent events (PROTOCOL §5.8), over as many connections as it takes."""
    outage = wire.outage()
    while True:
        connected_at = wire.timing.clock()
        try:
            async with wire.get(live_query(Live.SSE, last)) as response:
                async for chunk in _events_of(response, last.content_type, received):
                    if is_news(chunk, last):
                        outage.over()
                        yield chunk
                    last = moved(last, chunk)
                    if chunk.closed:
                        return
            raise Unavailable("the server ended the event stream")
        except Unavailable as failure:
            if wire.timing.clock() - connected_at >= STEADY_S:
                outage.over()
            await outage.wait(failure)


async def _events_of(
    response: aiohttp.ClientResponse, content_type: str, received: Received
) -> Chunks:
    """Yield a chunk per control event: only that tells the offset after the data before it."""
    if response.content_type != "text/event-stream":
        raise BadAnswer(f"the server sends {response.content_type}, not an event stream")
    encoded = response.headers.get(names.SSE_DATA_ENCODING, "").lower() == "base64"
    parser = EventParser()
    bodies: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        for name, data in parser.feed(piece):
            if name == "data":
                bodies.append(decoded(data) if encoded else data)
                size += len(bodies[-1])
                received(len(bodies[-1]))
                check_size(size)
            elif name == "control":
                control = parse_control(data)
                yield Chunk(
                    body=jsonmode.join(bodies) if is_json(content_type) else b"".join(bodies),
                    next_offset=control.next_offset,
                    up_to_date=control.up_to_date,
                    closed=control.closed,
                    cursor=control.cursor,
                    content_type=content_type,
                )
                bodies, size = [], 0


def check_size(size: int) -> None:
    """Refuse a chunk that does not end."""
    if size > CHUNK_BYTES_MAX:
        raise BadAnswer(f"the server sends more than {CHUNK_BYTES_MAX} bytes at once")


def chunk_of(response: aiohttp.ClientResponse, body: bytes, query: Headers) -> Chunk:
    """Make a chunk of a read's reply."""
    headers = response.headers
    next_offset = headers.get(names.STREAM_NEXT_OFFSET)
    if response.status == 204 and names.LIVE in query:
        # It brought nothing, so the reader stays: a tail that moved meanwhile is still to be read.
        next_offset = query[names.OFFSET]
    if not next_offset:
        raise BadAnswer("the reply has no Stream-Next-Offset: this is not the URL of a stream")
    return Chunk(
        body=body,
        next_offset=next_offset,
        up_to_date=is_true(headers, names.STREAM_UP_TO_DATE),
        closed=is_true(headers, names.STREAM_CLOSED),
        cursor=headers.get(names.STREAM_CURSOR),
        content_type=headers.get("Content-Type", ""),
    )


def live_query(live: Live, last: Chunk) -> Headers:
    """Ask for what comes after last."""
    query = {names.OFFSET: last.next_offset, names.LIVE: live.value}
    return query if last.cursor is None else query | {names.CURSOR: last.cursor}


def is_news(chunk: Chunk, last: Chunk) -> bool:
    """Tell whether a live chunk goes beyond the last one, and is not that one, delivered again.

    The order of offsets is the one thing that clients may know of them (PROTOCOL §8).

    Raises:
        BadAnswer: it brings data from before; were offsets out of order, dropping it would lose it.
    """
    if chunk.next_offset < last.next_offset and not chunk.empty:
        raise BadAnswer(f"the server went back from {last.next_offset} to {chunk.next_offset}")
    return chunk.next_offset > last.next_offset


def moved(last: Chunk, chunk: Chunk) -> Chunk:
    """Return where a live read stands after chunk: never before where it was."""
    return chunk if is_news(chunk, last) else replace(chunk, next_offset=last.next_offset)
