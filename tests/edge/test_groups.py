"""Groups: who gets the same bytes next, and what is left of them."""

from __future__ import annotations

from dataclasses import replace

from edge import parked as parked_module
from shared.plain import Plain
from shared.protocol.cursor import next_cursor
from shared.protocol.request import Live, Read
from tests.edge.following import PATH, turn
from tests.edge.room import heard, room
from tests.fakes import token

SLICE = parked_module._SLICE


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
        assert here.crowds == {}
        assert not here.busy
