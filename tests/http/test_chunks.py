"""Reads are cut at chunks: on append boundaries, at the same places for everyone, for good."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from dataclasses import dataclass

import aiohttp
import pytest

from tests.http.api import BINARY, JSON, ZERO_TOKEN, Answer, Server, Stream, moved, token
from tests.service import Service

CHUNK_BYTES = 1024 * 1024
IMMUTABLE = "public, max-age=31536000, immutable"
TAIL = "public, max-age=1"


@dataclass(frozen=True, slots=True)
class Written:
    """A stream, all of its bytes, and the offsets between its appends."""

    stream: Stream
    body: bytes
    offsets: list[str]  # the first of them before the first append

    @property
    def positions(self) -> list[int]:
        return [token(offset)[1] for offset in self.offsets]

    def end_of_chunk(self, start: int) -> int:
        """Return where a read from a boundary ends: where a multiple of the chunk is reached."""
        limit = (start // CHUNK_BYTES + 1) * CHUNK_BYTES
        return next((p for p in self.positions if p >= limit), self.positions[-1])

    def check(self, answer: Answer, asked: int) -> None:
        """Check a read from a position: its bytes, and both of its ends."""
        assert answer.status == 200
        start = self.positions[bisect_right(self.positions, asked) - 1]
        end = self.end_of_chunk(start)
        assert token(answer.next)[1] == end
        assert answer.body == self.body[start:end]
        assert answer.up_to_date == (end == len(self.body))


async def write(stream: Stream, sizes: list[int]) -> Written:
    chance = random.Random(len(sizes))
    created = await stream.put(kind=BINARY)
    written = Written(stream, chance.randbytes(sum(sizes)), [created.next])
    at = 0
    for size in sizes:
        written.offsets.append((await stream.post(written.body[at : at + size], BINARY)).next)
        at += size
    return written


async def odd(stream: Stream) -> Written:
    """Write several chunks in appends of all sizes, some of which end where a chunk may."""
    chance = random.Random(4437)
    sizes = [CHUNK_BYTES - 1, 1, 1, 300_000]
    sizes += [chance.choice((1, 7, 999, 40_000, 90_001)) for _ in range(45)]
    sizes += [CHUNK_BYTES // 2, 3, CHUNK_BYTES, 5]
    return await write(stream, sizes)


async def test_reads_from_everywhere_start_and_end_on_append_boundaries(server: Server) -> None:
    written = await odd(server.stream())
    assert written.positions == sorted(set(written.positions))
    chance = random.Random(1)
    inside = [chance.randrange(len(written.body)) for _ in range(25)]
    for asked in sorted({*written.positions[::5], *inside, 1, CHUNK_BYTES, CHUNK_BYTES + 1}):
        answer = await written.stream.at(moved(written.offsets[0], asked))
        written.check(answer, asked)


async def test_readers_who_start_anywhere_meet_on_the_same_urls(server: Server) -> None:
    written = await odd(server.stream())
    canonical, offset = [], "-1"
    pieces = []
    while True:
        answer = await written.stream.at(offset)
        pieces.append(answer.body)
        canonical.append(answer.next)
        if answer.up_to_date:
            break
        offset = answer.next
    assert b"".join(pieces) == written.body
    assert len(canonical) > 3
    for start in written.offsets[:-1:9]:
        # After one read of its own, everybody is where everybody else is.
        assert (await written.stream.at(start)).next in canonical


async def test_lifetimes_follow_what_a_url_will_ever_mean(server: Server) -> None:
    written = await odd(server.stream())
    stream, first = written.stream, written.offsets[0]
    for query in ("", "offset=-1", f"offset={ZERO_TOKEN}"):
        answer = await stream.get(query)
        written.check(answer, 0)
        # This name means another stream's bytes, should this one be deleted and made anew.
        assert answer.cache_control == TAIL
    seen: list[str] = []
    offset = first
    while not seen or not answer.up_to_date:
        answer = await stream.at(offset)
        seen.append(answer.cache_control)
        offset = answer.next
    assert seen[-1] == TAIL
    assert set(seen[:-1]) == {IMMUTABLE}
    assert (await stream.at(written.offsets[-1])).cache_control == TAIL


async def test_immutable_chunk_is_the_same_whatever_happens_behind_it(server: Server) -> None:
    written = await write(server.stream(), [400_000] * 7)
    stream, first = written.stream, written.offsets[0]
    before = await stream.at(first)
    assert before.cache_control == IMMUTABLE
    await stream.post(b"more", BINARY)
    for closing in (False, True):
        if closing:
            await stream.close()
        after = await stream.at(first)
        assert (after.body, after.next) == (before.body, before.next)
        assert after.headers["ETag"] == before.headers["ETag"]
        assert not after.up_to_date
        assert not after.closed
        tag = {"If-None-Match": before.headers["ETag"]}
        assert (await stream.at(first, tag)).status == 304


async def test_full_chunk_that_reaches_the_tail_is_not_immutable_yet(server: Server) -> None:
    stream = server.stream()
    written = await write(stream, [CHUNK_BYTES])
    answer = await stream.at(written.offsets[0])
    # It says that nothing follows, which is true only for now.
    assert answer.up_to_date
    assert "immutable" not in answer.cache_control
    await stream.post(b"more", BINARY)
    after = await stream.at(written.offsets[0])
    assert not after.up_to_date
    assert after.cache_control == IMMUTABLE


async def test_full_chunk_has_another_tag_while_it_is_the_tail(server: Server) -> None:
    stream = server.stream()
    written = await write(stream, [CHUNK_BYTES])
    tag = {"If-None-Match": (await stream.at(written.offsets[0])).headers["ETag"]}
    await stream.post(b"more", BINARY)
    # A cache that got a 304 would keep the Stream-Up-To-Date that it has stored, for good.
    answer = await stream.at(written.offsets[0], tag)
    assert (answer.status, answer.up_to_date) == (200, False)


async def test_full_chunk_is_not_called_the_tail_once_more_is_acknowledged(
    server: Server,
) -> None:
    stream = server.stream()
    written = await write(stream, [CHUNK_BYTES])
    for n in range(5):
        for offset in (written.offsets[0], "-1"):
            answer = await stream.at(offset)
            assert answer.body == written.body
            # Whoever reads until it is up to date would stop here, and miss what there is.
            assert answer.up_to_date == (n == 0)
        await stream.post(b"%d" % n, BINARY)


async def test_closed_stream_of_exactly_a_chunk_says_that_it_ends(server: Server) -> None:
    stream = server.stream()
    written = await write(stream, [CHUNK_BYTES])
    assert not (await stream.at(written.offsets[0])).closed
    await stream.close()
    answer = await stream.at(written.offsets[0])
    assert (answer.body, answer.up_to_date, answer.closed) == (written.body, True, True)
    assert (await stream.whole()) == written.body


async def test_append_larger_than_a_chunk_comes_whole(server: Server) -> None:
    sizes = [10, 2 * CHUNK_BYTES + 12_345, 10]
    written = await write(server.stream(), sizes)
    answer = await written.stream.at("-1")
    written.check(answer, 0)
    assert len(answer.body) == sum(sizes[:2])
    # So it does for a read from anywhere inside of it.
    inside = await written.stream.at(moved(written.offsets[1], CHUNK_BYTES))
    assert inside.body == written.body[10 : 10 + sizes[1]]
    assert inside.next == answer.next


async def test_json_stream_is_cut_between_its_messages(server: Server) -> None:
    stream = server.stream()
    await stream.put(kind=JSON)
    pad = b"x" * 100_000
    for n in range(25):
        await stream.post(b'{"n":%d,"pad":"%s"}' % (n, pad), JSON)
    offset, messages, reads = "-1", [], 0
    while True:
        answer = await stream.at(offset)
        assert answer.body[:1] == b"["
        assert answer.body[-1:] == b"]"
        messages.append(answer.body[1:-1])
        reads += 1
        if answer.up_to_date:
            break
        offset = answer.next
    assert reads > 2
    assert b",".join(messages) == b",".join(b'{"n":%d,"pad":"%s"}' % (n, pad) for n in range(25))


async def test_offset_of_an_earlier_life_is_gone(server: Server) -> None:
    stream = server.stream()
    written = await write(stream, [CHUNK_BYTES, 10])
    full = await stream.at(written.offsets[0])
    assert full.cache_control == IMMUTABLE
    await stream.delete()
    # What was promised to be immutable is gone at once where it is asked for.
    for offset in (*written.offsets, "-1", "now"):
        assert (await stream.at(offset)).status == 404
    await stream.put(b"new", BINARY)
    for offset in written.offsets:
        answer = await stream.at(offset)
        assert answer.status == 410
        assert answer.refusal()[0] == "gone"
        assert (await stream.poll(offset)).status == 410
        assert (await stream.get(f"offset={offset}&live=sse")).status == 410
    assert (await stream.at("-1")).body == b"new"
    assert (await stream.at(ZERO_TOKEN)).body == b"new"


async def test_chunk_of_a_deleted_stream_leaves_the_edge_though_its_path_is_read_on(
    patient_origin_service: Service,
    patient_edge_service: Service,
    session: aiohttp.ClientSession,
) -> None:
    origin = Server(patient_origin_service.url, session)
    written = await write(origin.stream(), [CHUNK_BYTES, 10])
    there = Server(patient_edge_service.url, session).stream(written.stream.path)
    assert (await there.at(written.offsets[0])).body == written.body[:CHUNK_BYTES]
    # Elsewhere, the stream is deleted and another one made in its place.
    await written.stream.delete()
    await written.stream.put(b"new", BINARY)
    async with asyncio.timeout(5):
        while (await there.at(written.offsets[0])).status != 410:
            assert (await there.at("-1")).body == b"new"


@pytest.mark.parametrize(
    ("headers", "most_s"),
    [
        ({"Stream-TTL": "30"}, 30),
        ({"Stream-TTL": "3600"}, 60),
        ({"Stream-Expires-At": "2099-01-01T00:00:00Z"}, 60),
    ],
    ids=["short-ttl", "long-ttl", "instant"],
)
async def test_chunks_of_a_stream_that_expires_are_never_immutable(
    server: Server, headers: dict[str, str], most_s: int
) -> None:
    stream = server.stream()
    start = (await stream.put(kind=BINARY, headers=headers)).next
    for _ in range(3):
        await stream.post(bytes(600_000), BINARY)
    for offset, control in ((start, f"public, max-age={most_s}"), ("-1", TAIL)):
        answer = await stream.at(offset)
        assert not answer.up_to_date
        assert answer.cache_control == control


async def test_full_chunk_of_a_fork_is_immutable_only_at_its_own_offsets(server: Server) -> None:
    source = await write(server.stream(), [CHUNK_BYTES, 100])
    fork = server.stream()
    assert (await fork.fork(source.stream)).status == 201
    # An inherited offset is the source's too; which fork it leads into, the path alone says.
    inherited = await fork.at(source.offsets[0])
    assert inherited.body == source.body[:CHUNK_BYTES]
    assert "immutable" not in inherited.cache_control
    own = (await fork.post(b"own", BINARY)).next
    await fork.post(bytes(CHUNK_BYTES), BINARY)
    await fork.post(b"tail", BINARY)
    answer = await fork.at(own)
    assert answer.body == bytes(CHUNK_BYTES)
    assert answer.cache_control == IMMUTABLE
    assert await fork.whole() == source.body + b"own" + bytes(CHUNK_BYTES) + b"tail"
