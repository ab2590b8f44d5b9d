"""Deadlines: of heads, bodies, idle connections and live replies, and of all in a drain."""

from __future__ import annotations

import asyncio
import logging

import pytest

from edge.app import drain
from edge.source import EdgeSource
from shared import web
from shared.plain import Plain
from shared.protocol.chunk import Chunk
from tests.edge.served import (
    BIG,
    LITTLE,
    Ended,
    Line,
    Served,
    asking,
    great,
    parked,
    run,
    served,
    until,
)

# --- deadlines -----------------------------------------------------------------------------------


async def trickle_until_408(here: Served, line: Line, data: bytes) -> None:
    """Send a byte now and then, until the connection is ended with a refusal."""

    async def trickle() -> None:
        for place in range(len(data)):
            await line.send(data[place : place + 1])
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    answer = await line.reply()
    assert (answer.status, answer.header("connection")) == (408, "close")
    trickling.cancel()
    await until(lambda: here.lane.connections == 0)
    line.close()


def test_head_that_does_not_end_gets_408_however_it_trickles() -> None:
    request = asking("s?offset=-1", *(f"X-{n}: y" for n in range(500)))

    async def story() -> None:
        async with served(header_timeout_s=0.2) as here:
            await trickle_until_408(here, await here.connect(), request)

    run(story)


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(asking("s?offset=-1", *(f"X-{n}: {'y' * 99}" for n in range(90)))[:-2]),
        pytest.param(b"PROPFIND /v1/stream/s HTTP/1.1\r\nHost: x\r\nContent-Len"),
        pytest.param(asking("s", "Content-Length: 100000", method="POST")[:-2]),
    ],
    ids=["too-large-for-the-lane", "another-method", "large-append"],
)
def test_head_that_does_not_end_gets_408_from_aiohttp_as_well(begun: bytes) -> None:
    async def story() -> None:
        async with served(header_timeout_s=0.2, keepalive_timeout_s=300) as here:
            for kept in (False, True):
                line = await here.connect()
                if kept:  # it is aiohttp's, and had a reply
                    await line.ask("s", method="OPTIONS")
                    assert (await line.reply()).status == 204
                await line.send(begun)
                await trickle_until_408(here, line, b"a" * 500)

    run(story)


def test_head_that_ends_in_time_is_not_held_against_what_follows() -> None:
    async def story() -> None:
        async with served(header_timeout_s=0.3, keepalive_timeout_s=300) as here:
            line = await here.connect()
            request = asking("s", method="OPTIONS")
            for _ in range(2):
                await line.send(request[:20])
                await asyncio.sleep(0.05)
                await line.send(request[20:])
                assert (await line.reply()).status == 204
            await asyncio.sleep(0.5)  # it idles
            await line.send(request)
            assert (await line.reply()).status == 204
            line.close()

    run(story)


def test_connection_without_a_request_is_closed_without_a_word() -> None:
    async def story() -> None:
        async with served(header_timeout_s=0.1) as here:
            line = await here.connect()
            await line.ended()
            line.close()

    run(story)


def test_connection_that_is_idle_is_closed_after_its_time() -> None:
    async def story() -> None:
        async with served(keepalive_timeout_s=0.2, header_timeout_s=300) as here:
            await here.create("s")
            line = await here.connect()
            await line.ask("s?offset=-1")
            assert (await line.reply()).status == 200
            await line.ended()
            line.close()

    run(story)


def test_connection_that_is_idle_at_aiohttp_is_closed_after_the_same_time() -> None:
    async def story() -> None:
        async with served(keepalive_timeout_s=0.2, header_timeout_s=300) as here:
            await here.create("s")
            line = await here.connect()
            await line.ask("s", "Keep-Alive: 5", method="POST", body=b"x")  # not plain
            assert (await line.reply()).status == 204
            await line.ended()
            line.close()

    run(story)


def test_body_that_does_not_go_on_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_SILENCE_S", 0.2)

    async def story() -> None:
        async with served(header_timeout_s=0.2) as here:
            await here.create("s", b"before")
            for framing in ("Content-Length: 100", "Transfer-Encoding: chunked"):
                line = await here.connect()
                await line.ask("s", framing, "Content-Type: text/plain", method="POST")
                for _ in range(30):  # slowly, but it goes on
                    await line.send(b"1\r\nx\r\n" if "chunked" in framing else b"x")
                    await asyncio.sleep(0.01)
                answer = await line.reply()
                assert (answer.status, answer.header("connection")) == (408, "close")
                line.close()
            line = await here.connect()
            await line.ask("s?offset=-1")
            assert (await line.reply()).body == b"before"
            line.close()

    run(story)


def test_event_stream_ends_in_time_even_if_its_next_chunk_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first: list[str] = []

    async def join(source: EdgeSource, path: str, offset: str) -> Chunk:
        if first:
            await asyncio.sleep(300)
        first.append(offset)
        return await source.read(path, offset)

    async def story() -> None:
        async with served(sse_timeout_s=0.2, chunk_bytes=1024) as here:
            await here.create("s", b"x" * 1000)
            await here.append("s", b"y" * 1000)
            await here.append("s", b"z" * 1000)
            monkeypatch.setattr(EdgeSource, "join", join)
            line = await here.connect()
            await line.ask("s?offset=-1&live=sse")
            assert (await line.reply()).body.count(b"event: data") == 1
            await line.ended()
            line.close()

    run(story)


def test_deadline_at_which_we_fail_is_the_end_of_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with served(long_poll_timeout_s=0.1) as here:
            tail = await here.create("s")
            lines = [await here.connect() for _ in range(10)]
            time_out, fails = here.lane._replies.time_out, iter([True])

            def fail_once(fd: int, plain: Plain, chunk: Chunk) -> None:
                assert not next(fails, False)
                time_out(fd, plain, chunk)

            monkeypatch.setattr(here.lane._replies, "time_out", fail_once)
            for _ in range(2):
                statuses = []
                for line in lines:
                    await line.ask(f"s?offset={tail}&live=long-poll")
                for line in list(lines):
                    try:
                        statuses.append((await line.reply()).status)
                    except Ended:
                        lines.remove(line)
                        line.close()
                assert statuses == [204] * 9
            for line in lines:
                line.close()

    with caplog.at_level(logging.ERROR):
        run(story)
    assert len(caplog.records) == 1


# --- drain ---------------------------------------------------------------------------------------


async def finish(here: Served, window_s: float) -> None:
    """Drain as the service does."""
    await drain(here.edge, window_s, margin_s=5.0)


def test_drain_answers_everyone_who_waits_and_loses_nothing() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s", b"data")
            await great(here)
            polls = [await here.connect() for _ in range(40)]
            streams = [await here.connect() for _ in range(40)]
            slow = [await here.connect(receive_bytes=LITTLE) for _ in range(5)]
            following = [await here.connect(receive_bytes=LITTLE) for _ in range(5)]
            for line in polls:
                await line.ask(f"s?offset={tail}&live=long-poll")
            for line in streams:
                await line.ask("s?offset=-1&live=sse")
            await parked(here, 80)
            for line in slow:
                await line.ask("great?offset=-1")
            for line in following:
                await line.ask("great?offset=-1&live=sse")
            await until(lambda: len(here.lane._outbox) == 10)
            draining = asyncio.create_task(finish(here, 0.5))
            await asyncio.sleep(0)
            # Whoever comes now is answered, and told to go elsewhere next.
            late = await here.connect()
            await late.ask("s?offset=-1")
            answer = await late.reply()
            assert (answer.body, answer.header("connection")) == (b"data", "close")
            await late.ended()
            for line in polls:
                answer = await line.reply()
                assert (answer.status, answer.header("connection")) == (204, "close")
                await line.ended()
            for line in streams:
                answer = await line.reply()
                assert answer.body.startswith(b"event: data\ndata:data\n\n")
                await line.ended()
            for line in slow:
                assert (await line.reply()).body == BIG
            for line in following:
                assert (await line.reply()).body.endswith(b"\n\n")  # whole events, and an end
                await line.ended()
            await draining
        # What was idle is closed last, without a word.
        for line in slow:
            await line.ended()
        for line in [late, *polls, *streams, *slow, *following]:
            line.close()

    run(story)


@pytest.mark.parametrize("query", ["offset=-1&live=sse", "offset=now&live=long-poll"])
def test_whoever_comes_while_it_drains_is_answered_to_the_end_or_refused(query: str) -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s", b"data")
            answers = 0

            async def come_again_and_again() -> None:
                nonlocal answers
                while True:
                    try:
                        line = await here.connect()
                    except ConnectionRefusedError:
                        return
                    await line.ask(f"s?{query}")
                    answer = await line.reply()
                    assert answer.status in (200, 204)
                    await line.ended()
                    line.close()
                    answers += 1

            draining = asyncio.create_task(finish(here, 0.3))
            await asyncio.gather(*(come_again_and_again() for _ in range(30)))
            assert answers >= 30
            await draining
            assert not here.lane.connections

    run(story)


def test_drain_spreads_over_its_window() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            lines = [await here.connect() for _ in range(50)]
            for line in lines:
                await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 50)
            here.lane.release(10.0)
            (fds,) = [group.fds for group in here.lane._parked._groups]
            due = sorted(here.lane._seats.due_s[fd] - here.lane._clock.monotonic_s() for fd in fds)
            assert due[0] < 3
            assert due[-1] > 7
            assert due[-1] <= 10
            for line in lines:
                line.close()

    run(story)
