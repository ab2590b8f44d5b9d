"""Appends that hold only while the tail stays where it was seen."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.api import Answer, Server


def names(answer: Answer) -> dict[str, str]:
    return {"If-Match": answer.headers["ETag"]}


async def test_every_answer_that_tells_the_tail_serves(server: Server) -> None:
    stream = server.stream()
    seen = await stream.put(b"one")
    for look in (stream.head, stream.get, lambda: stream.at("-1")):
        assert (await stream.post(b"+", headers=names(seen))).status == 204
        seen = await look()
    again = await stream.post(b"two", headers=names(seen))
    assert (await stream.post(b"three", headers=names(again))).status == 204
    assert await stream.whole() == b"one+++twothree"


async def test_tail_that_has_moved_is_told(server: Server) -> None:
    stream = server.stream()
    seen = await stream.put(b"one")
    now = await stream.post(b"two")
    for write in (
        stream.post(b"three", headers=names(seen)),
        stream.post(b"", None, names(seen) | {"Stream-Closed": "true"}),
        stream.post(b"three", headers={"If-Match": f"W/{now.headers['ETag']}"}),
    ):
        refused = await write
        assert refused.status == 412
        assert refused.refusal()[0] == "tail_moved"
        assert refused.next == now.next
        assert refused.headers["ETag"] == now.headers["ETag"]
        assert refused.headers["Cache-Control"] == "no-store"
    assert await stream.whole() == b"onetwo"
    assert (await stream.post(b"three", headers=names(refused))).status == 204


async def test_of_many_at_once_one_wins(server: Server) -> None:
    stream = server.stream()
    seen = await stream.put(b"one")
    bodies = [b"<%d>" % number for number in range(20)]
    answers = await asyncio.gather(*(stream.post(b, headers=names(seen)) for b in bodies))
    assert sorted(answer.status for answer in answers) == [204] + [412] * 19
    won = next(b for b, answer in zip(bodies, answers, strict=True) if answer.status == 204)
    assert await stream.whole() == b"one" + won


async def test_any_tail_will_do_as_long_as_there_is_a_stream(server: Server) -> None:
    stream = server.stream()
    assert (await stream.post(b"x", headers={"If-Match": "*"})).status == 404
    await stream.put()
    assert (await stream.post(b"x", headers={"If-Match": "*"})).status == 204


async def test_retry_of_a_producer_is_a_duplicate(server: Server) -> None:
    stream = server.stream()
    seen = await stream.put()
    producer = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}
    assert (await stream.post(b"x", headers=names(seen) | producer)).status == 200
    assert (await stream.post(b"x", headers=names(seen) | producer)).status == 204
    assert await stream.whole() == b"x"


async def test_close_changes_the_tag(server: Server) -> None:
    stream = server.stream()
    seen = await stream.put(b"one")
    closed = await stream.post(b"", None, names(seen) | {"Stream-Closed": "true"})
    assert closed.status == 204
    assert closed.headers["ETag"] != seen.headers["ETag"]
    assert (await stream.head()).headers["ETag"] == closed.headers["ETag"]


@pytest.mark.parametrize("text", ["0000000000000001_0000000000000000", '"a', ""])
async def test_what_is_no_tag_is_refused(server: Server, text: str) -> None:
    stream = server.stream()
    await stream.put()
    assert (await stream.post(b"x", headers={"If-Match": text})).status == 400
