"""Many who wait at the tail, behind a cache: what is asked of the edges is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.cdn.behind import Behind, Reader, all_are, readers_at_the_tail, until
from tests.http.api import Answer, Stream

READERS = 500


async def one_waits(behind: Behind, readers: list[Reader], polls: int) -> None:
    """Wait until all readers have asked so often, and the edges hold a single one of them."""
    await all_are(readers, lambda reader: reader.polls == polls)

    async def look() -> bool:
        return await behind.waiting() == 1

    await until(look, lambda: "not one waits")


@pytest.mark.timeout(120)
async def test_an_append_reaches_all_readers_by_one_request(behind: Behind) -> None:
    stream = behind.through.stream()
    await stream.put(b"first")
    readers = await readers_at_the_tail(stream, READERS)
    before = await behind.answered()
    following = [asyncio.create_task(reader.follow()) for reader in readers]

    await one_waits(behind, readers, polls=1)
    await stream.post(b"second")
    await all_are(readers, lambda reader: reader.seen == b"second")
    assert await behind.answered() - before == {200: 1}

    await one_waits(behind, readers, polls=2)  # for what follows; nothing does, so they are told so
    await all_are(readers, lambda reader: reader.statuses == [200, 204])
    assert await behind.answered() - before == {200: 1, 204: 1}

    await one_waits(behind, readers, polls=3)
    await stream.post(b"third", headers={"Stream-Closed": "true"})
    await asyncio.gather(*following)
    assert await behind.answered() - before == {200: 2, 204: 1}
    assert {(reader.seen, *reader.statuses) for reader in readers} == {
        (b"secondthird", 200, 204, 200)
    }
    print(f"{behind.cache}: {READERS} readers, 3 replies each; at the edges 3")


@pytest.mark.parametrize(
    ("end", "status"),
    [pytest.param(Stream.close, 204, id="close"), pytest.param(Stream.delete, 404, id="deletion")],
)
async def test_an_end_without_data_reaches_all_readers_by_one_request(
    end: Callable[[Stream], Awaitable[Answer]], status: int, behind: Behind
) -> None:
    stream = behind.through.stream()
    await stream.put(b"first")
    readers = await readers_at_the_tail(stream, 100)
    before = await behind.answered()
    following = [asyncio.create_task(reader.follow()) for reader in readers]
    await one_waits(behind, readers, polls=1)
    await end(stream)
    await asyncio.gather(*following)
    assert {(reader.seen, *reader.statuses) for reader in readers} == {(b"", status)}
    assert await behind.answered() - before == {status: 1}
