"""No descriptor is left: whoever waits goes on waiting, who comes waits to be let in, none is
reset."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
from pathlib import Path

from tests.edge.served import Line, asking, until
from tests.faults.ledger import session
from tests.http.api import Server
from tests.service import Service

WAITING, COMING = 20, 30
PORTS = ("--port", "0", "--admin-port", "0", "--drain-s", "0.1")


def descriptors(pid: int) -> set[int]:
    return {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}


async def connect(url: str) -> Line:
    host, _, port = url.removeprefix("http://").partition(":")
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    return Line(sock)


async def test_edge_without_descriptors_serves_who_waits_and_recovers_by_itself(
    tmp_path: Path,
) -> None:
    bus = ("--bus-socket", str(tmp_path / "bus"))
    origin_flags = ["origin", *PORTS, *bus, "--data-dir", str(tmp_path / "data")]
    async with await asyncio.to_thread(Service.start, origin_flags) as origin, session() as client:
        edge_flags = ["edge", *PORTS, *bus, "--upstream", origin.url]
        async with await asyncio.to_thread(Service.start, edge_flags) as edge:
            stream = Server(origin.url, client).stream("s")
            tail = (await stream.put()).next
            waiting = [await connect(edge.url) for _ in range(WAITING)]
            for line in waiting:
                await line.ask(f"s?offset={tail}&live=long-poll")
            # Once they have had something, all that it takes is open.
            tail = (await stream.post(b"first")).next
            for line in waiting:
                assert (await line.reply()).body == b"first"
                await line.ask(f"s?offset={tail}&live=long-poll")
            _, hard = resource.prlimit(edge.pid, resource.RLIMIT_NOFILE)
            used = descriptors(edge.pid)
            lowest = next(number for number in itertools.count() if number not in used)
            resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (lowest, hard))
            coming = [await connect(edge.url) for _ in range(COMING)]
            for line in coming:
                await line.send(asking("s?offset=-1"))
            await until(lambda: "cannot accept" in edge.stderr())
            tail = (await stream.post(b"news")).next
            for line in waiting:
                assert (await line.reply()).body == b"news"
                await line.ask(f"s?offset={tail}&live=long-poll")
            resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (hard, hard))
            for line in coming:
                assert (await line.reply()).status == 200
                line.close()
            await stream.close()
            for line in waiting:
                assert (await line.reply()).status == 204
                line.close()


async def test_origin_without_descriptors_takes_a_large_append_all_the_same(
    tmp_path: Path,
) -> None:
    """Its commit has no file of its own then; the next one has."""
    flags = ["origin", *PORTS, "--data-dir", str(tmp_path / "data")]
    async with await asyncio.to_thread(Service.start, flags) as origin, session() as client:
        stream = Server(origin.url, client).stream("s")
        await stream.put()
        await stream.post(b"small")
        _, hard = resource.prlimit(origin.pid, resource.RLIMIT_NOFILE)
        used = descriptors(origin.pid)
        lowest = next(number for number in itertools.count() if number not in used)
        resource.prlimit(origin.pid, resource.RLIMIT_NOFILE, (lowest, hard))
        assert (await stream.post(b"x" * 400_000)).status == 204
        assert (await stream.post(b"small")).status == 204
        resource.prlimit(origin.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert (await stream.post(b"x" * 400_000)).status == 204
        assert await stream.whole() == b"small" + b"x" * 400_000 + b"small" + b"x" * 400_000
