"""A large stream, read to its end by several at once, passes through and does not pile up."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from tests.deploy.up import processes
from tests.faults.ledger import session
from tests.http.api import Server
from tests.service import Service

MEGABYTE = 1_000_000
APPENDS, READERS = 250, 4
GROWTH_BYTES_MAX = 50 * MEGABYTE


def resident_bytes(pid: int, what: str) -> int:
    """Return VmRSS or VmHWM, the most that VmRSS ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {what} in /proc/{pid}/status")


@pytest.mark.timeout(100)
async def test_large_stream_read_by_four_at_once_adds_little_to_any_process(
    tmp_path: Path,
) -> None:
    flags = ["up", "--port", "0", "--admin-port", "0", "--data-dir", str(tmp_path)]
    flags += ["--drain-s", "0.1", "--log-level", "error"]
    kind, piece = "application/octet-stream", bytes(range(256)) * (MEGABYTE // 256)
    async with await asyncio.to_thread(Service.start, flags) as up, session() as client:
        stream = Server(up.url, client).stream("large")
        assert (await stream.put(kind=kind)).status == 201
        for _ in range(APPENDS):
            assert (await stream.post(piece, kind)).status == 204
    # Processes that have done nothing else: what they hold in the end, this has made them hold.
    async with await asyncio.to_thread(Service.start, flags) as up, session() as client:
        names = processes(up)
        assert {"hw-origin", "hw-edge-0"} <= set(names.values())
        before = {pid: resident_bytes(pid, "VmRSS") for pid in names}
        url = f"{up.url}/v1/stream/large"
        sizes = await asyncio.gather(*(_read(client, url) for _ in range(READERS)))
        assert sizes == [APPENDS * len(piece)] * READERS
        growth = {name: resident_bytes(pid, "VmHWM") - before[pid] for pid, name in names.items()}
        assert max(growth.values()) < GROWTH_BYTES_MAX, growth


async def _read(client: aiohttp.ClientSession, url: str) -> int:
    """Read a stream to its end, a chunk at a time; return its size."""
    offset, size = "-1", 0
    while True:
        async with client.get(URL(f"{url}?offset={offset}", encoded=True)) as reply:
            assert reply.status == 200
            async for piece in reply.content.iter_any():
                size += len(piece)
            offset = reply.headers["Stream-Next-Offset"]
            if "Stream-Up-To-Date" in reply.headers:
                return size
