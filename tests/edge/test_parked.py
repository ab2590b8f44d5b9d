"""Readers that wait, as bare descriptors: what they are given, and when their wait ends."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from edge import parked as parked_module
from edge import seats as states
from edge.groups import Group
from edge.passes import Pass
from edge.seats import NEVER
from edge.upstream import Refused
from shared.plain import Plain
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import Unavailable
from shared.protocol.request import Live, Read
from shared.wake import Wake
from tests.edge.following import PATH, turn, until
from tests.edge.room import END, Room, heard, room
from tests.fakes import token

SLICE = parked_module._SLICE


# --- news ----------------------------------------------------------------------------------------


async def test_wakes_that_come_together_are_one_reply() -> None:
    async with room(b"one") as here:
        fd = await here.poll(token(3))
        await here.settle()
        here.wake(b"two")
        here.wake(b"three")
        await here.settle()
        assert here.got(fd).endswith(b"\r\n\r\ntwothree")


async def test_news_between_the_read_and_the_wait_is_not_lost() -> None:
    async with room(b"one") as here:
        plain = Plain(PATH, Read(token(3), Live.LONG_POLL), True)
        chunk = await here.here.source.join(PATH, token(3))
        here.wake(b"two")
        for _ in range(2):  # the first makes the group, the second joins it
            ours, theirs = socket.socketpair()
            here.far[fd := ours.detach()] = theirs
            theirs.setblocking(False)
            here.seats.take(fd, states.PARKED, NEVER)
            here.parked.park(fd, plain, chunk)
        await here.settle()
        for fd in here.far:
            assert here.got(fd).endswith(b"\r\n\r\ntwo")


# --- heartbeats ----------------------------------------------------------------------------------


async def test_heartbeat_goes_to_event_streams_that_heard_nothing_and_to_nobody_else() -> None:
    async with room(b"one") as here:
        quiet = await here.stream(token(3))
        poll = await here.poll(token(3))
        here.here.clock.turn(10)
        await here.parked.send_heartbeats(15)
        await here.settle()
        assert here.got(quiet) == b""
        here.here.clock.turn(10)
        await here.parked.send_heartbeats(15)
        await here.parked.send_heartbeats(15)
        await here.settle()
        assert here.got(quiet) == b"3\r\n:\n\n\r\n"
        assert here.got(poll) == b""


async def test_news_during_a_heartbeat_is_heard_after_it_and_once() -> None:
    async with room(b"one") as here:
        streams = [await here.stream(token(3)) for _ in range(2 * SLICE)]
        await here.settle()
        here.here.clock.turn(20)
        await here.parked.send_heartbeats(15)
        await turn(2)
        here.wake(b"two")
        await turn(2)
        late = await here.stream(token(6))
        await here.settle()
        here.wake(b"three")
        await here.settle()
        for fd in streams:
            stream = here.got(fd)
            assert stream.startswith(b"3\r\n:\n\n\r\n")
            assert heard(stream) == [b"two", b"three"]
        assert heard(here.got(late)) == [b"three"]
        assert len(here.groups) == 1


async def test_heartbeat_while_the_next_chunk_is_fetched_costs_no_reader_anything() -> None:
    async with room(b"one") as here:
        streams = [await here.stream(token(3)) for _ in range(5)]
        await here.settle()
        here.here.upstream.gate.clear()
        # What follows is not known here: it is asked for.
        here.here.wake(replace(here.here.append(b"two"), payload=None))
        await turn()
        here.here.clock.turn(20)
        await here.parked.send_heartbeats(15)
        await turn()
        here.here.upstream.gate.set()
        await until(lambda: all(heard(here.peek(fd)) == [b"two"] for fd in streams))


# --- ends ----------------------------------------------------------------------------------------


async def test_close_of_the_stream_ends_every_reply() -> None:
    async with room(b"one") as here:
        poll, stream = await here.poll(token(3)), await here.stream(token(3))
        here.here.upstream.closed = True
        here.here.wake(Wake(1, token(3), token(3), closed=True, payload=b""))
        await here.settle()
        assert here.got(poll).startswith(b"HTTP/1.1 204 ")
        assert here.got(stream).endswith(b'"streamClosed":true}\n\n\r\n' + END)
        assert sorted(here.done) == sorted([(poll, True), (stream, False)])
        assert here.crowds == {}


async def test_deletion_is_told_to_all_and_whoever_comes_to_the_next_life_waits_for_that() -> None:
    async with room(b"one") as here:
        polls = [await here.poll(token(3)) for _ in range(3)]
        streams = [await here.stream(token(3)) for _ in range(3)]
        await here.settle()
        here.here.upstream.failures.extend(
            Refused(404, "not_found", "no such stream", {}) for _ in range(2)
        )
        here.here.wake(Wake(1, token(3), token(3), deleted=True))
        await until(lambda: len(here.done) == 6)
        for fd in polls:
            assert here.got(fd).startswith(b"HTTP/1.1 404 ")
        for fd in streams:
            assert here.got(fd) == END
        assert here.crowds == {}
        here.here.upstream.failures.clear()
        here.here.upstream.incarnation = 2
        here.here.upstream.data[:] = b""
        again = await here.poll(token(0, 2))
        await here.settle()
        here.wake(b"new")
        await here.settle()
        assert here.got(again).endswith(b"\r\n\r\nnew")


async def test_readers_of_a_life_that_ended_and_of_the_next_are_kept_apart() -> None:
    """While a pass tells the first of the end, the others come already."""
    async with room(b"one") as here:
        old = [await here.poll(token(3)) for _ in range(2 * SLICE)]
        await here.settle()
        here.here.upstream.failures.extend(Refused(404, "not_found", "gone", {}) for _ in range(2))
        here.here.wake(Wake(1, token(3), token(3), deleted=True))
        while not here.parked.busy:
            await turn(1)
        here.here.upstream.failures.clear()
        here.here.upstream.incarnation = 2
        here.here.upstream.data[:] = b""
        new = [await here.poll(token(0, 2)) for _ in range(3)]
        await until(lambda: len(here.done) == len(old))
        assert all(here.got(fd).startswith(b"HTTP/1.1 404 ") for fd in old)
        here.wake(b"new")
        await here.settle()
        assert all(here.got(fd).endswith(b"\r\n\r\nnew") for fd in new)
        assert here.crowds == {}


async def strand(here: Room) -> Group:
    """Let who waits be at a place that is not known here any more, as if the tail had moved on far
    beyond it."""
    await here.settle()
    (group,) = here.groups
    group.chunk = replace(group.chunk, next=token(1))
    return group


@pytest.mark.parametrize("live", ["poll", "stream"])
async def test_upstream_that_is_away_while_readers_are_at_an_unknown_place_is_waited_for(
    live: str,
) -> None:
    async with room(b"one") as here:
        fd = await (here.poll if live == "poll" else here.stream)(token(3))
        group = await strand(here)
        failures = here.here.upstream.failures
        failures += [Unavailable("away"), Unavailable("away")]
        here.here.upstream.asked.clear()
        here.parked.stir(group.crowd)
        await until(lambda: group.chunk.next == token(3) or here.done)
        await here.settle()
        assert b"ne" in here.got(fd)
        assert not failures
        assert here.here.upstream.asked == [("read", token(1))] * 3
        assert here.done == ([(fd, True)] if live == "poll" else [])


async def test_fetch_that_fails_for_good_is_told_to_the_group_that_needed_it() -> None:
    async with room(b"one") as here:
        fd = await here.poll(token(3))
        group = await strand(here)
        here.here.upstream.failures.append(Refused(410, "gone", "it is gone", {}))
        here.parked.stir(group.crowd)
        await until(lambda: here.done)
        assert here.got(fd).startswith(b"HTTP/1.1 410 ")
        assert here.crowds == {}


async def test_draining_lets_long_polls_go_with_news_and_without_another_request() -> None:
    async with room(b"one") as here:
        fd = await here.poll(token(3))
        here.parked.draining = True
        here.wake(b"two")
        await here.settle()
        assert b"Connection: close\r\n" in here.got(fd)
        assert here.done == [(fd, False)]


async def test_nothing_is_written_after_the_end() -> None:
    async with room(b"one") as here:
        readers = [await here.poll(token(3)) for _ in range(2 * SLICE)]
        await here.settle()
        here.wake(b"two")
        await turn(2)
        here.parked.close()
        count = len(here.done)
        await turn()
        assert len(here.done) == count < len(readers)


# --- as many groups as clients like --------------------------------------------------------------


async def test_number_of_groups_holds_up_no_turn_and_holds_no_payload_each() -> None:
    """A client chooses its cursor, and so a group of its own."""
    async with room(b"one") as here:
        ahead = int(next_cursor(here.here.clock.now_ms(), None)) + 5
        readers = [await here.poll(token(3), cursor=str(ahead + n)) for n in range(4 * SLICE)]
        await here.settle()
        assert len(here.groups) == len(readers)
        begun = 0
        begin: Callable[..., Pass] = here.parked._begin

        def count(*given: object, **more: object) -> Pass:
            nonlocal begun
            begun += 1
            return begin(*given, **more)

        here.parked._begin = count  # type: ignore[method-assign]
        here.wake(b"two")
        most = 0
        while here.busy:
            before = begun
            await asyncio.sleep(0)
            assert begun - before <= SLICE
            most = max(most, len(here.parked._passes.under_way))
        assert most <= 100
        assert {fd for fd, _ in here.done} == set(readers)


# --- anything at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
async def test_every_reader_gets_every_byte_once_whatever_happens(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_module, "_SLICE", 3)
    chance = random.Random(seed)
    async with room(b"one") as here:
        upstream = here.here.upstream
        streams: dict[int, tuple[int, bytearray]] = {}  # where they began, and what they have
        polls: dict[int, tuple[int, bytearray]] = {}

        def read() -> None:
            for fd, (_, got) in [*streams.items(), *polls.items()]:
                got += here.got(fd)

        for step in range(200):
            match chance.randrange(12):
                case 0 | 1 | 2:
                    place = len(upstream.data)
                    fd = await here.stream(token(place))
                    streams[fd] = (place, bytearray())
                case 3 | 4:
                    place = len(upstream.data)
                    fd = await here.poll(token(place), cursor=chance.choice(["1", "9" * 12]))
                    polls[fd] = (place, bytearray())
                case 5 | 6:
                    here.wake(b"<%d>" % step)
                case 7:
                    here.here.wake(replace(here.here.append(b"(%d)" % step), payload=None))
                case 8:
                    here.here.append(b"[%d]" % step)  # its wake is lost
                case 9:
                    here.here.clock.turn(20)
                    await here.parked.send_heartbeats(15)
                case 10 if streams or polls:
                    fd = chance.choice([*streams, *polls])
                    streams.pop(fd, None)
                    if polls.pop(fd, None) is None or here.seats.party[fd] is not None:
                        here.leave(fd)
                case _:
                    await turn(chance.randrange(6))
            read()
        here.wake(b"last")
        while not all(b"last" in got for _, got in streams.values()):
            await here.settle()
            read()
        for place, got in streams.values():
            assert b"".join(heard(bytes(got))) == upstream.data[place:]
        for place, got in polls.values():
            head, _, body = bytes(got).partition(b"\r\n\r\n")
            assert head.count(b"HTTP/1.1 200 OK") == 1
            assert body
            assert upstream.data[place:].startswith(body)
        assert here.parked.polls == 0
        assert here.parked.streams == len(streams)
        for fd in streams:
            here.leave(fd)
        assert here.crowds == {}
