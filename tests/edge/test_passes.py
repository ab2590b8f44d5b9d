"""Passes: one payload for all, in slices, past those who leave, break or are slow."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
from collections.abc import Iterator, Sequence

import pytest

from edge import outbox as outbox_module
from edge import parked as parked_module
from edge import seats as states
from edge.outbox import Outbox
from edge.passes import Pass, Passes
from edge.seats import NEVER, Party, Seats
from shared.plain import Plain
from shared.protocol.request import Live, Read
from tests.edge.following import PATH, turn
from tests.edge.room import heard, room
from tests.fakes import token

SLICE = parked_module._SLICE


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
        assert here.crowds == {}
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


class Told:
    """A desk and a keeper that keep what they are told."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        self.said.append(("answered", *fds, keep_alive))

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        self.said.append(("unsent", fd, sent, keep_alive))

    def close(self, fd: int, reason: str | None = None) -> None:
        self.said.append(("closed", fd, reason))

    def released(self, party: Party, count: int) -> None:
        self.said.append(("released", count))

    def finished(self, work: Pass) -> None:
        self.said.append(("finished", work.answered))


@pytest.mark.parametrize("ends", [True, False])
async def test_pass_takes_a_party_of_any_kind_as_far_as_its_budget_goes(ends: bool) -> None:
    seats, party, told = Seats(), Party(), Told()
    passes = Passes(seats, Outbox(), told, told)
    pairs = [socket.socketpair() for _ in range(5)]
    for ours, _ in pairs:
        seats.take(ours.fileno(), states.PARKED, NEVER)
        seats.join(ours.fileno(), party)
    passes.begin(Pass(party, b"news", behind=not ends, ends=ends, keep_alive=ends))
    assert passes.write(3) == 4  # a turn counts as a place, so that an empty one costs something
    assert [what for what, *_ in told.said] == ["released", "answered"] * ends
    assert party.count == (2 if ends else 5)
    assert passes.write(3) == 3
    assert not passes.under_way
    assert told.said[-1] == ("finished", 5 * ends)
    assert all(theirs.recv(100) == b"news" for _, theirs in pairs)
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
