"""The HTTP client of the tests, whose connections end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from deploy.client.connections import Connector


@asynccontextmanager
async def quiet_session(
    timeout: aiohttp.ClientTimeout, *, force_close: bool = False
) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client that says nothing of its own accord, and connects as often as it likes."""
    connector = Connector(limit=0, force_close=force_close)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as client:
        try:
            yield client
        finally:
            connector.abort()  # a body that was refused would outlive the loop
