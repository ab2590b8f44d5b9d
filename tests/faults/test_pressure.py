"""A disk that is slow: what waits for it is bounded, in order, and taken once."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from origin import commit
from origin.app import open_origin
from shared.config import Settings
from shared.sockets import listen_tcp
from tests.fakes import Disk, FailingJournal, failing_disk
from tests.faults.ledger import session
from tests.faults.test_full import serving
from tests.http.api import Server

QUEUE_BYTES = 300_000
LARGE = 70_000  # more than the lane takes


class Gate:
    """Holds commits back while it is shut, and counts them."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()  # by a commit since it was shut
        self.commits = 0

    def shut(self) -> None:
        self._open.clear()
        self.reached.clear()

    def open(self) -> None:
        self._open.set()

    def pass_(self) -> None:
        self.reached.set()
        assert self._open.wait(30)
        self.commits += 1


@asynccontextmanager
async def behind_a_gate(tmp_path: Path) -> AsyncIterator[tuple[Server, Gate, int]]:
    """Yield an origin whose commits can be held back, and its port."""
    journal, gate = FailingJournal(), Gate()
    journal.before_append = gate.pass_
    stopped: list[BaseException] = []
    settings = Settings(data_dir=tmp_path, registry=False)
    async with open_origin(settings, journal, [], on_failure=stopped.append) as origin:
        sock = listen_tcp("127.0.0.1", 0)
        port = sock.getsockname()[1]
        await origin.lane.listen(sock)
        async with session() as client:
            try:
                yield Server(f"http://127.0.0.1:{port}", client), gate, port
            finally:
                gate.open()
        await asyncio.gather(origin.lane.drain(0), origin.listener.drain(0))
    assert stopped == []


async def ask_without_body(port: int, method: str, path: str) -> bytes:
    """Send the head of a request with a large body, and none of that; return the answer's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\n"
        "Content-Length: 5000000\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    return head


async def test_full_queue_refuses_before_the_body_and_keeps_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "_QUEUE_BYTES_MAX", QUEUE_BYTES)
    async with behind_a_gate(tmp_path) as (server, gate, port):
        stream = server.stream("s")
        assert (await stream.put()).status == 201

        async def send(number: int) -> int:
            return (await stream.post(b"%03d" % number + b"." * (LARGE - 3))).status

        gate.shut()
        flying = asyncio.create_task(send(0))
        await asyncio.to_thread(gate.reached.wait, 30)
        # The queue takes what first goes over its bound, and no more.
        sent = 2 + QUEUE_BYTES // LARGE
        tasks = [asyncio.create_task(send(number)) for number in range(1, sent + 1)]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [503]
        refused = 1 + tasks.index(done.pop())
        for method, path in (("POST", stream.target), ("PUT", server.stream("new").target)):
            head = await ask_without_body(port, method, path)
            assert head.startswith(b"HTTP/1.1 503 "), head
            assert b"\r\nretry-after: 1\r\n" in head.lower()
        assert (await stream.head()).status == 200
        gate.open()
        assert await asyncio.gather(flying, *waiting) == [204] * sent
        assert (await server.stream("new").put()).status == 201
        kept = (await stream.at("-1")).body
        assert len(kept) == sent * LARGE
        found = Counter(kept[at : at + 3] for at in range(0, len(kept), LARGE))
        assert found == Counter(b"%03d" % n for n in range(sent + 1) if n != refused)


async def test_producer_that_does_not_wait_is_taken_once_and_in_order(tmp_path: Path) -> None:
    """What is in flight is decided against what is not on disk yet, retries too."""
    async with behind_a_gate(tmp_path) as (server, gate, port):
        stream = server.stream("s")
        assert (await stream.put()).status == 201
        gate.shut()
        before = gate.commits
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        def send(seq: int) -> None:
            writer.write(
                f"POST {stream.target} HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\n"
                f"Producer-Id: p\r\nProducer-Epoch: 0\r\nProducer-Seq: {seq}\r\n"
                f"Content-Length: 3\r\n\r\n<{seq}>".encode()
            )

        send(0)
        await asyncio.to_thread(gate.reached.wait, 30)
        for seq in (0, 1, 2, 1, 3, 3, 5, 4):
            send(seq)
        assert (await stream.head()).headers["Stream-Next-Offset"].endswith("_0000000000000000")
        assert gate.commits == before
        gate.open()
        statuses = []
        for _ in range(9):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            statuses.append(int(head.split()[1]))
            length = next((line for line in head.split(b"\r\n") if b"ontent-Length" in line), b":0")
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()
        assert statuses == [200, 204, 200, 200, 204, 200, 204, 409, 200]
        assert gate.commits - before == 2  # the first one alone, then all that came meanwhile
        assert (await stream.at("-1")).body == b"<0><1><2><3><4>"


@pytest.fixture
def disk() -> Iterator[tuple[Disk, str]]:
    with failing_disk() as made:
        yield made


@pytest.mark.parametrize("size", [100, LARGE])
async def test_append_alone_takes_one_sync(
    tmp_path: Path, disk: tuple[Disk, str], size: int
) -> None:
    counted, vfs = disk
    async with serving(tmp_path, vfs) as here:
        stream = here.server.stream("s")
        assert (await stream.put()).status == 201
        for _ in range(5):
            counted.syncs.clear()
            assert (await stream.post(b"x" * size)).status == 204
            names = [Path(name).name for name in counted.syncs]
            assert [name for name in names if name.startswith("journal")] == ["journal.db-wal"]
