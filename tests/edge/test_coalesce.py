"""Who shares which read: only one that started after it was asked for."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from edge.coalesce import Coalescer


class Source:
    """Something to fetch, whose fetches end when the test says so."""

    def __init__(self) -> None:
        self.fetches: list[asyncio.Future[int]] = []
        self.running = 0
        self.most = 0

    async def fetch(self) -> int:
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.fetches.append(ended)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await ended
        finally:
            self.running -= 1


async def turn() -> None:
    """Let everything that can run now run."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(
    reads: Coalescer[str, int], source: Source, count: int = 1, key: str = "k"
) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(reads.get(key, source.fetch)) for _ in range(count)]


async def test_reader_gets_what_the_fetch_returns() -> None:
    reads: Coalescer[str, int] = Coalescer()

    async def seven() -> int:
        return 7

    assert await reads.get("k", seven) == 7
    assert await reads.get("k", seven) == 7


async def test_whoever_arrives_during_a_read_joins_the_next() -> None:
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    first = ask(reads, source)
    await turn()
    late = ask(reads, source, 1000)
    await turn()
    assert len(source.fetches) == 1
    source.fetches[0].set_result(1)
    await turn()
    assert first[0].result() == 1
    assert not any(reader.done() for reader in late)
    assert len(source.fetches) == 2
    source.fetches[1].set_result(2)
    assert await asyncio.gather(*late) == [2] * 1000
    assert len(source.fetches) == 2


async def test_there_are_never_two_reads_of_one_key_under_way() -> None:
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    readers = ask(reads, source)
    for number in range(5):
        await turn()
        readers += ask(reads, source, 10)
        await turn()
        source.fetches[number].set_result(number)
    await turn()
    source.fetches[5].set_result(5)
    assert await asyncio.gather(*readers) == [0] + [n for n in range(1, 6) for _ in range(10)]
    assert source.most == 1
    assert len(source.fetches) == 6


async def test_keys_do_not_wait_for_each_other() -> None:
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    one, other = ask(reads, source, key="one"), ask(reads, source, key="other")
    await turn()
    assert len(source.fetches) == 2
    source.fetches[1].set_result(2)
    assert await other[0] == 2
    assert not one[0].done()
    source.fetches[0].set_result(1)
    assert await one[0] == 1


async def test_error_is_one_error_for_all_who_share_and_is_not_retried() -> None:
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    first = ask(reads, source)
    await turn()
    sharers = ask(reads, source, 100)
    await turn()
    source.fetches[0].set_exception(OSError("first"))
    await turn()
    source.fetches[1].set_exception(OSError("second"))
    told = await asyncio.gather(*first, *sharers, return_exceptions=True)
    assert [str(error) for error in told] == ["first"] + ["second"] * 100
    await turn()
    assert len(source.fetches) == 2


async def test_read_after_an_error_begins_anew() -> None:
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    failed = ask(reads, source)
    await turn()
    source.fetches[0].set_exception(OSError("away"))
    with pytest.raises(OSError, match="away"):
        await failed[0]
    again = ask(reads, source)
    await turn()
    source.fetches[1].set_result(1)
    assert await again[0] == 1


async def test_reader_that_leaves_does_not_end_the_read_of_others() -> None:
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    first = ask(reads, source)
    await turn()
    second, third = ask(reads, source, 2)
    await turn()
    first[0].cancel()
    second.cancel()
    await turn()
    assert not source.fetches[0].done()
    source.fetches[0].set_result(1)
    await turn()
    source.fetches[1].set_result(2)
    assert await third == 2
    assert first[0].cancelled()
    assert second.cancelled()


async def test_error_that_nobody_waits_for_any_more_is_no_error() -> None:
    """A future whose exception is never looked at would warn, and a warning fails the test."""
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    reader = ask(reads, source)[0]
    await turn()
    reader.cancel()
    await turn()
    source.fetches[0].set_exception(OSError("away"))
    await turn()
    assert reader.cancelled()


async def test_key_is_forgotten_once_nobody_reads_it() -> None:
    reads: Coalescer[str, int] = Coalescer()

    def fetch(value: int) -> Callable[[], Awaitable[int]]:
        async def answer() -> int:
            await asyncio.sleep(0)
            return value

        return answer

    for number in range(3):
        assert await reads.get("k", fetch(number)) == number
    assert not reads._flights
    assert not reads._tasks


async def test_close_ends_reads_and_whoever_waits_for_them() -> None:
    reads: Coalescer[str, int] = Coalescer()
    source = Source()
    readers = ask(reads, source)
    await turn()
    readers += ask(reads, source, 3)
    await turn()
    await reads.close()
    told = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(error) for error in told] == [asyncio.CancelledError] * 4
    assert source.running == 0
