"""A deletion reaches the cache: what it kept for good is not served any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.cdn.behind import GONE, until
from tests.cdn.caches import CACHES, PURGE_SECRET
from tests.http.api import Server
from tests.service import Service, _free_port

CHUNK = 1024 * 1024


@pytest.fixture
def purged(folder: Path, tmp_path: Path) -> Iterator[str]:
    """Varnish before a service that tells it of deletions; its URL."""
    port = _free_port()
    secret = tmp_path / "secret"
    secret.write_text(f"Authorization: Bearer {PURGE_SECRET}\n")
    with CACHES["varnish"](folder / "purged", port) as url:
        flags = ["--port", str(port), "--admin-port", "0", "--data-dir", str(tmp_path / "data")]
        flags += ["--purge-url", url, "--purge-method", "PURGE"]
        with Service.start(["up", *flags, "--purge-headers-file", str(secret)]):
            yield url


async def test_chunk_that_is_kept_for_good_goes_with_its_stream(
    purged: str, session: aiohttp.ClientSession
) -> None:
    server = Server(purged, session)
    gone, stays = server.stream(), server.stream()
    starts = []
    for stream in (gone, stays):
        starts.append((await stream.put()).next)
        for size in (CHUNK, 1):  # a full chunk, and something behind it
            assert (await stream.post(b"x" * size)).status == 204
        for cached in ("MISS", "HIT"):
            answer = await stream.at(starts[-1])
            assert answer.headers["X-Cache"] == cached
            assert "immutable" in answer.cache_control
    await gone.delete()

    async def look() -> bool:
        return (await gone.at(starts[0])).status in GONE

    await until(look, lambda: "kept after it was deleted")
    assert (await stays.at(starts[1])).headers["X-Cache"] == "HIT"
