"""Readers that wait, as bare descriptors: groups, passes over them, and who leaves meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from edge import outbox as outbox_module
from edge import parked as parked_module
from edge import seats as states
from edge.outbox import Outbox
from edge.parked import Group, Parked, Pass
from edge.seats import NEVER, Seats
from edge.upstream import Refused
from shared.plain import Plain
from shared.protocol.caching import CachePolicy
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import Unavailable
from shared.protocol.request import Live, Read
from shared.wake import Wake
from tests.edge.following import PATH, Edge, edge, turn, until
from tests.fakes import token

SLICE = parked_module._SLICE
END = b"0\r\n\r\n"


class Room:
    """A desk that keeps all it is told, before an edge without HTTP."""

    def __init__(self, here: Edge) -> None:
        self.here = here
        self.seats = Seats()
        self.outbox = Outbox()
        self.parked = Parked(
            self.seats, self.outbox, self, here.tails, here.source, CachePolicy(), here.clock
        )
        self.far: dict[int, socket.socket] = {}
        self.done: list[tuple[int, bool]] = []  # descriptors answered, and whether they are kept
        self.closed: list[tuple[int, str | None]] = []

    # --- the desk --------------------------------------------------------------------------------

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        self.seats.rest(fds, NEVER)
        self.done += ((fd, keep_alive) for fd in fds)

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        if fd in self.outbox:
            self.outbox.add(fd, (payload,))
        else:
            self.outbox.keep(fd, (payload,), sent, self.here.clock.monotonic_s())

    def close(self, fd: int, reason: str | None = None) -> None:
        if isinstance(self.seats.party[fd], Group):
            self.parked.leave(fd)
        self.seats.free(fd)
        self.outbox.drop(fd)
        self.closed.append((fd, reason))
        os.close(fd)

    # --- readers ---------------------------------------------------------------------------------

    async def poll(self, offset: str, **asked: str) -> int:
        """Let a long-poll wait at an offset."""
        return await self.join(Plain(PATH, Read(offset, Live.LONG_POLL, **asked), True))

    async def stream(self, offset: str, **asked: str) -> int:
        """Let an event stream wait at an offset."""
        return await self.join(Plain(PATH, Read(offset, Live.SSE, **asked), True))

    async def join(self, plain: Plain, near: int | None = None) -> int:
        chunk = await self.here.source.join(PATH, plain.asked.offset)
        assert chunk.empty
        ours, theirs = socket.socketpair()
        fd = ours.detach()
        if near is not None and near != fd:
            os.dup2(fd, near)
            os.close(fd)
            fd = near
        os.set_blocking(fd, False)
        theirs.setblocking(False)
        self.far[fd] = theirs
        self.seats.take(fd, states.PARKED, NEVER)
        self.parked.park(fd, plain, chunk)
        return fd

    def leave(self, fd: int) -> None:
        """Let a reader break off."""
        self.far.pop(fd).close()
        self.close(fd)

    def got(self, fd: int) -> bytes:
        """Return what has come to a reader since it was asked last."""
        try:
            return self.far[fd].recv(1 << 20)
        except BlockingIOError:
            return b""

    @property
    def groups(self) -> list[Group]:
        return [g for crowd in self.parked._crowds.values() for g in crowd.groups.values()]

    @property
    def busy(self) -> bool:
        parked = self.parked
        return bool(parked._passes or parked._stirred or parked._turn)

    async def settle(self) -> None:
        await until(lambda: not self.busy and not any(g.fetching for g in self.groups))

    def wake(self, more: bytes) -> Wake:
        """Let the stream grow, and its wake come."""
        wake = self.here.append(more)
        self.here.wake(wake)
        return wake


@asynccontextmanager
async def room(data: bytes) -> AsyncIterator[Room]:
    async with edge(data) as here:
        made = Room(here)
        try:
            yield made
        finally:
            made.parked.close()
            await turn()
            for fd, theirs in made.far.items():
                theirs.close()
                if made.seats.state[fd] != states.FREE:
                    made.close(fd)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bytes]]]:
    """All writes of parked readers, in order."""
    seen: list[tuple[int, bytes]] = []
    write = os.write

    def spy(fd: int, data: bytes) -> int:
        seen.append((fd, data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", spy)
    yield seen
    monkeypatch.undo()


# --- groups --------------------------------------------------------------------------------------


async def test_readers_at_one_place_are_a_group_and_get_the_very_same_bytes(
    writes: list[tuple[int, bytes]],
) -> None:
    async with room(b"one") as here:
        polls = [await here.poll(token(3)) for _ in range(50)]
        streams = [await here.stream(token(3)) for _ in range(50)]
        assert len(here.groups) == 2
        writes.clear()  # the loop writes to itself
        here.wake(b"two")
        await here.settle()
        sent = [(fd, data) for fd, data in writes if fd in here.far]
        assert len(sent) == 100
        assert len({id(data) for _, data in sent}) == 2
        for fd in polls:
            assert here.got(fd).endswith(b"\r\n\r\ntwo")
        for fd in streams:
            assert b"data:two\n\n" in here.got(fd)
        assert sorted(here.done) == sorted((fd, True) for fd in polls)
        assert (here.parked.polls, here.parked.streams) == (0, 50)


async def test_what_a_reply_depends_on_makes_a_group_of_its_own() -> None:
    async with room(b"one") as here:
        ahead = str(int(next_cursor(here.here.clock.now_ms(), None)) + 5)
        etag = f'"{token(3)}:{token(6)}"'
        plain = await here.poll(token(3))
        passed = await here.poll(token(3), cursor="1")  # the clock is ahead of it
        early = await here.poll(token(3), cursor=ahead)
        now = await here.poll("now")
        cached = await here.poll(token(3), if_none_match=etag)
        closing = await here.join(Plain(PATH, Read(token(3), Live.LONG_POLL), False))
        assert len(here.groups) == 5
        here.wake(b"two")
        await here.settle()
        replies = {fd: here.got(fd) for fd in (plain, passed, early, now, cached, closing)}
        assert replies[plain] == replies[passed]
        assert f"Stream-Cursor: {int(ahead) + 1}\r\n".encode() in replies[early]
        assert b"no-store" in replies[now]
        assert replies[cached].startswith(b"HTTP/1.1 304 ")
        assert b"Connection: close\r\n" in replies[closing]
        assert (closing, False) in here.done


async def test_event_streams_that_meet_at_one_place_become_one_group() -> None:
    async with room(b"one") as here:
        early = [await here.stream(token(3)) for _ in range(2 * SLICE)]
        here.wake(b"two")
        await turn(2)  # some have it by now
        assert here.parked.busy
        late = [await here.stream(token(6)) for _ in range(3)]
        assert len(here.groups) == 1
        here.wake(b"three")
        await here.settle()
        assert len(here.groups) == 1
        assert here.groups[0].count == len(early) + len(late)
        here.wake(b"four")
        await here.settle()
        for fd in early:
            assert heard(here.got(fd)) == [b"two", b"three", b"four"]
        for fd in late:
            assert heard(here.got(fd)) == [b"three", b"four"]


def heard(stream: bytes) -> list[bytes]:
    """Return the lines of data in an event stream."""
    return [
        line[5:] for line in stream.split(b"\n") if line.startswith(b"data:") and line[5:6] != b"{"
    ]


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


# --- passes --------------------------------------------------------------------------------------


async def test_pass_yields_to_the_loop_after_every_slice() -> None:
    async with room(b"one") as here:
        for _ in range(5 * SLICE):
            await here.poll(token(3))
        await here.settle()
        here.wake(b"two")
        counts = [0]
        while here.busy:
            await asyncio.sleep(0)
            counts.append(len(here.done))
        assert counts[-1] == 5 * SLICE
        assert max(b - a for a, b in itertools.pairwise(counts)) <= SLICE


async def test_passes_of_many_streams_share_the_turns() -> None:
    """A crowd does not hold up whoever waits alone."""
    async with room(b"one") as here:
        crowd = [await here.poll(token(3)) for _ in range(5 * SLICE)]
        alone = await here.poll("now")
        await here.settle()
        here.wake(b"two")
        while not any(fd == alone for fd, _ in here.done):
            await turn(1)
        assert len(here.done) < len(crowd) / 2


async def test_nobody_is_always_the_last(writes: list[tuple[int, bytes]]) -> None:
    random.seed(5)
    async with room(b"one") as here:
        streams = [await here.stream(token(3)) for _ in range(8)]
        last = set()
        for _ in range(60):
            writes.clear()
            here.wake(b"x")
            await here.settle()
            order = [fd for fd, _ in writes if fd in here.far]
            assert sorted(order) == sorted(streams)
            last.add(order[-1])
        assert last == set(streams)


async def test_descriptor_that_another_reader_has_by_now_is_not_written_to_by_an_old_pass() -> None:
    random.seed(1)
    async with room(b"one") as here:
        readers = [await here.poll(token(3)) for _ in range(3 * SLICE)]
        await here.settle()
        here.wake(b"two")
        await turn(2)
        done = {fd for fd, _ in here.done}
        waiting = [fd for fd in readers if fd not in done]
        assert done
        assert waiting
        reused = waiting[::3]
        for number, fd in enumerate(reused):
            here.leave(fd)
            live = Live.SSE if number % 2 else Live.LONG_POLL
            assert await here.join(Plain(PATH, Read(token(6), live), True), near=fd) == fd
        await here.settle()
        for fd in reused:
            assert here.got(fd) == b""
        for fd in set(readers) - set(reused):
            assert here.got(fd).endswith(b"\r\n\r\ntwo")
        assert here.parked.polls + here.parked.streams == len(reused)
        here.wake(b"three")
        await here.settle()
        for fd in reused:
            assert here.got(fd).count(b"three") == 1


async def test_readers_who_leave_during_a_pass_are_skipped_and_nothing_is_left_of_them() -> None:
    async with room(b"one") as here:
        streams = [await here.stream(token(3)) for _ in range(3 * SLICE)]
        await here.settle()
        here.wake(b"two")
        await turn(2)
        for fd in streams:
            here.leave(fd)
        assert here.parked.streams == 0
        await here.settle()
        assert here.parked._crowds == {}
        assert here.here.tails.hold(PATH).users == 1


async def test_connection_that_breaks_in_a_pass_takes_nobody_along() -> None:
    async with room(b"one") as here:
        readers = [await here.stream(token(3)) for _ in range(20)]
        for fd in readers[::2]:
            here.far[fd].close()
        here.wake(b"two")
        await here.settle()
        assert sorted(fd for fd, _ in here.closed) == sorted(readers[::2])
        for fd in readers[::2]:
            del here.far[fd]
        for fd in readers[1::2]:
            assert heard(here.got(fd)) == [b"two"]


async def test_time_of_a_long_poll_that_is_being_written_to_is_not_over() -> None:
    async with room(b"one") as here:
        readers = [await here.poll(token(3)) for _ in range(2 * SLICE)]
        await here.settle()
        here.wake(b"two")
        await turn(2)
        waiting = set(readers) - {fd for fd, _ in here.done}
        assert waiting
        assert all(here.parked.take_back(fd) is None for fd in waiting)
        await here.settle()
        assert len(here.done) == len(readers)


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
        await until(lambda: all(heard(peek(here, fd)) == [b"two"] for fd in streams))


def peek(here: Room, fd: int) -> bytes:
    try:
        return here.far[fd].recv(1 << 20, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


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
        assert here.parked._crowds == {}


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
        assert here.parked._crowds == {}
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
        assert here.parked._crowds == {}


async def test_fetch_that_fails_is_told_to_the_group_that_needed_it() -> None:
    async with room(b"one") as here:
        fd = await here.poll(token(3))
        await here.settle()
        (group,) = here.groups
        # A place that is not known here any more: the tail has moved on far beyond it.
        group.chunk = replace(group.chunk, next=token(1))
        here.here.upstream.failures.append(Unavailable("away"))
        here.parked.stir(group.crowd)
        await until(lambda: here.done)
        assert here.got(fd).startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" not in here.got(fd)
        assert here.parked._crowds == {}


async def test_readers_who_leave_during_a_fetch_leave_nothing_behind() -> None:
    async with room(b"one") as here:
        fd = await here.poll(token(3))
        await here.settle()
        (group,) = here.groups
        group.chunk = replace(group.chunk, next=token(1))
        here.here.upstream.gate.clear()
        here.parked.stir(group.crowd)
        await turn()
        assert group.fetching is not None
        here.leave(fd)
        here.here.upstream.gate.set()
        await turn()
        assert here.parked._crowds == {}
        assert not here.busy


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
            most = max(most, len(here.parked._passes))
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
        assert here.parked._crowds == {}


# --- slow readers --------------------------------------------------------------------------------


async def test_slow_event_stream_is_closed_once_it_is_too_far_behind_and_delays_nobody() -> None:
    async with room(b"one") as here:
        slow = await here.stream(token(3))
        quick = [await here.stream(token(3)) for _ in range(3)]
        await here.settle()
        piece, count = b"x" * 20_000, 0
        while not here.closed:
            here.wake(piece)
            await here.settle()
            for fd in quick:
                assert heard(here.got(fd)) == [piece]
            count += 1
            assert count < 100
            if slow in here.outbox:
                assert here.outbox._rests[slow].size <= outbox_module.BACKLOG_BYTES + 30_000
        assert here.closed == [(slow, "backlog")]
        assert here.parked.streams == 3
        assert len(here.outbox) == here.outbox._held_bytes == 0


async def test_payload_that_is_cut_anywhere_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    cut: dict[int, int] = {}  # how much of the next write goes out, by descriptor

    def short(fd: int, data: bytes) -> int:
        if fd not in cut:
            return write(fd, data)
        size = cut.pop(fd)
        if not size:
            raise BlockingIOError
        return write(fd, data[:size])

    async with room(b"one") as here:
        whole = await here.stream(token(3))
        readers = [await here.stream(token(3)) for _ in range(150)]
        polls = [await here.poll(token(3)) for _ in range(400)]
        await here.settle()
        cut |= {fd: n for n, fd in enumerate(readers)}
        cut |= {fd: n for n, fd in enumerate(polls)}
        monkeypatch.setattr(os, "write", short)
        here.wake(b"two")
        here.wake(b"three")
        await here.settle()
        monkeypatch.undo()
        here.wake(b"four")  # behind what waits
        await here.settle()
        for fd in list(here.outbox._rests):
            assert here.outbox.flush(fd, 0.0)
        expected = here.got(whole)
        assert heard(expected) == [b"twothree", b"four"]
        for fd in readers:
            assert here.got(fd) == expected
        for fd in polls:
            reply = here.got(fd)
            assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
            assert reply.endswith(b"\r\n\r\ntwothree")
