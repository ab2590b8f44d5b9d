"""A long stream, behind a cache: each full chunk is fetched once, for good."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.cdn.behind import Behind
from tests.cdn.download import download
from tests.http.api import BINARY

CHUNK_BYTES = 1024 * 1024
CHUNKS = 50
READERS = 50
IMMUTABLE = "public, max-age=31536000, immutable"


@pytest.mark.timeout(180)
async def test_each_full_chunk_is_fetched_once(behind: Behind) -> None:
    stream = behind.through.stream()
    body = random.Random(1).randbytes(CHUNKS * CHUNK_BYTES + 1000)
    assert (await stream.put(kind=BINARY)).status == 201
    for at in range(0, len(body), CHUNK_BYTES):
        assert (await stream.post(body[at : at + CHUNK_BYTES], BINARY)).status == 204

    before = await behind.answered()
    first = await asyncio.to_thread(download, behind.url, stream, body, READERS)
    beginning, *full, tail = first.order
    assert (len(full), first.whole) == (CHUNKS - 1, READERS)
    assert [first.missed[offset] for offset in full] == [1] * len(full)
    fetched = await behind.answered() - before
    assert fetched.total() == first.missed.total()  # the cache says of each what the edges say
    # What may mean something else a second later is kept for a second, and confirmed by its tag.
    assert {offset for offset, life in first.lifetimes.items() if life == IMMUTABLE} == set(full)
    assert first.lifetimes[beginning] == first.lifetimes[tail] == "public, max-age=1"

    before = await behind.answered()
    second = await asyncio.to_thread(download, behind.url, stream, body, READERS)
    assert second.whole == READERS
    assert second.missed.keys() <= {beginning, tail}
    again = await behind.answered() - before
    assert again.total() == second.missed.total()
    print(
        f"{behind.cache}: {READERS} readers, {CHUNKS + 1} replies each; at the edges {fetched}, "
        f"of the second wave {again}"
    )
