"""Large bodies in the origin's lane: in pieces, too many, too slow, refused, or never whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from origin import lane as lanes
from origin.lane import BODY_BYTES_MAX
from origin.streams import Streams
from shared import web
from shared.connection import Connection
from shared.protocol.errors import Unavailable
from shared.protocol.expiry import NEVER
from shared.protocol.stream import Create
from shared.web import Listener
from tests.edge.served import PREFIX, Reply, run, until
from tests.origin.test_lane_differential import Served, served

KIND = "Content-Type: application/octet-stream"
LARGE = BODY_BYTES_MAX + 1
LANE_MAX = lanes._LARGE_BYTES_MAX
CREATE = Create("application/octet-stream", NEVER, closed=False, body=b"")
SIZES = (1, 900, BODY_BYTES_MAX, LARGE, 200_000, LANE_MAX)


def head(size: int, *fields: str) -> bytes:
    lines = (f"POST {PREFIX}s HTTP/1.1", "Host: x", KIND, f"Content-Length: {size}", *fields)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def body(size: int) -> bytes:
    return Random(size).randbytes(size)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the lane had received of each connection that it did not keep."""
    seen: list[bytes] = []
    adopt = Listener.adopt

    def spy(listener: Listener, received: bytes) -> Connection:
        seen.append(received)
        return adopt(listener, received)

    monkeypatch.setattr(Listener, "adopt", spy)
    return seen


@asynccontextmanager
async def one(*, lane: bool = True, **changes: Any) -> AsyncIterator[Served]:
    """Serve one stream; at the end nothing is held."""
    async with served(lane=lane, **changes) as here:
        # Past the lane, so that whatever it hands over belongs to the test.
        await here.origin.handlers.streams.create("s", CREATE)
        yield here
        await holds(here, 0)


async def holds(here: Served, size: int) -> None:
    """Wait until the lane holds so many bytes."""
    await until(lambda: here.origin.lane.held_bytes == size)


async def stored(here: Served) -> bytes:
    """Return all of the stream."""
    content, offset = b"", "-1"
    while True:
        reply = await here.ask(f"s?offset={offset}")
        assert reply.status == 200
        content, offset = content + reply.body, reply.next
        if reply.header("stream-up-to-date"):
            return content


async def say(here: Served, pieces: Sequence[bytes], replies: int) -> list[Reply]:
    line = await here.connect()
    for piece in pieces:
        await line.send(piece)
        await asyncio.sleep(0.001)
    heard = [await line.reply() for _ in range(replies)]
    line.close()
    return heard


@pytest.mark.parametrize("seed", range(4))
def test_bodies_of_any_size_in_any_pieces_get_the_replies_that_aiohttp_gives(
    seed: int, handed_over: list[bytes]
) -> None:
    async def story() -> None:
        chance = Random(seed)
        sizes = chance.sample(SIZES, len(SIZES))
        sent = b"".join(head(size) + body(size) for size in sizes)
        cuts = sorted(chance.randrange(len(sent)) for _ in range(40))
        bounds = [0, *cuts, len(sent)]
        pieces = [sent[start:end] for start, end in pairwise(bounds)]
        async with one() as lane, one(lane=False) as alone:
            ours = await say(lane, pieces, len(sizes))
            assert ours == await say(alone, pieces, len(sizes))
            assert {reply.status for reply in ours} == {204}
            assert handed_over == []
            assert await stored(lane) == b"".join(map(body, sizes))

    run(story)


def test_body_that_comes_byte_by_byte_takes_no_more_memory_than_it_has(
    handed_over: list[bytes],
) -> None:
    async def story() -> None:
        async with one() as here:
            connection = here.origin.lane.connection()
            connection.data_received(head(LARGE))
            for byte in body(LARGE)[:-1]:
                connection.data_received(bytes((byte,)))
            assert len(connection._more) == LARGE - 1
            assert connection._more.__sizeof__() < 2 * LARGE
            connection.connection_lost(None)

    run(story)


def test_bodies_beyond_the_bound_of_all_go_to_aiohttp(
    handed_over: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_LARGE_BYTES_HELD", 2 * LARGE)

    async def story() -> None:
        async with one() as here:
            lines = [await here.connect() for _ in range(3)]
            for number, line in enumerate(lines[:2], 1):
                await line.send(head(LARGE) + body(LARGE)[:-1])
                await holds(here, number * LARGE)
            # Behind a small one, which is answered first.
            await lines[2].send(head(1) + body(1) + head(LARGE) + body(LARGE)[:-1])
            assert (await lines[2].reply()).status == 204
            await until(lambda: handed_over)
            assert here.origin.lane.held_bytes == 2 * LARGE
            for line in lines:
                await line.send(body(LARGE)[-1:])
                assert (await line.reply()).status == 204
            assert await stored(here) == body(1) + body(LARGE) * 3
            # There is room again.
            await lines[0].send(head(LARGE) + body(LARGE))
            assert (await lines[0].reply()).status == 204
            assert len(handed_over) == 1
            for line in lines:
                line.close()

    run(story)


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_client_that_goes_in_the_middle_leaves_nothing(
    ending: str, handed_over: list[bytes]
) -> None:
    async def story() -> None:
        async with one() as here:
            line = await here.connect()
            await line.send(head(LARGE) + body(LARGE)[:-1])
            await holds(here, LARGE)
            getattr(line, ending)()
            await holds(here, 0)
            assert await stored(here) == b""
            assert handed_over == []

    run(story)


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "aiohttp"])
def test_body_that_does_not_go_on_gets_408(lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lanes._SILENCE_S == web._SILENCE_S
    monkeypatch.setattr(lanes, "_SWEEP_S", 0.02)
    for module in (lanes, web):
        monkeypatch.setattr(module, "_SILENCE_S", 0.2)

    async def story() -> None:
        async with one(lane=lane) as here:
            line = await here.connect()
            await line.send(head(LARGE) + body(LARGE)[:-1])
            reply = await line.reply()
            assert (reply.status, reply.header("connection")) == (408, "close")
            assert b"no more of the body within 0.2 s" in reply.body
            await line.ended()
            line.close()
            assert await stored(here) == b""

    run(story)


def test_slow_body_that_goes_on_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_SWEEP_S", 0.02)
    monkeypatch.setattr(lanes, "_SILENCE_S", 0.5)

    async def story() -> None:
        async with one(header_timeout_s=0.1) as here:
            line = await here.connect()
            await line.send(head(LARGE))
            for start in range(0, LARGE, LARGE // 8):
                await asyncio.sleep(0.1)
                await line.send(body(LARGE)[start : start + LARGE // 8])
            assert (await line.reply()).status == 204
            line.close()

    run(story)


def full(streams: Streams) -> None:
    raise Unavailable("too many appends wait for the disk")


def test_full_queue_refuses_before_the_body_has_come(
    handed_over: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with one() as here:
            monkeypatch.setattr(Streams, "check_room", full)
            line = await here.connect()
            await line.send(head(LARGE) + body(LARGE)[:1000])
            assert (await line.reply()).status == 503
            line.close()
            assert len(handed_over) == 1

    run(story)


def test_queue_that_fills_meanwhile_refuses_at_once_and_holds_nothing(
    handed_over: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with one() as here:
            line = await here.connect()
            await line.send(head(LARGE) + body(LARGE)[:-1])
            await holds(here, LARGE)
            monkeypatch.setattr(Streams, "check_room", full)
            await line.send(body(LARGE)[-1:])
            assert (await line.reply()).status == 503
            line.close()
            assert len(handed_over) == 1

    run(story)


@pytest.mark.parametrize(
    ("size", "fields"),
    [(LANE_MAX + 1, ()), (LARGE, ("Expect: 100-continue",))],
    ids=["too-large-for-the-lane", "expects-to-be-asked"],
)
def test_what_is_not_for_the_lane_goes_to_aiohttp(
    size: int, fields: tuple[str, ...], handed_over: list[bytes]
) -> None:
    async def story() -> None:
        async with one() as here:
            line = await here.connect()
            await line.send(head(size, *fields))
            if fields:
                assert (await line.reply()).status == 100
            await line.send(body(size))
            assert (await line.reply()).status == 204
            line.close()
            assert len(handed_over) == 1
            assert await stored(here) == body(size)

    run(story)


def test_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    async def story() -> None:
        async with one(body_bytes_max=LARGE) as here:
            line = await here.connect()
            await line.send(head(LARGE) + body(LARGE))
            assert (await line.reply()).status == 204
            await line.send(head(LARGE + 1))
            assert (await line.reply()).status == 413
            line.close()

    run(story)
