"""Streams that end by themselves, and readers who keep them alive."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from tests.http.api import Server


async def test_live_readers_keep_a_stream_alive_and_it_ends_without_them(server: Server) -> None:
    polled, listened, read = server.stream(), server.stream(), server.stream()
    for stream in (polled, listened, read):
        assert (await stream.put(b"data", headers={"Stream-TTL": "1"})).status == 201
    tail = (await polled.head()).next

    async def poll() -> None:
        for _ in range(6):  # each 0.3 s: together nearly two windows
            answer = await polled.poll(tail)
            assert (answer.status, answer.headers["Stream-TTL"]) == (204, "1")

    async def listen() -> None:
        for _ in range(2):  # each 0.8 s
            assert [event.kind for event in await listened.events("now")] == ["control"]

    async def read_on() -> None:
        for _ in range(7):
            assert (await read.get()).body == b"data"
            await asyncio.sleep(0.25)

    await asyncio.gather(poll(), listen(), read_on())
    await asyncio.gather(*(stream.wait_until_over() for stream in (polled, listened, read)))
    for stream in (polled, listened, read):
        assert (await stream.get()).status == 404
        assert (await stream.poll("-1")).status == 404
        assert (await stream.post(b"x")).status == 404


async def test_one_long_wait_keeps_a_stream_alive_and_gets_its_data(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put(headers={"Stream-TTL": "1"})).next
    poll = asyncio.create_task(stream.poll(tail))
    async with stream.sse(tail) as events:
        await events.event()
        await asyncio.sleep(1.3)  # beyond the window, in which nothing is heard of the readers
        assert (await stream.post(b"late")).status == 204
        assert (await events.event()).data == "late"
    assert (await poll).body == b"late"


async def test_deadline_ends_live_readers_whatever_they_wait_for(patient: Server) -> None:
    stream, listened = patient.stream(), patient.stream()
    deadline = (datetime.now(UTC) + timedelta(seconds=1)).isoformat(timespec="milliseconds")
    for each in (stream, listened):
        await each.put(b"data", headers={"Stream-Expires-At": deadline})
    tail = (await stream.head()).next
    poll = asyncio.create_task(stream.poll(tail))
    async with listened.sse("now") as events:
        assert (await events.event()).control["upToDate"] is True
        assert [event async for event in events if event.kind != ":"] == []
    answer = await poll
    assert answer.status in (404, 410)
    answer.refusal("public, max-age=1")  # at that offset, for ever
    assert (await stream.put(b"anew")).status == 201
    assert (await stream.at(tail)).status == 410


async def test_expired_source_of_a_fork_is_gone_and_the_fork_is_not(server: Server) -> None:
    source, fork = server.stream(), server.stream()
    await source.put(b"data", headers={"Stream-TTL": "1"})
    created = await fork.fork(source, headers={"Stream-TTL": "60"})
    assert created.status == 201
    await source.wait_until_over()

    async def look() -> None:
        # Over is over: from now on it is not found, and once it is cleared away, gone.
        while (answer := await source.get()).status != 410:
            assert (answer.status, answer.closed) == (404, False)

    await asyncio.gather(*(look() for _ in range(4)))
    # Its path is not free while the fork needs what it holds.
    assert (await source.put()).status == 409
    assert (await source.head()).status == 410
    assert (await fork.get()).body == b"data"
    await fork.delete()
    assert (await source.head()).status == 404
