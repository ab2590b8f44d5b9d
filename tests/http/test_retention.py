"""Retention as clients see it."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.api import BINARY, Server


async def test_policy_is_told_and_is_part_of_what_a_stream_is(server: Server) -> None:
    stream = server.stream()
    asked = {"Stream-Retention-Age": "60", "Stream-Retention-Bytes": "1000"}
    for answer in (await stream.put(headers=asked), await stream.head()):
        assert {name: answer.headers[name] for name in asked} == asked
        assert "Stream-Earliest-Offset" not in answer.headers
    assert (await stream.put(headers=asked)).status == 200
    assert (await stream.put()).status == 200
    assert (await stream.put(headers={"Stream-Retention-Age": "61"})).status == 409
    assert (await server.stream().put(headers={"Stream-Retention-Bytes": "0"})).status == 400


async def test_old_data_is_gone_and_the_rest_goes_on(server: Server) -> None:
    stream = server.stream()
    first = await stream.put(kind=BINARY, headers={"Stream-Retention-Bytes": "1000"})
    written = b""
    for number in range(40):
        # Together more than compaction may have joined by the time of a look, which goes as one.
        written += (piece := bytes([number]) * 10_000)
        tail = await stream.post(piece, BINARY)
    async with asyncio.timeout(20):
        while "Stream-Earliest-Offset" not in (head := await stream.head()).headers:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    kept = await stream.whole()
    assert written.endswith(kept)
    assert 1000 <= len(kept) < len(written)
    earliest = head.headers["Stream-Earliest-Offset"]
    assert (await stream.at(earliest)).body == kept
    assert (await stream.at(tail.next)).body == b""
    for answer in (await stream.at(first.next), await stream.poll(first.next)):
        assert answer.status in (200, 410)  # the very beginning is an offset of its own
    second = f"{first.next[:-1]}1"
    for answer in (await stream.at(second), await stream.poll(second)):
        assert answer.refusal()[0] == "trimmed"
        assert answer.status == 410
        assert answer.headers["Stream-Earliest-Offset"] == earliest


@pytest.mark.parametrize("name", ["Stream-Retention-Age", "Stream-Retention-Bytes"])
async def test_browsers_may_ask_for_it(server: Server, name: str) -> None:
    answer = await server.ask(
        "OPTIONS", server.stream().target, {"Access-Control-Request-Method": "PUT"}
    )
    assert name in answer.headers["Access-Control-Allow-Headers"]
    assert name in answer.headers["Access-Control-Expose-Headers"]
