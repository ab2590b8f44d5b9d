"""An upstream that dies, refuses or is slow: nothing broken is kept by a cache."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.cdn.caches import CACHES, PURGE_SECRET
from tests.cdn.peer import FOREVER, Peer, Said, peer, said
from tests.http.api import Answer, Server

BODY = b"whole" * 40_000
KEPT = f"Cache-Control: {FOREVER}"
GOOD = Said(said("200 OK", BODY, [KEPT]))
HALF = BODY[: len(BODY) // 2]

BROKEN = {
    "dies-in-the-head": Said(b"HTTP/1.1 200 OK\r\nContent-", ends=True),
    "dies-in-the-body": Said(
        said("200 OK", HALF, [KEPT], length=len(BODY)), pause_s=0.2, ends=True
    ),
    "dies-in-a-chunk": Said(
        said("200 OK").replace(
            b"Content-Length: 0", f"Transfer-Encoding: chunked\r\n{KEPT}".encode()
        )
        + b"5000\r\n"
        + HALF[:1000],
        ends=True,
    ),
    "ends-without-a-length": Said(
        said("200 OK").replace(b"Content-Length: 0", f"Connection: close\r\n{KEPT}".encode())
        + HALF,
        ends=True,
    ),
    "503": Said(said("503 Service Unavailable", b"no", [KEPT])),
    "500": Said(said("500 Internal Server Error", b"no", [KEPT])),
    "401": Said(said("401 Unauthorized", b"no", [KEPT])),
    "404-without-a-lifetime": Said(said("404 Not Found", b"no")),
    "410-not-to-be-kept": Said(said("410 Gone", b"no", ["Cache-Control: no-store"])),
    "200-without-a-lifetime": Said(said("200 OK", b"no")),
    "200-private": Said(said("200 OK", b"no", ["Cache-Control: private, max-age=60"])),
    "204-without-a-lifetime": Said(said("204 No Content")),
}


@dataclass(frozen=True, slots=True)
class Misled:
    """A cache whose upstream is a peer."""

    cache: str
    server: Server
    peer: Peer

    def target(self, *script: Said) -> str:
        """Return a new path that is answered so."""
        path = f"/v1/stream/{uuid.uuid4().hex}"
        self.peer.scripts[path] = list(script)
        return path

    async def ask(self, target: str) -> Answer | None:
        """Ask for a chunk; None if the reply is cut off, and so is known to be none."""
        try:
            return await self.server.ask("GET", f"{target}?offset=1_2")
        except aiohttp.ClientError:
            return None


@pytest.fixture(params=sorted(CACHES))
async def misled(
    request: pytest.FixtureRequest, folder: Path, session: aiohttp.ClientSession
) -> AsyncIterator[Misled]:
    async with peer() as upstream:
        cache = CACHES[request.param](folder / f"misled-{uuid.uuid4().hex}", upstream.port)
        url = await asyncio.to_thread(cache.__enter__)
        try:
            yield Misled(request.param, Server(url, session), upstream)
        finally:
            await asyncio.to_thread(cache.__exit__, None, None, None)


async def test_nothing_broken_is_kept(misled: Misled) -> None:
    for name, broken in BROKEN.items():
        target = misled.target(broken, GOOD)
        first = await misled.ask(target)
        # Whoever asks while it is broken sees that it is.
        if name.startswith("dies"):
            assert first is None or first.status == 503 or first.body == BODY, name
            # Varnish gives nobody a part: it has a chunk as a whole, or it has none.
            assert first is not None or misled.cache == "nginx", name
        second = await misled.ask(target)
        assert second is not None, name
        assert (second.status, second.body) == (200, BODY), name
        asked = misled.peer.asked[target]
        third = await misled.ask(target)
        assert third is not None, name
        assert (third.body, misled.peer.asked[target]) == (BODY, asked), name


async def test_nobody_who_waits_gets_a_part(misled: Misled) -> None:
    dies = BROKEN["dies-in-the-body"]
    target = misled.target(Said(dies.data, pause_s=0.3, ends=True), GOOD)

    async def insist() -> bytes:
        while True:
            answer = await misled.ask(target)
            if answer is not None and answer.status == 200:
                return answer.body
            assert answer is None or answer.status == 503

    assert set(await asyncio.gather(*(insist() for _ in range(20)))) == {BODY}


async def test_slow_upstream_is_asked_once(misled: Misled) -> None:
    whole = said("200 OK", BODY, [KEPT])
    target = misled.target(Said(whole[:1000], pause_s=0.5, rest=whole[1000:]))
    answers = await asyncio.gather(*(misled.ask(target) for _ in range(20)))
    assert {answer and answer.body for answer in answers} == {BODY}
    assert misled.peer.asked[target] == 1


async def test_upstream_that_is_not_there_is_a_503(misled: Misled) -> None:
    target = misled.target(Said(b"", ends=True))
    answer = await misled.ask(target)
    assert answer is not None
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.cache_control == "no-store"


@pytest.mark.parametrize("misled", ["varnish"], indirect=True)  # open-source nginx has no purge
async def test_what_is_purged_is_asked_for_again(misled: Misled) -> None:
    keys = ("acme", "acme/a.b", "acme/axb")
    targets = [
        misled.target(Said(said("200 OK", BODY, [KEPT, f"Surrogate-Key: {key} other"])))
        for key in keys
    ]
    secret = {"Authorization": f"Bearer {PURGE_SECRET}"}
    for headers, status, fetched in (
        ({"Surrogate-Key": "acme/a.b"}, 403, [1, 1, 1]),
        ({"Surrogate-Key": "acme/a.b", "Authorization": "Bearer x"}, 403, [1, 1, 1]),
        (secret, 400, [1, 1, 1]),
        ({**secret, "Surrogate-Key": "acme.*"}, 400, [1, 1, 1]),
        ({**secret, "Surrogate-Key": "acme/a.b"}, 204, [1, 2, 1]),
        ({**secret, "Surrogate-Key": "other"}, 204, [2, 3, 2]),
    ):
        for target in targets:
            await misled.ask(target)
        assert (await misled.server.ask("PURGE", "/", headers)).status == status
        for target in targets:
            await misled.ask(target)
        assert [misled.peer.asked[target] for target in targets] == fetched
