"""Streams and usage, page by page, on the admin port of an origin and of the whole service."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.http.api import JSON, Server
from tests.http.conftest import BRISK, PORTS
from tests.service import Service


class Listed:
    """A service with a folder of its own, and its admin port."""

    def __init__(self, service: Service, session: aiohttp.ClientSession, admin: str) -> None:
        self.server = Server(service.url, session)
        self._admin = admin
        self._session = session

    async def ask(self, target: str) -> tuple[int, Any]:
        async with self._session.get(f"{self._admin}{target}") as reply:
            assert reply.headers["Cache-Control"] == "no-store"
            assert reply.headers["Content-Type"].startswith(JSON)
            return reply.status, await reply.json()

    async def paths(self, query: str = "") -> list[str]:
        """Return all that follows, page by page."""
        found, after = [], ""
        while True:
            _, page = await self.ask(f"/v1/stream/?{query}&after={quote(after)}")
            found += [entry["path"] for entry in page["streams"]]
            if page["next"] is None:
                return found
            after = page["next"]

    async def used(self, service: str) -> dict[str, int]:
        _, page = await self.ask(f"/usage?prefix={service}")
        (entry,) = (entry for entry in page["services"] if entry.pop("service") == service)
        counts: dict[str, int] = entry
        return counts


def admin_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(params=["origin", "up"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Service, str]]:
    flags = [request.param, *PORTS, *BRISK, "--data-dir", str(tmp_path), "--log-level", "info"]
    port = str(admin_port())
    flags[flags.index("--admin-port") + 1] = port
    with Service.start(flags) as service:
        yield service, f"http://127.0.0.1:{port}"


@pytest.fixture
async def listed(running: tuple[Service, str], session: aiohttp.ClientSession) -> Listed:
    return Listed(running[0], session, running[1])


async def test_streams_are_listed_as_they_are(listed: Listed) -> None:
    server = listed.server
    await server.stream("a/plain").put(b"one")
    await server.stream("a/\u00fc x").put(b"[1]", JSON, {"Stream-TTL": "60"})
    await server.stream("b").put(headers={"Stream-Closed": "true"})
    await server.stream("a/gone").put()
    await server.stream("a/gone").delete()
    await server.stream("c/source").put()
    await server.stream("c/fork").fork(server.stream("c/source"))
    await server.stream("c/source").delete()
    for _ in range(2):
        names = ["__registry__", "a/plain", "a/\u00fc x", "b", "c/fork"]
        assert await listed.paths() == names
        assert await listed.paths("limit=1") == names
        assert await listed.paths("prefix=a/") == names[1:3]
        assert await listed.paths("prefix=a/&limit=1&other=1") == names[1:3]
        _, page = await listed.ask("/v1/stream/?prefix=a/")
        plain, json = page["streams"]
        assert plain.pop("createdAt") > 1_600_000_000_000
        assert plain == {
            "path": "a/plain",
            "contentType": "text/plain",
            "nextOffset": (await server.stream("a/plain").head()).next,
            "closed": False,
        }
        assert (json["contentType"], json["ttl"]) == (JSON, 60)
        assert (await listed.ask("/v1/stream/?prefix=b"))[1]["streams"][0]["closed"]
        await asyncio.sleep(1.3)  # and now from the index


async def test_usage_is_counted(listed: Listed) -> None:
    server = listed.server
    stream, other = server.stream("acme/a"), server.stream("acme/b")
    await stream.put(b"12345")
    await other.put()
    await stream.post(b"x" * 10_240)
    await stream.post(b"x" * 10_241)
    await stream.produce(b"once", 0)
    await stream.produce(b"once", 0)
    await stream.produce(b"no", 7)
    await stream.close()
    await stream.close()
    expected = {
        "appends": 5,
        "bytes": 20_490,
        "writeUnits": 6,
        "storedBytes": 20_490,
        "streams": 2,
    }
    assert await listed.used("acme") == expected
    await asyncio.sleep(1.3)
    assert await listed.used("acme") == expected
    await stream.delete()
    assert await listed.used("acme") == expected | {"storedBytes": 0, "streams": 1}


NONSENSE = ("limit=0", "limit=1001", "limit=x", "after=a&after=b")


async def test_page_that_makes_no_sense_is_refused(listed: Listed) -> None:
    for target, query in product(("/v1/stream/", "/usage"), NONSENSE):
        status, told = await listed.ask(f"{target}?{query}")
        assert (status, told["error"]["code"]) == (400, "bad_request"), (target, query)


async def test_public_port_lists_nothing(listed: Listed) -> None:
    for target in ("/v1/stream/", "/v1/stream/?prefix=", "/usage"):
        assert (await listed.server.ask("GET", target)).status == 404
