"""Forks: what they inherit, where they may begin, and what goes when the last one does."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.http.api import JSON, TEXT, ZERO_TOKEN, Server, Stream, moved


async def grown(stream: Stream, *appends: bytes, kind: str = TEXT) -> list[str]:
    """Create a stream of some appends, and return the offsets between them."""
    offsets = [(await stream.put(kind=kind)).next]
    for body in appends:
        offsets.append((await stream.post(body, kind)).next)
    return offsets


async def test_fork_at_each_boundary_inherits_what_is_before_it(server: Server) -> None:
    source = server.stream()
    offsets = await grown(source, b"one ", b"two ", b"three ")
    for n, offset in enumerate(offsets):
        fork = server.stream()
        created = await fork.fork(source, headers={"Stream-Fork-Offset": offset})
        assert created.status == 201
        inherited = b"".join((b"one ", b"two ", b"three ")[:n])
        assert (await fork.get()).body == inherited
        # The offset of the fork point is the same in both.
        assert (await fork.at(offset)).body == b""
        assert (await fork.head()).next == created.next
        await fork.post(b"own")
        assert (await fork.get()).body == inherited + b"own"
        assert (await fork.at(offset)).body == b"own"
        for earlier in offsets[: n + 1]:
            assert inherited.endswith((await fork.at(earlier)).body.removesuffix(b"own"))
    assert (await source.get()).body == b"one two three "


@pytest.mark.parametrize("by", [1, 2, 3, 5])
async def test_fork_inside_an_append_is_refused(server: Server, by: int) -> None:
    source, fork = server.stream(), server.stream()
    offsets = await grown(source, b"four", b"four", b"four")
    anchor = moved(offsets[1], by)
    answer = await fork.fork(source, headers={"Stream-Fork-Offset": anchor})
    assert answer.status == 400
    assert answer.refusal()[0] == "invalid_offset"
    assert (await fork.head()).status == 404


@pytest.mark.parametrize("by", [1, 2, 10**6])
async def test_fork_beyond_the_tail_is_refused(server: Server, by: int) -> None:
    source, fork = server.stream(), server.stream()
    offsets = await grown(source, b"data")
    anchor = moved(offsets[-1], by)
    assert (await fork.fork(source, headers={"Stream-Fork-Offset": anchor})).status == 400
    # A refused fork holds nothing of its source back.
    assert (await source.delete()).status == 204
    assert (await source.head()).status == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Stream-Fork-Offset", "0,1"),
        ("Stream-Fork-Offset", ""),
        ("Stream-Fork-Offset", "0_0"),
        ("Stream-Fork-Offset", "9999999999999999_9999999999999999"),
        ("Stream-Fork-Sub-Offset", "1"),
        ("Stream-Fork-Sub-Offset", "-1"),
        ("Stream-Fork-Sub-Offset", "01"),
        ("Stream-Fork-Sub-Offset", "1.0"),
        ("Stream-Fork-Sub-Offset", ""),
        ("Stream-Fork-Sub-Offset", str(2**64)),
    ],
)
async def test_malformed_fork_point_is_refused(server: Server, name: str, value: str) -> None:
    source, fork = server.stream(), server.stream()
    await grown(source, b"data")
    answer = await fork.fork(source, headers={name: value})
    assert answer.status == 400
    answer.refusal()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("nowhere", 404),
        ("/v1/stream/nowhere", 404),
        ("/v1/stream/", 404),
        ("", 404),
        ("http://elsewhere.example/v1/stream/x", 404),
        ("/v1/stream/../x", 400),
        ("/v1/stream/a%2fb", 400),
        ("/v1/stream/__ds/x", 404),
    ],
)
async def test_source_that_is_no_stream_is_refused(
    server: Server, target: str, status: int
) -> None:
    answer = await server.stream().put(kind=None, headers={"Stream-Forked-From": target})
    assert answer.status == status
    answer.refusal()


async def test_source_may_be_spelled_with_escapes(server: Server) -> None:
    source, fork = server.stream(f"{server.stream().path}/\u00fc \u2713"), server.stream()
    await source.put(b"data")
    assert "%" in source.target
    assert (await fork.fork(source)).status == 201
    assert (await fork.get()).body == b"data"


async def test_chain_of_forks_stitches_each_level_once(server: Server) -> None:
    chain = [server.stream() for _ in range(5)]
    await grown(chain[0], b"0a", b"0b")
    for level in range(1, 5):
        assert (await chain[level].fork(chain[level - 1])).status == 201
        for part in (b"a", b"b"):
            await chain[level].post(b"%d%s" % (level, part))
        # What is appended above later belongs to that level alone.
        await chain[level - 1].post(b"!!")
    whole = b"".join(b"%da%db" % (n, n) for n in range(5))
    assert (await chain[4].get()).body == whole
    for level in range(4):
        assert (await chain[level].get()).body == whole[: 4 * (level + 1)] + b"!!"
    # From each of its offsets, the deepest fork reads on over all the levels that follow.
    offset = (await chain[0].put()).next
    for level in range(5):
        tail = (await chain[level].head()).next
        if level < 4:
            # The tail of an upper level lies beyond its fork point: it is none of the fork's.
            assert (await chain[4].at(tail)).status == 400
        else:
            assert (await chain[4].at(tail)).body == b""
    assert offset == (await chain[0].head()).next


async def test_fork_of_a_fork_before_at_and_behind_its_fork_point(server: Server) -> None:
    source, middle = server.stream(), server.stream()
    offsets = await grown(source, b"aa", b"bb", b"cc")
    assert (await middle.fork(source, headers={"Stream-Fork-Offset": offsets[2]})).status == 201
    own = (await middle.post(b"MM")).next
    last = (await middle.post(b"NN")).next
    for anchor, inherited in (
        (ZERO_TOKEN, b""),
        ("-1", b""),
        (offsets[0], b""),
        (offsets[1], b"aa"),
        (offsets[2], b"aabb"),
        (own, b"aabbMM"),
        (last, b"aabbMMNN"),
        ("now", b"aabbMMNN"),
    ):
        fork = server.stream()
        assert (await fork.fork(middle, b"x", {"Stream-Fork-Offset": anchor})).status == 201
        assert (await fork.get()).body == inherited + b"x", anchor
    # Beyond the fork point, the source's offsets are none of the fork's.
    fork = server.stream()
    assert (await fork.fork(middle, headers={"Stream-Fork-Offset": offsets[3]})).status == 400


@pytest.mark.parametrize("live", ["", "&live=long-poll", "&live=sse"], ids=["", "poll", "sse"])
async def test_offset_of_the_source_beyond_the_fork_point_is_refused(
    server: Server, live: str
) -> None:
    source, fork = server.stream(), server.stream()
    offsets = await grown(source, b"aa", b"bb", b"cc")
    await fork.fork(source, headers={"Stream-Fork-Offset": offsets[1]})
    await fork.post(b"BCDEFG")
    for beyond in offsets[2:]:
        answer = await fork.get(f"offset={beyond}{live}")
        assert answer.status == 400
        assert answer.refusal()[0] == "invalid_offset"


async def test_json_read_across_the_fork_point_is_one_array(server: Server) -> None:
    source, fork = server.stream(), server.stream()
    offsets = await grown(source, b"[1,2]", b"3", b"4", kind=JSON)
    created = await fork.fork(source, b"[30,31]", {"Stream-Fork-Offset": offsets[2]})
    assert created.status == 201
    assert created.headers["Content-Type"] == JSON
    await fork.post(b"32", JSON)
    assert (await fork.get()).body == b"[1,2,3,30,31,32]"
    assert (await fork.at(offsets[1])).body == b"[3,30,31,32]"
    assert (await fork.at(offsets[2])).body == b"[30,31,32]"
    polled = await fork.poll(offsets[1])
    assert (polled.status, polled.body) == (200, b"[3,30,31,32]")
    assert (await source.get()).body == b"[1,2,3,4]"


@pytest.mark.parametrize(
    ("anchor", "sub", "inherited"),
    [
        (0, 0, b"[]"),
        (0, 1, b'[{"a":[1,2]}]'),
        (0, 2, b'[{"a":[1,2]},"],["]'),
        (0, 3, b'[{"a":[1,2]},"],[",[3,4]]'),
        (0, 4, None),
        (1, 1, b'[{"a":[1,2]},"],[",[3,4],5]'),
        (1, 2, None),
        (2, 1, None),
    ],
)
async def test_sub_offset_of_a_json_stream_counts_messages(
    server: Server, anchor: int, sub: int, inherited: bytes | None
) -> None:
    source, fork = server.stream(), server.stream()
    offsets = await grown(source, b'[ {"a":[1,2]}, "],[", [3,4] ]', b"5", kind=JSON)
    headers = {"Stream-Fork-Offset": offsets[anchor], "Stream-Fork-Sub-Offset": str(sub)}
    answer = await fork.fork(source, headers=headers)
    if inherited is None:
        assert answer.status == 400
        return
    assert answer.status == 201
    body = (await fork.get()).body
    assert b"".join(body.split()) == inherited
    await fork.post(b"6", JSON)
    more = b"".join((await fork.get()).body.split())
    assert more == (inherited[:-1] + b",6]" if inherited != b"[]" else b"[6]")


async def test_fork_inside_an_append_reads_on_at_its_own_data(server: Server) -> None:
    source, fork, deeper = server.stream(), server.stream(), server.stream()
    offsets = await grown(source, b"abc", b"defgh", b"ijk")
    cut = {"Stream-Fork-Offset": offsets[1], "Stream-Fork-Sub-Offset": "2"}
    created = await fork.fork(source, headers=cut)
    assert (await fork.get()).body == b"abcde"
    await fork.post(b"XY")
    # Of the append that it cuts, the fork has a part, wherever a read of it begins.
    for by in (0, 1):
        assert (await fork.at(moved(offsets[1], by))).body == b"deXY"
    # One beyond the fork point is where a snapshot's reader goes on, in the fork's own data.
    for by in (0, 1):
        assert (await fork.at(moved(created.next, by))).body == b"XY"
    assert (await fork.at(moved(created.next, 2))).status == 400
    cut = {"Stream-Fork-Offset": offsets[1], "Stream-Fork-Sub-Offset": "1"}
    assert (await deeper.fork(fork, b"Z", cut)).status == 201
    assert (await deeper.get()).body == b"abcdZ"
    beyond = {"Stream-Fork-Offset": offsets[1], "Stream-Fork-Sub-Offset": "3"}
    assert (await server.stream().fork(fork, headers=beyond)).status == 400


async def test_fork_is_found_again_only_as_it_was_asked_for(server: Server) -> None:
    source, other, fork = server.stream(), server.stream(), server.stream()
    offsets = await grown(source, b"a", b"b")
    await grown(other, b"a", b"b")
    at = {"Stream-Fork-Offset": offsets[1]}
    assert (await fork.fork(source, headers=at)).status == 201
    assert (await fork.fork(source, headers=at)).status == 200
    assert (await fork.fork(source, headers=at | {"Stream-Fork-Sub-Offset": "0"})).status == 200
    for answer in (
        await fork.fork(source),
        await fork.fork(source, headers={"Stream-Fork-Offset": offsets[2]}),
        await fork.fork(source, headers=at | {"Stream-Fork-Sub-Offset": "1"}),
        await fork.fork(other),
        await fork.fork(source, headers=at | {"Stream-TTL": "60"}),
        await fork.fork(source, headers=at | {"Stream-Closed": "true"}),
        await fork.put(kind=None),
        await fork.put(kind=TEXT),
    ):
        assert answer.status == 409
        answer.refusal()
    # The other way round, a plain stream is no fork.
    assert (await source.fork(other)).status == 409


async def test_deleted_source_lives_on_in_its_forks_and_nowhere_else(server: Server) -> None:
    source, fork = server.stream(), server.stream()
    offsets = await grown(source, b"data ")
    await fork.fork(source)
    assert (await source.delete()).status == 204
    for answer in (
        await source.get(),
        await source.at(offsets[0]),
        await source.at("now"),
        await source.poll("-1"),
        await source.get("offset=-1&live=sse"),
        await source.head(),
        await source.post(b"x"),
        await source.close(),
        await source.delete(),
    ):
        assert answer.status == 410
        assert answer.cache_control == "no-store"
    assert (await source.put()).status == 409
    assert (await server.stream().fork(source)).status == 409
    await fork.post(b"own")
    assert (await fork.get()).body == b"data own"
    assert (await fork.at(offsets[0])).body == b"data own"
    assert (await fork.delete()).status == 204
    assert (await source.get()).status == 404
    assert (await source.put(b"anew")).status == 201


async def test_last_fork_takes_the_whole_chain_of_deleted_sources_along(server: Server) -> None:
    chain = [server.stream() for _ in range(5)]
    await grown(chain[0], b"0")
    for above, below in itertools.pairwise(chain):
        await below.fork(above, b"x")
    # The second one from the top is not deleted: it stays, and with it what it inherits.
    for level in (3, 0, 2):
        assert (await chain[level].delete()).status == 204
        assert (await chain[level].head()).status == 410
    assert (await chain[4].get()).body == b"0xxxx"
    assert (await chain[4].delete()).status == 204
    assert [(await stream.head()).status for stream in chain] == [410, 200, 404, 404, 404]
    assert (await chain[1].get()).body == b"0x"
    assert (await chain[1].delete()).status == 204
    assert (await chain[0].head()).status == 404


async def test_forks_that_race_with_the_deletion_of_their_source_are_whole_or_refused(
    server: Server,
) -> None:
    source = server.stream()
    offsets = await grown(source, b"aaa", b"bbb")
    forks = [server.stream() for _ in range(12)]
    at = {"Stream-Fork-Offset": offsets[1], "Stream-Fork-Sub-Offset": "1"}
    *created, deleted = await asyncio.gather(
        *(fork.fork(source, headers=at) for fork in forks), source.delete()
    )
    assert deleted.status == 204
    assert {answer.status for answer in created} <= {201, 404, 409}
    alive = [f for f, answer in zip(forks, created, strict=True) if answer.status == 201]
    assert (await source.head()).status == (410 if alive else 404)
    for fork in alive:
        assert (await fork.get()).body == b"aaab"
        await fork.delete()
    assert (await source.head()).status == 404


async def test_fork_starts_open_without_producers_and_without_stream_seq(server: Server) -> None:
    source, fork = server.stream(), server.stream()
    await source.put()
    await source.post(b"a", headers={"Stream-Seq": "m"})
    await source.produce(b"b", 0, epoch=4)
    await source.produce(b"c", 1, epoch=4, close=True)
    created = await fork.fork(source)
    assert (created.status, created.closed) == (201, False)
    assert (await fork.produce(b"d", 0)).status == 200
    assert (await fork.post(b"e", headers={"Stream-Seq": "a"})).status == 204
    assert (await fork.get()).body == b"abcde"
    assert (await source.get()).closed
    closed = await server.stream().fork(source, b"!", {"Stream-Closed": "true"})
    assert (closed.status, closed.closed) == (201, True)


async def test_fork_waits_for_its_own_appends_alone(server: Server) -> None:
    source, fork = server.stream(), server.stream()
    await grown(source, b"data")
    tail = (await fork.fork(source)).next
    waiting = asyncio.create_task(fork.poll(tail))
    await source.post(b"not mine")
    answer = await waiting
    assert (answer.status, answer.next) == (204, tail)
    waiting = asyncio.create_task(fork.poll(tail))
    await fork.post(b"mine")
    answer = await waiting
    assert (answer.status, answer.body) == (200, b"mine")
