"""What is in memory, what is not, and that nobody could tell."""

import asyncio
from pathlib import Path

import pytest

from origin.journal import Journal
from origin.memory import MemoryJournal
from origin.sqlite import SqliteJournal
from shared.protocol.append import Unchanged
from shared.protocol.errors import NotFound
from tests.fakes import FakeClock
from tests.origin.wired import Wired, turn, wired


def hot(origin: Wired) -> set[str]:
    return {stream.state.path for stream in origin.catalog.by_incarnation.values()}


async def cool(origin: Wired) -> None:
    """Index all, and let what is not in use leave memory."""
    origin.index()
    await turn(1)


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path)


async def test_streams_used_last_stay_in_memory(journal: Journal) -> None:
    async with wired(journal, hot_streams=3) as origin:
        for name in "abcdef":
            await origin.create(name, name.encode())
        assert hot(origin) == set("abcdef")  # the index does not have them yet
        await cool(origin)
        assert len(hot(origin)) == 3
        assert await origin.content("a") == b"a"
        await origin.append("d", b"d")
        await cool(origin)
        assert len(hot(origin)) == 3
        assert {"a", "d"} <= hot(origin)
        assert set(origin.catalog.by_path) == hot(origin)
    journal.close()


async def test_cold_stream_goes_on_where_it_was(journal: Journal) -> None:
    async with wired(journal, hot_streams=1) as origin:
        await origin.create("s", b"one")
        await origin.append("s", b"two", producer=("p", 0, 0), seq="a")
        await origin.create("other")
        await cool(origin)
        assert hot(origin) == {"other"}
        retry = await origin.append("s", b"two", producer=("p", 0, 0), seq="a")
        assert isinstance(retry, Unchanged)
        await origin.create("another")
        await cool(origin)
        await origin.append("s", b"three", producer=("p", 0, 1), seq="b")
        assert await origin.content("s") == b"onetwothree"
    journal.close()


async def test_stream_that_somebody_waits_on_stays(journal: Journal) -> None:
    async with wired(journal, hot_streams=1) as origin:
        await origin.create("s", b"one")
        at_tail = await origin.reads.read("s", "now")
        waiting = asyncio.create_task(origin.reads.next("s", at_tail))
        await turn()
        for name in "abc":
            await origin.create(name)
        await cool(origin)
        assert "s" in hot(origin)
        await origin.append("s", b"two")
        assert (await asyncio.wait_for(waiting, 5)).body == b"two"
    journal.close()


async def test_forks_are_counted_though_none_is_in_memory(journal: Journal) -> None:
    async with wired(journal, hot_streams=1) as origin:
        await origin.create("source", b"inherited")
        for name in ("f", "g"):
            await origin.create(name, kind=None, source="source")
            await origin.create("other" + name)
            await cool(origin)
        await origin.streams.delete("source")
        await cool(origin)
        await origin.streams.delete("f")
        await cool(origin)
        assert await origin.content("g") == b"inherited"
        await origin.streams.delete("g")
        await cool(origin)
        assert journal.find("source") is None
        assert journal.extents(1, 0, 100) == []
        await origin.create("source", b"anew")
        assert await origin.content("source") == b"anew"
    journal.close()


async def test_path_of_a_deleted_stream_is_free_though_the_index_still_has_it(
    journal: Journal,
) -> None:
    async with wired(journal, hot_streams=1) as origin:
        await origin.create("s", b"old")
        await origin.create("other")
        await cool(origin)
        await origin.streams.delete("s")
        with pytest.raises(NotFound):
            await origin.content("s")
        with pytest.raises(NotFound):
            await origin.append("s", b"x")
        await origin.create("s", b"new")
        await cool(origin)
        await origin.create("another")
        await cool(origin)
        assert await origin.content("s") == b"new"
    async with wired(journal) as again:
        assert await again.content("s") == b"new"
    journal.close()


async def test_cold_stream_ends_when_its_time_is_over(journal: Journal) -> None:
    clock = FakeClock()
    async with wired(journal, clock, hot_streams=1) as origin:
        for number in range(100):
            await origin.create(f"short/{number}", ttl_s=10)
        await origin.create("long", ttl_s=100)
        await origin.create("other")
        await cool(origin)
        assert len(hot(origin)) == 1
        clock.turn(11)
        for _ in range(20):
            for stream in list(origin.catalog.due()):
                assert origin.streams.expire(stream)
            await origin.streams.settled()
        await cool(origin)
        assert [stored.state.path for stored in journal.stored()] == ["long", "other"]
        assert list(origin.catalog.due()) == []
    journal.close()


async def test_window_that_was_renewed_in_memory_is_not_over_on_disk(journal: Journal) -> None:
    clock = FakeClock()
    async with wired(journal, clock, hot_streams=1) as origin:
        await origin.create("s", b"one", ttl_s=10)
        await origin.create("other")
        await cool(origin)
        clock.turn(9)
        await origin.content("s")
        clock.turn(9)
        assert [stream for stream in origin.catalog.due() if origin.streams.expire(stream)] == []
        assert await origin.content("s") == b"one"
    journal.close()


async def test_look_up_and_leave_over_and_over_leaves_nothing_behind(journal: Journal) -> None:
    async with wired(journal, hot_streams=1) as origin:
        for name in "ab":
            await origin.create(name, ttl_s=10_000)
        await cool(origin)
        for _ in range(2000):
            origin.catalog.find("a")
            origin.catalog.find("b")
            await turn(1)
        assert len(origin.catalog.by_incarnation) <= 2
        assert len(origin.catalog._due) <= 1100
    journal.close()


async def test_streams_found_in_one_turn_are_kept_to_its_end(journal: Journal) -> None:
    async with wired(journal, hot_streams=1) as origin:
        for name in "abc":
            await origin.create(name)
        await cool(origin)
        found = [origin.catalog.find(name) for name in "abc"]
        assert [origin.catalog.find(name) for name in "abc"] == found
        await turn(1)
        assert len(origin.catalog.by_incarnation) == 1
    journal.close()
