"""Replies of an edge: sent to their end, to slow readers as well, and bounded where they wait."""

from __future__ import annotations

import asyncio
import os
import re
import socket

import pytest

from edge import outbox
from edge.outbox import Outbox
from edge.source import EdgeSource
from edge.upstream import Refused
from shared import metrics
from shared.protocol.chunk import Chunk
from tests.edge.served import BIG, LITTLE, great, run, served, until

# --- replies that wait ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [(), ("Connection: close",)], ids=["kept", "closed"])
def test_reader_that_breaks_off_while_a_reply_waits_disturbs_nobody(
    fields: tuple[str, ...],
) -> None:
    async def story() -> None:
        async with served() as here:
            await great(here)
            lines = [await here.connect(receive_bytes=LITTLE) for _ in range(20)]
            for line in lines:
                await line.ask("great?offset=-1", *fields)
            await until(lambda: len(here.lane._outbox) == 20)
            for line in lines[::2]:
                line.reset()
            await until(lambda: here.lane._seats.taken == 10)
            for line in lines[1::2]:
                assert (await line.reply()).body == BIG
                line.close()
            await until(lambda: here.lane._seats.taken == 0)

    run(story)


@pytest.mark.parametrize("fields", [(), ("Connection: close",)], ids=["kept", "closed"])
def test_reply_that_is_on_its_way_is_sent_to_its_end_to_a_client_that_has_sent_its_last(
    fields: tuple[str, ...],
) -> None:
    async def story() -> None:
        async with served() as here:
            await great(here)
            for port in (here.aiohttp_port, here.lane_port):
                line = await here.connect(port, receive_bytes=LITTLE)
                await line.ask("great?offset=-1", *fields)
                await line.head()
                line.sock.shutdown(socket.SHUT_WR)
                await asyncio.sleep(0.05)  # it is noticed, and nothing comes of it
                assert await line.take(len(BIG)) == BIG
                await line.ended()
                line.close()

    run(story)


def test_refusal_with_a_status_that_has_no_name_reaches_all_who_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(source: EdgeSource, path: str, offset: str) -> Chunk:
        await asyncio.sleep(0.01)
        raise Refused(499, "odd", "an upstream may say anything", {})

    async def story() -> None:
        async with served() as here:
            for port in (here.aiohttp_port, here.lane_port):
                lines = [await here.connect(port) for _ in range(3)]
                for line in lines:
                    await line.ask("s?offset=-1")
                for line in lines:
                    assert (await line.reply()).status == 499
                    line.close()

    monkeypatch.setattr(EdgeSource, "read", refuse)
    run(story)


# --- slow readers --------------------------------------------------------------------------------


def closed_slow(reason: str) -> float:
    return float(metrics.SLOW_READERS_CLOSED.labels(reason)._value.get())


def test_event_stream_that_is_too_slow_is_closed_and_resumes_without_gap_or_double() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            slow, quick = await here.connect(receive_bytes=LITTLE), await here.connect()
            for line in (slow, quick):
                await line.ask(f"s?offset={tail}&live=sse")
                await line.head()
                await line.frame()
            before = closed_slow("backlog")
            pieces: list[bytes] = []
            while closed_slow("backlog") == before:
                pieces.append(b"%04d" % len(pieces) * 5000)
                await here.append("s", pieces[-1])
                # The quick one never waits for the slow one.
                assert pieces[-1] in await quick.frame()
                assert len(pieces) < 500
            # What it has of an event that is not whole is not had.
            while await slow.read():
                pass
            events = bytes(slow._buffer).split(b"event: data\ndata:")
            got = [event.partition(b"\n")[0] for event in events[1:]]
            offsets = re.findall(rb'"streamNextOffset":"([^"]+)"', bytes(slow._buffer))
            got = got[: len(offsets)]
            assert 0 < len(got) < len(pieces)
            again = await here.connect()
            await again.ask(f"s?offset={offsets[-1].decode()}&live=long-poll")
            rest = await again.reply()
            assert b"".join(got) + rest.body == b"".join(pieces)
            for line in (slow, quick, again):
                line.close()

    run(story)


def test_readers_who_take_nothing_are_closed_after_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "STALLED_S", 0.2)

    async def story() -> None:
        async with served() as here:
            await great(here)
            before = closed_slow("stalled")
            lines = [await here.connect(receive_bytes=LITTLE) for _ in range(3)]
            for line in lines:
                await line.ask("great?offset=-1")
            await until(lambda: len(here.lane._outbox) == 3)
            await until(lambda: here.lane.connections == 0)
            assert closed_slow("stalled") == before + 3
            for line in lines:
                line.close()

    run(story)


def test_what_slow_readers_hold_in_all_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for a chunk of its own, and reads nothing."""
    size, count, most = 500_000, 12, 1_000_000
    monkeypatch.setattr(outbox, "_HELD_BYTES_MAX", most)
    monkeypatch.setattr(Outbox, "stalled", lambda *_: [])  # it comes ten times a second only

    async def story() -> None:
        async with served(chunk_bytes=size // 2) as here:
            offsets = [await here.create("s")]
            for _ in range(count):
                offsets.append(await here.append("s", os.urandom(size)))
            before = closed_slow("memory")
            lines = [await here.connect(receive_bytes=LITTLE) for _ in range(count)]
            for line, offset in zip(lines, offsets, strict=False):
                await line.ask(f"s?offset={offset}")
            await until(lambda: len(here.lane._outbox) + closed_slow("memory") - before == count)
            assert here.lane._outbox._held_bytes <= 2 * most + 2 * size
            assert closed_slow("memory") > before
            for line in lines:
                line.close()

    run(story)
