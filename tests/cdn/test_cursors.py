"""A client that never sends a cursor, behind a cache: it waits as others do, and does not loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.cdn.behind import EDGES, Reader, all_are
from tests.cdn.caches import CACHES, port_of
from tests.deploy.up import start
from tests.http.api import Server

LONG_POLL_S = "11"  # as by default: longer than the ten seconds in which caches take them for one
READERS = 10


@pytest.mark.timeout(120)
async def test_readers_without_cursors_do_not_loop(
    folder: Path, session: aiohttp.ClientSession
) -> None:
    flags = ["--edges", str(EDGES), "--long-poll-timeout-s", LONG_POLL_S]
    with (
        start(folder / "patient", *flags) as service,
        CACHES["nginx"](folder / "patient-nginx", port_of(service.url)) as nginx,
        CACHES["varnish"](folder / "patient-varnish", port_of(service.url)) as varnish,
    ):
        streams = [Server(url, session).stream() for url in (nginx, varnish)]
        readers = []
        for stream in streams:
            tail = (await stream.put(b"data")).next
            readers += [Reader(stream, tail, sends_cursors=False) for _ in range(READERS)]
        following = [asyncio.create_task(reader.follow()) for reader in readers]
        # The 204 that ends the first wait is kept for a second: it is not to end the second.
        await all_are(readers, lambda reader: reader.polls >= 2)
        await asyncio.sleep(1)
        for stream in streams:
            await stream.post(b"end", headers={"Stream-Closed": "true"})
        await asyncio.gather(*following)
    assert {(reader.seen, *reader.statuses) for reader in readers} == {(b"end", 204, 200)}
