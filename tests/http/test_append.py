"""Appending: which refusal comes first, writers that race, and producers that repeat themselves."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.http.api import JSON, TEXT, Answer, Server, Stream, token

MAX_INTEGER = 2**53 - 1


@pytest.mark.parametrize(
    ("kind", "headers", "body"),
    [
        pytest.param(TEXT, {}, b"x", id="plain"),
        pytest.param("a/b", {}, b"x", id="other-type"),
        pytest.param(None, {}, b"x", id="no-type"),
        pytest.param(TEXT, {}, b"", id="empty"),
        pytest.param(TEXT, {"Stream-Seq": "a"}, b"x", id="regression"),
        pytest.param(TEXT, {"Stream-Closed": "true"}, b"x", id="append-and-close"),
        pytest.param(
            TEXT, {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "9"}, b"x", id="gap"
        ),
        pytest.param(
            TEXT,
            {
                "Producer-Id": "q",
                "Producer-Epoch": "0",
                "Producer-Seq": "0",
                "Stream-Closed": "true",
            },
            b"",
            id="close-of-another-producer",
        ),
    ],
)
async def test_closed_comes_before_every_other_conflict(
    server: Server, kind: str | None, headers: dict[str, str], body: bytes
) -> None:
    stream = server.stream()
    await stream.put()
    await stream.post(b"data", headers={"Stream-Seq": "m"})
    final = await stream.close()
    answer = await stream.post(body, kind, headers)
    assert answer.status == 409
    assert answer.refusal()[0] == "stream_closed"
    assert (answer.closed, answer.next) == (True, final.next)
    assert (await stream.get()).body == b"data"


@pytest.mark.parametrize(
    ("kind", "headers", "body", "code"),
    [
        pytest.param("a/b", {}, b"{", "content_type_mismatch", id="type-before-json"),
        pytest.param(
            "a/b", {"Stream-Seq": "a"}, b"1", "content_type_mismatch", id="type-before-stream-seq"
        ),
        pytest.param(
            "a/b",
            {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "9"},
            b"1",
            "content_type_mismatch",
            id="type-before-producer",
        ),
        pytest.param(JSON, {"Stream-Seq": "a"}, b"{", "invalid_json", id="json-before-stream-seq"),
        pytest.param(
            JSON,
            {
                "Producer-Id": "p",
                "Producer-Epoch": "0",
                "Producer-Seq": "9",
                "Stream-Seq": "a",
            },
            b"1",
            "sequence_gap",
            id="producer-before-stream-seq",
        ),
    ],
)
async def test_order_of_refusals(
    server: Server, kind: str, headers: dict[str, str], body: bytes, code: str
) -> None:
    stream = server.stream()
    await stream.put(kind=JSON)
    await stream.post(b"0", JSON, {"Stream-Seq": "m"})
    assert (await stream.post(body, kind, headers)).refusal()[0] == code


async def test_identity_encoding_is_no_encoding(server: Server) -> None:
    stream = server.stream()
    assert (await stream.put(headers={"Content-Encoding": "identity"})).status == 201
    assert (await stream.post(b"x", headers={"Content-Encoding": "Identity"})).status == 204


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
async def test_encoded_body_is_refused_and_not_stored(server: Server, encoding: str) -> None:
    stream = server.stream()
    await stream.put()
    answer = await stream.post(b"\x1f\x8b", headers={"Content-Encoding": encoding})
    assert answer.status == 415
    assert answer.refusal()[0] == "unsupported_encoding"
    assert (await stream.get()).body == b""


@pytest.mark.parametrize(
    ("seq", "status"),
    [("a", 204), ("a" * 256, 204), ("\u00fc", 204), ("a" * 257, 400), ("", 400)],
    ids=["short", "longest", "unicode", "too-long", "empty"],
)
async def test_stream_seq_has_bounds(server: Server, seq: str, status: int) -> None:
    stream = server.stream()
    await stream.put()
    assert (await stream.post(b"x", headers={"Stream-Seq": seq})).status == status


async def test_refused_append_leaves_stream_seq_and_producer_as_they_were(server: Server) -> None:
    stream = server.stream()
    await stream.put(kind=JSON)
    producer = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}
    for kind, body in (("a/b", b"1"), (JSON, b"{"), (JSON, b"[]"), (None, b"1"), (JSON, b"")):
        refused = await stream.post(body, kind, producer | {"Stream-Seq": "z"})
        assert refused.status in (400, 409), body
    assert (await stream.post(b"1", JSON, producer | {"Stream-Seq": "a"})).status == 200


async def test_concurrent_appends_are_all_there_once_and_in_the_order_of_their_offsets(
    server: Server,
) -> None:
    stream, count = server.stream(), 100
    await stream.put()
    answers = await asyncio.gather(*(stream.post(b"<%d>" % n) for n in range(count)))
    assert [answer.status for answer in answers] == [204] * count
    by_offset = sorted(range(count), key=lambda n: answers[n].next)
    assert (await stream.get()).body == b"".join(b"<%d>" % n for n in by_offset)
    assert len({answer.next for answer in answers}) == count


async def test_append_is_readable_once_it_is_acknowledged(server: Server) -> None:
    stream = server.stream()
    await stream.put()
    start = (await stream.head()).next

    async def reader(known: list[bytes]) -> None:
        while len(known) < 40:
            told = len(known)
            assert (await stream.at(start)).body.count(b".") >= told

    known: list[bytes] = []
    readers = [asyncio.create_task(reader(known)) for _ in range(4)]
    for n in range(40):
        answer = await stream.post(b"%d." % n)
        known.append(answer.next.encode())
        assert (await stream.at("-1")).next == answer.next
    await asyncio.gather(*readers)


async def test_pipelined_batches_of_a_producer_arrive_exactly_once_in_order(
    server: Server,
) -> None:
    stream, count = server.stream(), 21
    await stream.put()
    chance = random.Random(4437)

    async def insist(seq: int) -> list[int]:
        statuses: list[int] = []
        while not statuses or statuses[-1] == 409:
            answer = await stream.produce(b"<%d>" % seq, seq)
            statuses.append(answer.status)
            if answer.status == 409:
                assert answer.headers["Producer-Received-Seq"] == str(seq)
                assert int(answer.headers["Producer-Expected-Seq"]) < seq
            await asyncio.sleep(chance.uniform(0, 0.005))
        return statuses

    seqs = list(range(count))
    chance.shuffle(seqs)
    # Each batch twice, as by a client that lost an answer.
    tried = await asyncio.gather(*(insist(seq) for seq in [*seqs, *seqs]))
    ends = sorted(statuses[-1] for statuses in tried)
    assert ends == [200] * count + [204] * count
    assert (await stream.get()).body == b"".join(b"<%d>" % n for n in range(count))


async def test_batch_that_is_sent_many_times_at_once_is_stored_once(server: Server) -> None:
    stream = server.stream()
    await stream.put()
    answers = await asyncio.gather(*(stream.produce(b"once", 0) for _ in range(16)))
    assert sorted(answer.status for answer in answers) == [200] + [204] * 15
    assert {answer.headers["Producer-Seq"] for answer in answers} == {"0"}
    assert (await stream.get()).body == b"once"


async def test_producers_keep_apart_and_new_epochs_fence_old_ones(server: Server) -> None:
    stream = server.stream()
    await stream.put()
    assert (await stream.produce(b"a", 0, producer="a")).status == 200
    assert (await stream.produce(b"b", 0, epoch=7, producer="b")).status == 200
    gap = await stream.produce(b"c", 5, producer="c")
    assert (gap.status, gap.headers["Producer-Expected-Seq"]) == (409, "0")
    assert (await stream.produce(b"A", 0, epoch=1, producer="a")).status == 200
    fenced = await stream.produce(b"x", 1, epoch=0, producer="a")
    assert (fenced.status, fenced.headers["Producer-Epoch"]) == (403, "1")
    assert (await stream.produce(b"B", 1, epoch=7, producer="b")).status == 200
    assert (await stream.get()).body == b"abAB"


@pytest.mark.parametrize("epoch", [0, 1, MAX_INTEGER])
async def test_producer_integers_reach_what_javascript_counts(server: Server, epoch: int) -> None:
    stream = server.stream()
    await stream.put()
    answer = await stream.produce(b"x", 0, epoch=epoch)
    assert (answer.status, answer.headers["Producer-Epoch"]) == (200, str(epoch))


@pytest.mark.parametrize("name", ["Producer-Epoch", "Producer-Seq"])
@pytest.mark.parametrize(
    "value",
    ["", "-1", "+1", "01", "1.0", "1e3", "0x1", "a", "1 1", str(MAX_INTEGER + 1), "9" * 4000],
    ids=lambda value: value[:20] or "empty",
)
async def test_producer_integers_out_of_form_or_range_are_refused(
    server: Server, name: str, value: str
) -> None:
    stream = server.stream()
    await stream.put()
    headers = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"} | {name: value}
    answer = await stream.post(b"x", headers=headers)
    assert answer.status == 400
    assert name in answer.refusal()[1]
    assert (await stream.get()).body == b""


@pytest.mark.parametrize(
    ("producer", "status"),
    [("p" * 256, 200), ("\u00fc b", 200), ("p" * 257, 400), ("", 400)],
    ids=["longest", "unicode", "too-long", "empty"],
)
async def test_producer_id_has_bounds(server: Server, producer: str, status: int) -> None:
    stream = server.stream()
    await stream.put()
    assert (await stream.produce(b"x", 0, producer=producer)).status == status


async def test_of_concurrent_closers_with_data_exactly_one_wins(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"begin ")
    closing = {"Stream-Closed": "true"}
    answers = await asyncio.gather(
        *(stream.post(b"end %d" % n, headers=closing) for n in range(12))
    )
    assert sorted(answer.status for answer in answers) == [204] + [409] * 11
    assert all(answer.closed for answer in answers)
    assert len({answer.next for answer in answers}) == 1
    winner = next(n for n, answer in enumerate(answers) if answer.status == 204)
    read = await stream.get()
    assert (read.body, read.closed) == (b"begin end %d" % winner, True)


async def test_concurrent_closers_without_data_all_succeed(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"data")
    answers = await asyncio.gather(*(stream.close() for _ in range(12)))
    assert {(answer.status, answer.closed) for answer in answers} == {(204, True)}
    assert len({answer.next for answer in answers}) == 1


async def test_no_append_lands_behind_a_racing_close(server: Server) -> None:
    stream = server.stream()
    await stream.put()

    async def write(n: int) -> Answer:
        return await stream.post(b"<%d>" % n)

    *written, closed = await asyncio.gather(*(write(n) for n in range(40)), stream.close())
    assert closed.status == 204
    kept = {n: answer.next for n, answer in enumerate(written) if answer.status == 204}
    assert all(answer.closed for answer in written if answer.status == 409)
    assert {answer.status for answer in written} <= {204, 409}
    in_order = sorted(kept, key=lambda n: kept[n])
    read = await stream.get()
    assert (read.body, read.closed) == (b"".join(b"<%d>" % n for n in in_order), True)
    assert read.next == closed.next


@pytest.mark.parametrize("body", [b"last", b""], ids=["with-data", "without"])
async def test_producer_that_closed_may_repeat_itself_and_nobody_else(
    server: Server, body: bytes
) -> None:
    stream = server.stream()
    await stream.put()
    await stream.produce(b"first ", 0)
    closed = await stream.produce(body, 1, close=True)
    assert (closed.status, closed.closed) == (200 if body else 204, True)
    again = await stream.produce(body, 1, close=True)
    assert (again.status, again.closed, again.next) == (204, True, closed.next)
    for other in (
        await stream.produce(b"x", 2),
        await stream.produce(b"x", 0, epoch=1),
        await stream.produce(b"x", 0, producer="q"),
        await stream.produce(b"x", 0),
    ):
        assert (other.status, other.closed, other.next) == (409, True, closed.next)
    assert (await stream.get()).body == b"first " + body


async def test_offsets_sort_as_they_were_given(server: Server) -> None:
    stream = server.stream()

    async def grow(stream: Stream) -> list[str]:
        return [(await stream.post(b"x" * n)).next for n in (1, 9, 90, 900, 9000)]

    created = await stream.put()
    first = [created.next, *await grow(stream)]
    assert first == sorted(set(first))
    await stream.delete()
    recreated = await stream.put()
    second = [recreated.next, *await grow(stream)]
    assert first + second == sorted(set(first + second))
    assert token(recreated.next)[1] == 0
