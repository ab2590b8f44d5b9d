"""No descriptor is left: whoever waits goes on waiting, who comes waits to be let in, none is
reset."""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path

from tests.edge.served import Line, asking, until
from tests.faults.ledger import metrics, session
from tests.http.api import Server
from tests.service import Service, _free_port

WAITING, COMING = 20, 30
LIVE = 'headwater_live_readers{mode="long-poll"}'
PORTS = ("--port", "0", "--admin-port", "0", "--drain-s", "0.1")


def descriptors(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()]


async def connect(url: str) -> Line:
    host, _, port = url.removeprefix("http://").partition(":")
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    return Line(sock)


async def test_edge_without_descriptors_serves_who_waits_and_recovers_by_itself(
    tmp_path: Path,
) -> None:
    origin_flags = ["origin", *PORTS, "--data-dir", str(tmp_path)]
    async with await asyncio.to_thread(Service.start, origin_flags) as origin, session() as client:
        admin_port = _free_port()
        edge_flags = ["edge", *PORTS, "--admin-port", str(admin_port), "--upstream", origin.url]
        admin = Server(f"http://127.0.0.1:{admin_port}", client)

        async def all_wait() -> None:
            """Return once they are parked, and what reads for them has its connections."""
            async with asyncio.timeout(20):
                while (await metrics(admin)).get(LIVE) != WAITING:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        async with await asyncio.to_thread(Service.start, edge_flags) as edge:
            stream = Server(origin.url, client).stream("s")
            tail = (await stream.put()).next
            waiting = [await connect(edge.url) for _ in range(WAITING)]
            for line in waiting:
                await line.ask(f"s?offset={tail}&live=long-poll")
            # Two rounds: what was opened on the way is open after the first.
            for turn in range(2):
                await all_wait()
                _, hard = resource.prlimit(edge.pid, resource.RLIMIT_NOFILE)
                limit = max(descriptors(edge.pid)) + 1
                resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (limit, hard))
                coming = [await connect(edge.url) for _ in range(COMING)]
                for line in coming:
                    await line.send(asking("s?offset=-1"))
                told = edge.stderr().count("cannot accept")
                await until(lambda told=told: edge.stderr().count("cannot accept") > told)  # type: ignore[misc]
                tail = (await stream.post(b"<%d>" % turn)).next
                for line in waiting:
                    assert (await line.reply()).body == b"<%d>" % turn
                resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (hard, hard))
                for line in waiting:
                    await line.ask(f"s?offset={tail}&live=long-poll")
                for line in coming:
                    assert (await line.reply()).status == 200
                    line.close()
            await stream.close()
            for line in waiting:
                assert (await line.reply()).status == 204
                line.close()
