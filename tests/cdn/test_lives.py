"""Streams that come again, are forked or expire, behind a cache: nobody mixes two of them up."""

from __future__ import annotations

import asyncio

from tests.cdn.behind import DEADLINE_S, GONE, Behind, Reader
from tests.http.api import BINARY, Answer, Stream

CHUNK = 1024 * 1024
OLD, NEW = (letter * (CHUNK + 1000) for letter in (b"o", b"n"))
PAUSE_S = 0.1  # of a client that begins anew


async def test_stream_made_anew_is_never_mixed_with_the_old_one(behind: Behind) -> None:
    stream = behind.through.stream()
    start, middle, tail = await write(stream, OLD)
    assert await whole(stream) == OLD
    live = Reader(stream, middle)  # what it is given is kept as well
    assert await live.poll()

    await stream.delete()
    await write(stream, NEW)
    # At offsets of the old life there are its bytes, while they are kept, or none; never others.
    for _ in range(2):
        for offset, kept in ((start, OLD[:CHUNK]), (middle, OLD[CHUNK:]), (tail, b"")):
            for answer in (await stream.at(offset), await stream.poll(offset)):
                assert answer.status in (204, *GONE) or answer.body == kept
    # Who begins anew has all of one life, in a second or two that of the new one.
    assert await settled(stream, NEW) <= {OLD, NEW}
    assert {(await stream.at(offset)).status for offset in (middle, tail)} == {410}


async def test_fork_is_never_mixed_with_its_source_or_another_fork(behind: Behind) -> None:
    source, fork, other = (behind.through.stream() for _ in range(3))
    _, middle, _ = await write(source, OLD)
    assert await whole(source) == OLD
    assert (await fork.fork(source, headers={"Stream-Fork-Offset": middle})).status == 201
    own = (await fork.post(b"own", BINARY)).next
    for _ in range(2):
        assert await whole(fork) == OLD[:CHUNK] + b"own"
        assert await whole(source) == OLD
    await source.delete()
    assert await whole(fork) == OLD[:CHUNK] + b"own"

    await fork.delete()
    await write(other, NEW)
    assert (await fork.fork(other)).status == 201
    await fork.post(b"anew", BINARY)
    assert await settled(fork, NEW + b"anew") <= {OLD[:CHUNK] + b"own", NEW + b"anew"}
    answer = await fork.at(own)
    assert answer.status in GONE or answer.body == b""


async def test_stream_that_expired_is_not_read_any_more(behind: Behind) -> None:
    stream = behind.through.stream()
    start = (await stream.put(headers={"Stream-TTL": "1"})).next
    tail = (await stream.post(b"data")).next
    queries = (
        "",
        "offset=-1",
        f"offset={start}",
        f"offset={tail}",
        "offset=-1&live=long-poll&cursor=1",
        f"offset={start}&live=long-poll&cursor=1",
    )
    for query in queries:
        assert (await stream.get(query)).status == 200
    await stream.wait_until_over()
    async with asyncio.timeout(DEADLINE_S):
        for query in queries:
            while (answer := await stream.get(query)).status != 404:
                # Kept no longer than it may last.
                assert answer.cache_control == "public, max-age=1"
                await asyncio.sleep(PAUSE_S)


async def write(stream: Stream, body: bytes) -> list[str]:
    """Make a stream of a full chunk and a tail, and return the offsets before, between, after."""
    created = await stream.put(kind=BINARY)
    assert created.status == 201
    pieces = body[:CHUNK], body[CHUNK:]
    return [created.next, *[(await stream.post(piece, BINARY)).next for piece in pieces]]


async def whole(stream: Stream) -> bytes | None:
    """Read from the beginning to the tail; None if the stream is another one meanwhile."""
    pieces = []
    answer: Answer | None = None
    while answer is None or not answer.up_to_date:
        answer = await stream.at("-1" if answer is None else answer.next)
        if answer.status in GONE:
            return None
        assert answer.status == 200
        pieces.append(answer.body)
    return b"".join(pieces)


async def settled(stream: Stream, last: bytes) -> set[bytes]:
    """Read over and over until it is what it is to be, and return all that it was."""
    seen = set()
    async with asyncio.timeout(DEADLINE_S):
        while (found := await whole(stream)) != last:
            if found is not None:
                seen.add(found)
            await asyncio.sleep(PAUSE_S)
    return seen | {last}
