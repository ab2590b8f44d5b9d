"""Started again on the same data, after a stop or a kill, everything is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from tests.http.api import BINARY, JSON, Answer, Server, Stream, moved, token
from tests.http.conftest import BRISK, PORTS
from tests.service import Service

CHUNK_BYTES = 1024 * 1024


def start(role: str, data: Path) -> Service:
    return Service.start([role, *PORTS, *BRISK, "--data-dir", str(data)])


def stop(service: Service, how: str) -> None:
    if how == "kill":
        service.kill()
    else:
        service.terminate()
        assert service.wait() == 0
    service.close()


async def whole(stream: Stream) -> tuple[Answer, bytes]:
    return await stream.head(), await stream.whole()


def told(answer: Answer) -> dict[str, str]:
    """Return what an answer says of its stream."""
    return {
        name: value
        for name, value in answer.headers.items()
        if name.startswith(("Stream-", "Producer-", "Content-Type", "ETag"))
        and name != "Stream-Cursor"
    }


@pytest.mark.parametrize(("role", "how"), [("origin", "kill"), ("up", "stop"), ("up", "kill")])
async def test_everything_is_as_it_was(
    role: str, how: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    service = start(role, tmp_path)
    try:
        before = Server(service.url, session)
        names = ("text", "json", "closed", "produced", "ended", "ttl", "source", "fork", "sub")
        streams = {name: before.stream(f"a/{name}") for name in names}
        gone, reused, big = before.stream("gone"), before.stream("reused"), before.stream("big")
        await write_all(streams)
        await gone.put(b"gone")
        await gone.delete()
        old = (await reused.put(b"first life")).next
        await reused.delete()
        await reused.put(b"second life")
        sizes = [CHUNK_BYTES // 3 + n for n in range(7)]
        await big.put(kind=BINARY)
        for n, size in enumerate(sizes):
            await big.post(bytes([n]) * size, BINARY)
        kept = {name: await whole(stream) for name, stream in streams.items() if name != "source"}
        reads = {name: await stream.get() for name, stream in streams.items()}
        polled = [await big.at("-1")]
        polled.append(await big.at(polled[0].next))
        registry = json.loads(await before.stream("__registry__").whole())
        newest = token((await big.head()).next)[0]
        await before.stream("short").put(b"short", headers={"Stream-TTL": "1"})
    finally:
        stop(service, how)

    service = start(role, tmp_path)
    try:
        after = Server(service.url, session)
        same = {name: after.stream(stream.path) for name, stream in streams.items()}
        for name, (head, body) in kept.items():
            now_head, now_body = await whole(same[name])
            assert (name, told(now_head)) == (name, told(head))
            assert (name, now_body) == (name, body)
        for name, read in reads.items():
            answer = await same[name].get()
            assert (name, answer.status, answer.body) == (name, read.status, read.body)
            assert (name, told(answer)) == (name, told(read))
        assert (await after.stream("gone").get()).status == 404
        assert (await after.stream("reused").get()).body == b"second life"
        assert (await after.stream("reused").at(old)).status == 410
        again = [await after.stream("big").at("-1")]
        again.append(await after.stream("big").at(again[0].next))
        assert [(told(a), a.body, a.cache_control) for a in again] == [
            (told(a), a.body, a.cache_control) for a in polled
        ]
        # The short one came last, and may be over by now.
        now_registry = json.loads(await after.stream("__registry__").whole())
        assert now_registry[: len(registry)] == registry
        assert {entry["key"] for entry in now_registry[len(registry) :]} == {"short"}
        await check_writers(same)
        # What was minted before is never minted again, not even for another path.
        assert token((await after.stream("later").put()).next)[0] > newest
        # It went on ageing meanwhile; who comes next does not wait for anyone to clear it away.
        await after.stream("short").wait_until_over()
        assert (await after.stream("short").put()).status == 201
        history = json.loads(await after.stream("__registry__").whole())
        said = [(entry["key"], entry["headers"]["operation"]) for entry in history]
        assert said.count(("later", "insert")) == said.count(("short", "delete")) == 1
    finally:
        stop(service, how)


async def write_all(streams: dict[str, Stream]) -> None:
    """Bring streams into all states that there are."""
    await streams["text"].put(b"one ", "text/plain; charset=utf-8")
    for n in range(5):
        await streams["text"].post(b"%d " % n, "text/plain", {"Stream-Seq": f"s{n}"})
    await streams["json"].put(b'[{"a" : 1.0}, 2]', JSON)
    await streams["json"].post(b"[[3]]", JSON)
    await streams["closed"].put(b"all there is", headers={"Stream-Closed": "true"})
    await streams["produced"].put()
    for seq in range(3):
        await streams["produced"].produce(b"%d" % seq, seq, epoch=4)
    await streams["ended"].put()
    await streams["ended"].produce(b"the end", 0, close=True)
    await streams["ttl"].put(b"for an hour", headers={"Stream-TTL": "3600"})
    anchor = (await streams["source"].put(b"source ")).next
    end = (await streams["source"].post(b"more")).next
    await streams["fork"].fork(streams["source"], b"fork", {"Stream-Fork-Offset": anchor})
    sub = {"Stream-Fork-Offset": anchor, "Stream-Fork-Sub-Offset": "2"}
    await streams["sub"].fork(streams["source"], b"sub", sub | {"Stream-TTL": "7200"})
    assert (await streams["sub"].get()).body == b"source mosub"
    assert (await streams["fork"].at(moved(end, 0))).status == 400
    await streams["source"].delete()


async def check_writers(streams: dict[str, Stream]) -> None:
    """Check that writers meet the state that they left."""
    text = streams["text"]
    assert (await text.post(b"x", headers={"Stream-Seq": "s4"})).status == 409
    assert (await text.post(b"x", headers={"Stream-Seq": "s5"})).status == 204
    produced = streams["produced"]
    again = await produced.produce(b"2", 2, epoch=4)
    assert (again.status, again.headers["Producer-Seq"]) == (204, "2")
    assert (await produced.produce(b"x", 4, epoch=4)).headers["Producer-Expected-Seq"] == "3"
    assert (await produced.produce(b"x", 0, epoch=3)).status == 403
    assert (await produced.produce(b"3", 3, epoch=4)).status == 200
    assert (await produced.get()).body == b"0123"
    ended = streams["ended"]
    retried = await ended.produce(b"the end", 0, close=True)
    assert (retried.status, retried.closed) == (204, True)
    assert (await ended.produce(b"x", 1)).status == 409
    assert (await streams["closed"].post(b"x")).status == 409
    assert (await streams["ttl"].put(headers={"Stream-TTL": "3600"})).status == 200
    assert (await streams["ttl"].put(headers={"Stream-TTL": "3601"})).status == 409
    source, fork, sub = streams["source"], streams["fork"], streams["sub"]
    assert (await source.get()).status == 410
    assert (await source.put()).status == 409
    await fork.post(b"!")
    assert (await fork.get()).body == b"source fork!"
    # The count of forks has survived too.
    await fork.delete()
    assert (await source.get()).status == 410
    await sub.delete()
    assert (await source.get()).status == 404
