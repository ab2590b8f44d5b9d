"""Connections of an edge: kept, closed, handed to and fro, and never the worse for each other."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket

import pytest

from edge import gatherings, outbox, seats
from edge import lane as lane_module
from edge.app import drain
from edge.lane import Lane
from edge.outbox import Outbox
from edge.source import EdgeSource
from edge.upstream import Refused
from shared import metrics, web
from shared.plain import Plain, Refusal, parse_plain
from shared.protocol.chunk import Chunk
from tests.edge.served import Ended, Line, Served, asking, run, served, until

OPTIONS = (
    *("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_NODELAY"),
    *("TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT"),
)
LITTLE = 4096  # what the kernel of a slow reader holds, more or less
BIG = os.urandom(1_000_000)  # more than any kernel takes at once


def held(lane: Lane, state: int) -> list[int]:
    """Return the descriptors in a state."""
    return [fd for fd, found in enumerate(lane._seats.state) if found == state]


async def parked(here: Served, count: int) -> None:
    await until(lambda: here.lane._parked.polls + here.lane._parked.streams == count)


async def great(here: Served) -> str:
    """Create a stream of one chunk that no kernel takes at once; return its tail."""
    await here.create("great", Content_Type="a/b")
    return await here.append("great", BIG, Content_Type="a/b")


# --- leaving -------------------------------------------------------------------------------------


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


def test_reader_that_waits_and_has_sent_its_last_has_left() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            line.sock.shutdown(socket.SHUT_WR)
            await line.ended()
            await parked(here, 0)
            line.close()

    run(story)


def test_connection_whose_request_makes_us_fail_is_closed_and_others_are_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def parse(received: bytes, prefix: str) -> Plain | Refusal | None:
        assert b"/bad" not in received
        return parse_plain(received, prefix)

    async def story() -> None:
        async with served() as here:
            tail = await here.create("s", b"data")
            monkeypatch.setattr(lane_module, "parse_plain", parse)
            lines = [await here.connect() for _ in range(60)]
            for number, line in enumerate(lines):
                # The last ones have it waiting behind a long-poll.
                if number >= 40:
                    await line.ask(f"s?offset={tail}&live=long-poll")
                elif number % 2:
                    await line.ask("bad")
                else:
                    await line.ask("s?offset=-1")
            await parked(here, 20)
            for line in lines[40::2]:
                await line.ask("bad")
            await asyncio.sleep(0.05)
            await here.append("s", b"news")
            for number, line in enumerate(lines):
                if number >= 40:
                    assert (await line.reply()).body == b"news"
                if number % 2 == (number < 40):
                    await line.ended()
                elif number < 40:
                    assert (await line.reply()).body == b"data"
                else:
                    await line.ask("s?offset=-1")
                    assert (await line.reply()).body == b"datanews"
                line.close()
            await until(lambda: here.lane._seats.taken == 0)

    with caplog.at_level(logging.ERROR):
        run(story)
    assert {record.message for record in caplog.records} == {"unexpected error"}
    assert len(caplog.records) == 30


def test_deadline_at_which_we_fail_is_the_end_of_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with served(long_poll_timeout_s=0.1) as here:
            tail = await here.create("s")
            lines = [await here.connect() for _ in range(10)]
            time_out, fails = here.lane._time_out, iter([True])

            def fail_once(fd: int, plain: Plain, chunk: Chunk) -> None:
                assert not next(fails, False)
                time_out(fd, plain, chunk)

            monkeypatch.setattr(here.lane, "_time_out", fail_once)
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


# --- to aiohttp and back -------------------------------------------------------------------------


def test_connection_goes_to_aiohttp_for_a_write_and_waits_in_the_lane_again() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line, listener = await here.connect(), here.edge.handlers.listener
            for turn in range(3):
                body = b"<%d>" % turn
                await line.ask("s", "Keep-Alive: 5", method="POST", body=body)  # not plain
                written = await line.reply()
                assert (written.status, here.lane._seats.taken) == (204, 0)
                assert listener.connections == 1
                await line.ask(f"s?offset={written.next}&live=long-poll")
                await parked(here, 1)
                # No transport, parser or handler is left of it.
                assert (listener.connections, listener.active) == (0, 0)
                await here.append("s", b"more")
                assert (await line.reply()).body == b"more"
                await line.ask(f"s?offset={tail}")
                assert (await line.reply()).body.endswith(body + b"more")
            line.close()
            await until(lambda: here.lane.connections == 0)

    run(story)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_other_methods_leave_the_connection_fit_for_the_next_read(method: str) -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s", b"data")
            line = await here.connect()
            for _ in range(3):
                await line.ask("s?offset=-1", method=method)
                assert (await line.reply("HEAD")).status in (200, 204)
                await line.ask("s?offset=-1")
                assert (await line.reply()).body == b"data"
            line.close()

    run(story)


def test_connection_that_is_reset_while_it_is_handed_over_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        async with served() as here:
            for _ in range(30):
                line = await here.connect()
                await line.ask("s", method="PATCH")
                line.reset()
            await until(lambda: here.lane.connections == 0)

    with caplog.at_level(logging.WARNING):
        run(story)
    assert caplog.records == []


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


def test_connection_that_a_peer_left_without_a_word_is_found_out() -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s", b"data")
            line = await here.connect()
            await line.ask("s?offset=-1")
            await line.reply()
            (fd,) = held(here.lane, seats.HEAD)
            assert not os.get_blocking(fd)
            with socket.socket(fileno=os.dup(fd)) as ours:
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                tcp = {
                    name: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                    for name in OPTIONS
                }
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * 64 * 1024
            # 90 s of silence, or 30 s without an acknowledgement.
            given_up_s = tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"]
            assert given_up_s <= 180
            # Linux counts this one, not the probes: a shorter one would let a lost probe end it.
            assert tcp["TCP_USER_TIMEOUT"] == 1000 * given_up_s
            assert tcp["TCP_NODELAY"] == 1
            assert 0 < tcp["TCP_NOTSENT_LOWAT"] <= 128 * 1024
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


# --- what comes before its turn ------------------------------------------------------------------


def test_requests_that_come_during_a_long_poll_are_answered_after_it_and_in_order() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            for n in range(3):
                await line.ask(f"nobody-{n}")
                await asyncio.sleep(0.01)
            await line.ask("s", method="POST", body=b"more")
            await asyncio.sleep(0.01)
            await here.append("s", b"news")
            assert (await line.reply()).body == b"news"
            for n in range(3):
                answer = await line.reply()
                assert answer.status == 404
                assert b"nobody-%d" % n in answer.body
            assert (await line.reply()).status == 204
            line.close()

    run(story)


def test_what_comes_during_a_long_poll_is_bounded_and_arrives_whole() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            body = os.urandom(1_000_000)
            sending = asyncio.create_task(line.ask("s", method="POST", body=body))
            await asyncio.sleep(0.05)
            assert sum(map(len, here.lane._received.values())) < 20_000
            await here.append("s", b"news")
            assert (await line.reply()).body == b"news"
            assert (await line.reply()).status == 204
            await sending
            await line.ask("s?offset=-1")
            assert (await line.reply()).body == b"news" + body
            line.close()

    run(story)


# --- limits --------------------------------------------------------------------------------------


def test_those_over_the_limit_are_told_to_come_back_and_those_within_it_go_on() -> None:
    async def story() -> None:
        async with served(connections=50) as here:
            tail = await here.create("s")
            await until(lambda: here.lane.connections == 0)
            waiting = [await here.connect() for _ in range(50)]
            for line in waiting:
                await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 50)

            async def knock() -> int:
                line = await here.connect()
                await line.ask("s?offset=-1")
                answer = await line.reply()
                assert (answer.status, answer.header("connection")) == (503, "close")
                await line.ended()
                line.close()
                return int(answer.header("retry-after") or "")

            pauses = await asyncio.gather(*(knock() for _ in range(200)))
            assert len(set(pauses)) > 3
            assert min(pauses) >= 1
            assert here.lane._parked.polls == 50
            waiting.pop().close()
            await parked(here, 49)
            await here.append("s", b"news")
            for line in waiting:
                assert (await line.reply()).body == b"news"
                line.close()
            await until(lambda: here.lane.connections == 0)
            line = await here.connect()
            await line.ask("s?offset=-1")
            assert (await line.reply()).status == 200
            line.close()

    run(story)


def test_writer_over_the_limit_reads_the_refusal_whatever_it_sent() -> None:
    async def story() -> None:
        async with served(connections=1) as here:
            await here.create("s")
            await until(lambda: here.lane.connections == 0)
            only = await here.connect()
            await until(lambda: here.lane.connections == 1)
            for _ in range(5):
                line = await here.connect()
                await line.ask("s", method="POST", body=bytes(100_000))
                assert (await line.reply()).status == 503
                await line.ended()
                line.close()
            only.close()

    run(story)


def test_crowd_that_says_nothing_over_the_limit_is_let_rest_and_never_spun_for() -> None:
    async def story() -> None:
        async with served(connections=10) as here:
            await here.create("s")
            await until(lambda: here.lane.connections == 0)
            # Ten within, 128 who are told, and the rest wait to be accepted.
            lines = [await here.connect() for _ in range(300)]
            await until(lambda: here.lane._doors._paused)
            turns = 0
            turn = here.lane._turn

            def count() -> None:
                nonlocal turns
                turns += 1
                turn()

            loop = asyncio.get_running_loop()
            loop.add_reader(here.lane._epoll.fileno(), count)
            await asyncio.sleep(0.5)
            assert turns < 100
            await lines[0].ask("s?offset=-1")
            assert (await lines[0].reply()).status == 200
            for line in lines:
                line.close()
            await until(lambda: here.lane.connections == 0)

    run(story)


def test_process_without_descriptors_tries_again_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, object]:
            Exhausted.tries += 1
            if Exhausted.tries < 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def story() -> None:
        async with served() as here:
            await here.create("s", b"data")
            ((number, listening),) = here.lane._doors._listening.items()
            here.lane._doors._listening[number] = Exhausted(fileno=listening.detach())
            line = await here.connect()
            await line.ask("s?offset=-1")
            turns = 0
            while Exhausted.tries < 3:
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 5  # each waits for a sweep
            assert (await line.reply()).body == b"data"
            assert Exhausted.tries <= 5  # the last finds nobody else
            line.close()

    run(story)


def test_crowd_that_breaks_off_at_once_comes_back_and_is_served() -> None:
    count = 1500

    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            for _ in range(2):
                lines = [await here.connect() for _ in range(count)]
                for number, line in enumerate(lines):
                    await line.ask(f"s?offset={tail}&live={('sse', 'long-poll')[number % 2]}")
                await parked(here, count)
                for line in lines:
                    line.reset()
                await parked(here, 0)
                await until(lambda: here.lane.connections == 0)
            assert here.lane._parked._groups._crowds == {}
            assert not here.lane._received
            assert not here.lane._catching_up
            assert len(here.lane._outbox) == 0

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


def test_reads_that_wait_for_their_turn_are_not_begun_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []

    async def read(source: EdgeSource, path: str, offset: str) -> Chunk:
        begun.append(path)
        await asyncio.sleep(300)
        raise AssertionError

    monkeypatch.setattr(EdgeSource, "read", read)

    async def story() -> None:
        lines: list[Line] = []
        async with served() as here:
            for number in range(2 * gatherings._READS_AT_ONCE):
                lines.append(await here.connect())
                await lines[-1].ask(f"s-{number}")
            await until(lambda: len(here.lane._gatherings) == gatherings._READS_AT_ONCE)
        await asyncio.sleep(0)
        assert len(begun) == gatherings._READS_AT_ONCE
        assert not here.lane._tasks
        for line in lines:
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


def test_request_that_was_sent_before_the_goodbye_came_does_not_cost_the_reply() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            # More than is taken in while it waits: some of it is unread when the reply is sent.
            await line.send(asking("s", method="POST", body=bytes(60_000)))
            draining = asyncio.create_task(finish(here, 0.1))
            await asyncio.sleep(0.3)
            answer = await line.reply()
            assert (answer.status, answer.header("connection")) == (204, "close")
            await line.ended()
            line.close()
            await draining

    run(story)
