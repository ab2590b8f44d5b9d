"""Catch-up reads: from the cache while its word is fresh, else by one shared upstream read."""

import asyncio
from dataclasses import replace

import pytest

from edge.upstream import Refused
from shared.protocol.chunk import Chunk
from shared.protocol.errors import Unavailable
from tests.edge.following import PATH, Edge, Reader, edge, turn
from tests.fakes import ScriptedUpstream, token

CHUNK = 1024
DATA = bytes(range(256)) * 16  # four full chunks


def reads(here: Edge) -> list[str]:
    return [offset for _, offset in here.upstream.asked]


async def test_full_chunk_is_read_once_and_kept_while_it_was_confirmed_just_now() -> None:
    async with edge(DATA) as here:
        for _ in range(5):
            chunk = await here.source.read(PATH, token(CHUNK))
            assert chunk.body == DATA[CHUNK : 2 * CHUNK]
        assert reads(here) == [token(CHUNK)]


async def test_kept_chunk_is_confirmed_after_a_second() -> None:
    """A deletion would not be known otherwise, where nobody waits and no wake comes."""
    async with edge(DATA) as here:
        first = await here.source.read(PATH, token(0))
        here.clock.turn(1.5)
        assert await here.source.read(PATH, token(0)) is first
        assert len(reads(here)) == 2
        await here.source.read(PATH, token(0))
        assert len(reads(here)) == 2


async def test_confirming_one_chunk_says_nothing_of_another_after_a_deletion() -> None:
    async with edge(DATA) as here:
        await here.source.read(PATH, token(0))
        await here.source.read(PATH, token(CHUNK))
        here.clock.turn(1.5)
        here.upstream.failures.append(Refused(404, "not_found", "no such stream", {}))
        with pytest.raises(Refused):
            await here.source.read(PATH, token(0))
        here.upstream.failures.append(Refused(404, "not_found", "no such stream", {}))
        with pytest.raises(Refused):
            await here.source.read(PATH, token(CHUNK))


async def read_all(here: Edge) -> None:
    for number in range(4):
        await here.source.read(PATH, token(number * CHUNK))
    here.upstream.asked.clear()


async def test_one_read_confirms_all_that_is_kept_of_a_life() -> None:
    async with edge(DATA) as here:
        await read_all(here)
        for _ in range(2):
            here.clock.turn(1.5)
            places = [token(number * CHUNK) for number in (2, 0, 3, 1)]
            found = await asyncio.gather(*(here.source.read(PATH, place) for place in places))
            assert b"".join(found[at].body for at in (1, 3, 0, 2)) == DATA
        assert reads(here) == [token(0)] * 2


async def test_foreign_server_is_asked_about_each_chunk() -> None:
    """Its offsets may mean anything, and be made anew with the stream, whatever they look like."""
    async with edge(DATA) as here:
        here.upstream.mark = "their "
        await read_all(here)
        here.clock.turn(1.5)
        here.upstream.data = bytearray(reversed(DATA))
        here.upstream.mark = "others "
        for number in (0, 2, 1):
            begin = number * CHUNK
            new = here.upstream.data[begin : begin + CHUNK]
            assert (await here.source.read(PATH, token(begin))).body == new
        assert reads(here) == [token(0), token(2 * CHUNK), token(CHUNK)]


async def test_beginning_by_name_confirms_what_follows_it() -> None:
    async with edge(DATA) as here:
        await here.source.read(PATH, "-1")
        await read_all(here)
        here.clock.turn(1.5)
        await here.source.read(PATH, "-1")
        await here.source.read(PATH, token(2 * CHUNK))
        assert reads(here) == ["-1"]
        await here.source.read(PATH, token(0))
        assert reads(here) == ["-1"]


async def test_another_life_at_the_beginning_confirms_nothing_of_the_last_one() -> None:
    async with edge(DATA) as here:
        await read_all(here)
        here.clock.turn(1.5)
        here.upstream.incarnation += 1
        await here.source.read(PATH, "-1")
        here.upstream.failures.extend(Refused(410, "gone", "another life", {}) for _ in range(2))
        with pytest.raises(Refused):
            await here.source.read(PATH, token(2 * CHUNK))
        # The first refusal was about the earliest chunk; then none was left to ask about.
        assert reads(here) == ["-1", token(0), token(2 * CHUNK)]
        here.upstream.failures.append(Refused(410, "gone", "another life", {}))
        with pytest.raises(Refused):
            await here.source.read(PATH, token(3 * CHUNK))


async def test_what_retention_trimmed_is_gone_and_what_follows_is_confirmed_by_the_next() -> None:
    async with edge(DATA) as here:
        await read_all(here)
        here.clock.turn(1.5)
        earliest = {"Stream-Earliest-Offset": token(2 * CHUNK)}
        here.upstream.failures.append(Refused(410, "trimmed", "not kept any more", earliest))
        assert (await here.source.read(PATH, token(3 * CHUNK))).body == DATA[3 * CHUNK :]
        await here.source.read(PATH, token(2 * CHUNK))
        assert reads(here) == [token(0), token(3 * CHUNK), token(2 * CHUNK)]
        here.upstream.failures.append(Refused(410, "trimmed", "not kept any more", earliest))
        with pytest.raises(Refused, match="not kept any more"):
            await here.source.read(PATH, token(CHUNK))
        here.clock.turn(1.5)
        await here.source.read(PATH, token(3 * CHUNK))
        await here.source.read(PATH, token(2 * CHUNK))
        assert reads(here)[4:] == [token(2 * CHUNK)]


async def test_stream_that_is_gone_is_told_by_the_confirmation_itself() -> None:
    async with edge(DATA) as here:
        await read_all(here)
        here.clock.turn(1.5)
        here.upstream.failures.append(Refused(404, "not_found", "no such stream", {}))
        with pytest.raises(Refused, match="no such stream"):
            await here.source.read(PATH, token(3 * CHUNK))
        assert reads(here) == [token(0)]


async def test_crowd_that_comes_for_a_chunk_while_it_is_read_costs_no_second_read() -> None:
    async with edge(DATA) as here:
        here.upstream.gate.clear()
        first = asyncio.create_task(here.source.read(PATH, token(0)))
        await turn()
        crowd = [asyncio.create_task(here.source.read(PATH, token(0))) for _ in range(50)]
        await turn()
        here.upstream.gate.set()
        assert {id(chunk) for chunk in await asyncio.gather(*crowd)} == {id(await first)}
        assert reads(here) == [token(0)]


@pytest.mark.parametrize("offset", ["-1", "0000000000000000_0000000000000000"])
async def test_name_of_a_place_is_asked_about_each_time_and_sent_once(offset: str) -> None:
    """It may mean another life of the stream tomorrow."""
    async with edge(DATA) as here:
        first = await here.source.read(PATH, offset)
        for _ in range(2):
            assert await here.source.read(PATH, offset) is first
        assert len(reads(here)) == 3
        here.upstream.incarnation += 1
        assert (await here.source.read(PATH, offset)).next == token(CHUNK, 2)


async def test_open_end_of_a_stream_by_name_is_never_kept() -> None:
    async with edge(b"abc") as here:
        first = await here.source.read(PATH, "-1")
        assert await here.source.read(PATH, "-1") is not first


async def test_chunk_that_reaches_the_tail_is_never_kept() -> None:
    async with edge(DATA[: CHUNK + 10]) as here:
        last = DATA[CHUNK : CHUNK + 10]
        assert (await here.source.read(PATH, token(CHUNK))).body == last
        here.append(b"more")
        assert (await here.source.read(PATH, token(CHUNK))).body == last + b"more"


async def test_end_that_live_readers_were_told_is_not_what_a_cache_is_told_of_it() -> None:
    """A chunk that is made for live readers says nothing of how long a read may be kept."""
    async with edge(b"one") as here:
        here.upstream.closed = True
        # Whoever comes during the first read gets what it has found out.
        joined = await asyncio.gather(*(here.source.join(PATH, token(3)) for _ in range(3)))
        assert all(chunk.closed for chunk in joined)
        read = await here.source.read(PATH, token(3))
        assert (read.closed, read.cache_control) == (True, "public, max-age=1")


async def test_readers_at_once_share_a_read_that_started_after_they_came() -> None:
    async with edge(b"one") as here:
        here.upstream.gate.clear()
        early = asyncio.create_task(here.source.read(PATH, "-1"))
        await turn()
        here.append(b"two")
        late = [asyncio.create_task(here.source.read(PATH, "-1")) for _ in range(100)]
        await turn()
        here.upstream.gate.set()
        assert (await early).body == b"one"
        assert {chunk.body for chunk in await asyncio.gather(*late)} == {b"onetwo"}
        assert len(reads(here)) == 2


async def test_error_reaches_all_who_share_and_is_asked_anew_by_the_next() -> None:
    async with edge(b"one") as here:
        here.upstream.failures.append(Unavailable("away"))
        told = await asyncio.gather(
            *(here.source.read(PATH, "-1") for _ in range(50)), return_exceptions=True
        )
        assert len(reads(here)) == 2
        assert sum(isinstance(answer, Unavailable) for answer in told) == 1  # the first was alone
        assert (await here.source.read(PATH, "-1")).body == b"one"


async def test_live_read_begins_at_the_known_tail_without_a_read() -> None:
    async with edge(b"one") as here:
        reader = Reader(here)
        await reader.has(b"one")
        here.upstream.asked.clear()
        joined = await here.source.join(PATH, token(3))
        assert (joined.empty, joined.at_tail, joined.next) == (True, True, token(3))
        here.wake(here.append(b"two"))
        assert (await here.source.join(PATH, token(3))).body == b"two"
        assert reads(here) == []


async def test_live_read_from_an_unknown_place_asks_the_upstream() -> None:
    async with edge(b"one") as here:
        reader = Reader(here)
        await reader.has(b"one")
        here.upstream.asked.clear()
        assert (await here.source.join(PATH, token(1))).body == b"ne"
        assert (await here.source.join(PATH, "-1")).body == b"one"
        assert reads(here) == [token(1), "-1"]


async def test_live_read_catches_up_chunk_by_chunk_and_then_waits() -> None:
    async with edge(DATA) as here:
        readers = [Reader(here) for _ in range(20)]
        for reader in readers:
            await reader.has(DATA)
        # Each chunk, the empty end, and once more what whoever came late asked for.
        assert len(reads(here)) <= 2 * 5
        here.wake(here.append(b"live"))
        for reader in readers:
            await reader.has(DATA + b"live")


async def test_upstream_whose_offset_leads_nowhere_is_not_asked_without_end() -> None:
    class Circle(ScriptedUpstream):
        """Says that there is more, and where; and there it says the same."""

        async def read(self, path: str, offset: str, held: Chunk | None = None) -> Chunk:
            chunk = await super().read(path, offset, held)
            place = token((int(offset.partition("_")[2]) + 1) % 7)
            return replace(chunk, next=place, body=b"", empty=True, at_tail=False)

    async with edge(b"one") as here:
        circle = Circle(b"one")
        here.source._upstream = circle  # type: ignore[assignment]
        here.tails._upstream = circle  # type: ignore[assignment]
        reader = Reader(here, token(3))
        await asyncio.sleep(0.3)
        asked = len(circle.asked)
        await asyncio.sleep(0.3)
        assert len(circle.asked) - asked <= 5
        await reader.leave()
