"""Around the protocol: preflights, health, the registry, and settings that clients can see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp
import pytest

from tests.http.api import JSON, Server
from tests.service import Service

REQUEST_HEADERS = (
    "content-type",
    "authorization",
    "if-none-match",
    "stream-seq",
    "stream-ttl",
    "stream-expires-at",
    "stream-closed",
    "stream-forked-from",
    "stream-fork-offset",
    "stream-fork-sub-offset",
    "producer-id",
    "producer-epoch",
    "producer-seq",
)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD"])
async def test_browser_may_send_everything_that_the_protocol_knows(
    server: Server, method: str
) -> None:
    # The stream need not be there, nor may the preflight be refused for what it lacks.
    answer = await server.ask(
        "OPTIONS",
        server.stream().target,
        {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ", ".join(REQUEST_HEADERS),
        },
    )
    assert answer.status in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    allowed = {name.strip() for name in answer.headers["Access-Control-Allow-Methods"].split(",")}
    assert method in allowed
    allowed = {
        name.strip().lower() for name in answer.headers["Access-Control-Allow-Headers"].split(",")
    }
    assert allowed.issuperset(REQUEST_HEADERS)
    assert int(answer.headers["Access-Control-Max-Age"]) > 0


async def test_browser_is_shown_everything_that_the_protocol_answers(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"data", headers={"Stream-TTL": "60"})
    answers = [
        await stream.get(),
        await stream.head(),
        await stream.poll("-1"),
        await stream.produce(b"x", 0),
        await stream.produce(b"x", 7),
        await stream.produce(b"x", 1, close=True),
        await stream.poll("now"),
    ]
    for answer in answers:
        exposed = answer.headers["Access-Control-Expose-Headers"].lower().split(", ")
        for name in answer.headers:
            if name.startswith(("Stream-", "Producer-", "ETag", "Location")):
                assert name.lower() in exposed


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health(server: Server, method: str) -> None:
    assert (await server.ask(method, "/health")).status == 200


async def entries(server: Server, offset: str) -> list[dict[str, object]]:
    """Return what the registry says from an offset on."""
    registry = server.stream("__registry__")
    found: list[dict[str, object]] = []
    while True:
        answer = await registry.at(offset)
        assert (answer.status, answer.headers["Content-Type"]) == (200, JSON)
        found += json.loads(answer.body)
        if answer.up_to_date:
            return found
        offset = answer.next


async def test_registry_tells_of_streams_that_come_and_go(server: Server) -> None:
    registry = server.stream("__registry__")
    start = (await registry.head()).next
    stream, fork = server.stream(), server.stream(f"{server.stream().path}/\u00fc")
    await stream.put(kind="text/x-this")
    await stream.put(kind="text/x-this")
    await stream.post(b"x", "text/x-this")
    await fork.fork(stream)
    await stream.delete()
    await fork.delete()
    names = {stream.path, fork.path.replace("%C3%BC", "\u00fc")}
    told = [entry for entry in await entries(server, start) if entry["key"] in names]
    assert [entry["headers"] for entry in told] == [
        {"operation": "insert"},
        {"operation": "insert"},
        {"operation": "delete"},
        {"operation": "delete"},
    ]
    assert {str(entry["type"]) for entry in told} == {"stream"}
    value = told[0]["value"]
    assert isinstance(value, dict)
    assert set(value) == {"path", "contentType", "createdAt"}
    assert (value["path"], value["contentType"]) == (stream.path, "text/x-this")
    assert isinstance(value["createdAt"], int)
    assert told[0]["key"] == stream.path


async def test_registry_can_be_followed_live(patient: Server) -> None:
    registry, stream = patient.stream("__registry__"), patient.stream()

    async def hear() -> None:
        async with registry.sse("now") as events:
            await events.event()
            listening.set()
            while f'"{stream.path}"' not in (await events.event()).data:
                pass

    listening = asyncio.Event()
    hearing = asyncio.create_task(hear())
    await listening.wait()
    await stream.put()
    await hearing


async def test_refused_creates_and_deletes_leave_no_trace_in_the_registry(server: Server) -> None:
    start = (await server.stream("__registry__").head()).next
    stream, taken = server.stream(), server.stream()
    await stream.put(b"{", JSON)
    await stream.fork(server.stream())
    await stream.delete()
    await taken.put()
    await taken.put(kind="a/b")
    told = [entry["key"] for entry in await entries(server, start)]
    assert stream.path not in told
    assert told.count(taken.path) == 1


@pytest.fixture(scope="module")
def odd_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with settings that clients notice."""
    settings = {
        "data-dir": str(tmp_path_factory.mktemp("odd")),
        "port": "0",
        "admin-port": "0",
        "stream-prefix": "/deep/down/",
        "public-url": "https://streams.example/",
        "registry": "false",
        "body-bytes-max": "1000",
        "chunk-bytes": "1024",
        "cache-tail": "private, max-age=7",
        "cache-live-empty": "no-store",
        "long-poll-timeout-s": "0.2",
        "drain-s": "0.1",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    with Service.start(["up", *flags]) as running:
        yield running


@pytest.fixture
def odd(odd_service: Service, session: aiohttp.ClientSession) -> Server:
    return Server(odd_service.url, session, "/deep/down/")


async def test_prefix_is_a_setting(odd: Server) -> None:
    stream = odd.stream(f"{odd.stream().path}/below")
    assert (await stream.put(b"data")).status == 201
    assert (await stream.get()).body == b"data"
    for other in ("/v1/stream/", "/deep/", "/deep/down", "/deep/downx/", "/"):
        assert (await odd.ask("PUT", f"{other}{stream.path}")).status == 404
    assert (await odd.ask("GET", "/health")).status == 200
    fork = odd.stream()
    assert (await fork.fork(stream)).status == 201
    foreign = {"Stream-Forked-From": f"/v1/stream/{stream.path}"}
    assert (await odd.stream().put(kind=None, headers=foreign)).status == 404


async def test_public_url_is_what_location_begins_with(odd: Server) -> None:
    stream = odd.stream()
    answer = await stream.put(headers={"X-Forwarded-Proto": "http"})
    assert answer.headers["Location"] == f"https://streams.example{stream.target}"


async def test_registry_can_be_turned_off(odd: Server) -> None:
    registry = odd.stream("__registry__")
    assert (await registry.get()).status == 404
    # Its name stays reserved, or turning it on again would meet somebody's stream.
    assert (await registry.put()).status in (404, 405)


async def test_limits_and_lifetimes_are_settings(odd: Server) -> None:
    stream = odd.stream()
    start = (await stream.put()).next
    assert (await stream.post(bytes(1000))).status == 204
    assert (await stream.post(bytes(1001))).status == 413
    tail = await stream.at(start)
    assert (tail.up_to_date, tail.cache_control) == (True, "private, max-age=7")
    await stream.post(bytes(1000))
    last = await stream.post(bytes(10))
    full = await stream.at(start)
    assert (len(full.body), "immutable" in full.cache_control) == (2000, True)
    waited = await stream.poll(last.next)
    assert (waited.status, waited.cache_control) == (204, "no-store")
