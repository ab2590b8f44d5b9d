"""What the Unix-socket bus promises beyond the contract: writes at once, bounds, broken peers."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.unix_bus import BUFFER_BYTES_MAX, UnixPublisher, UnixSubscriber
from shared.unix_frames import (
    Frames,
    Kind,
    decode_wake_body,
    encode_frame,
    encode_paths,
    encode_wake_frame,
)
from shared.wake import PAYLOAD_BYTES_MAX, Wake
from tests.contract.buses import (
    DEADLINE_S,
    Edge,
    counted,
    running,
    stream,
    until,
    until_count,
    wake,
)

BIG = wake(payload=b"x" * PAYLOAD_BYTES_MAX)


class RawEdge:
    """An edge on a bare socket: what the kernel holds for it is seen without the event loop."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self._path = str(path)

    async def __aenter__(self) -> "RawEdge":
        await asyncio.get_running_loop().sock_connect(self.socket, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, frame: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, frame)

    async def receive(self) -> bytes:
        """Return what comes next; empty once the origin has hung up."""
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.get_running_loop().sock_recv(self.socket, 1 << 20)

    async def subscribe(self, *paths: str) -> None:
        await self.send(encode_frame(Kind.SUBSCRIBE, encode_paths([*paths])))
        assert await self.receive() == encode_frame(Kind.DONE, encode_paths([*paths]))

    def received(self) -> list[tuple[str, Wake]]:
        """Return the wakes in the receive buffer, now."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        return [decode_wake_body(body) for _, body in Frames().feed(data)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus"


async def test_wake_is_in_the_receive_buffer_when_publish_returns(path: Path) -> None:
    publisher, mine, other = UnixPublisher(path), stream(), stream()
    async with running(publisher), RawEdge(path) as edge:
        await edge.subscribe(mine)
        publisher.publish(mine, wake(0))
        publisher.publish(other, wake(1))
        publisher.publish(mine, wake(2))
        # No await since: the event loop had no turn.
        assert edge.received() == [(mine, wake(0)), (mine, wake(2))]


async def test_unsubscribed_edge_is_sent_nothing(path: Path) -> None:
    publisher, mine = UnixPublisher(path), stream()
    async with running(publisher), RawEdge(path) as edge:
        await edge.subscribe(mine)
        await edge.send(encode_frame(Kind.UNSUBSCRIBE, encode_paths([mine])))
        assert await edge.receive() == encode_frame(Kind.DONE, encode_paths([mine]))
        publisher.publish(mine, wake())
        assert edge.received() == []


async def test_edge_that_does_not_read_is_dropped_and_the_others_go_on(path: Path) -> None:
    publisher, mine, good = UnixPublisher(path), stream(), Edge(UnixSubscriber(path))
    dropped = counted("wakes_dropped", reason="slow")
    async with running(publisher, good), RawEdge(path) as slow:
        await good.bus.subscribe(mine)
        await slow.subscribe(mine)
        sent = 0
        while counted("wakes_dropped", reason="slow") == dropped:
            for _ in range(32):
                publisher.publish(mine, BIG)
            sent += 32
            # Whatever the kernel buffers for it, megabytes at most, comes on top.
            assert sent * PAYLOAD_BYTES_MAX < 2 * BUFFER_BYTES_MAX
            await until_count(good, sent)
        assert sent * PAYLOAD_BYTES_MAX > BUFFER_BYTES_MAX / 2
        while await slow.receive():
            pass  # what was sent before; then the end
        publisher.publish(mine, wake())
        await until(lambda: good.of(mine)[-1] == wake())
        assert good.doubts == [True]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x00?",
        b"\xff\xff\xff\xff+",
        encode_frame(Kind.WAKE, b""),
        encode_frame(Kind.SUBSCRIBE, b"{"),
        encode_frame(Kind.SUBSCRIBE, b"[1]"),
        encode_frame(Kind.SUBSCRIBE, b'{"a":1}'),
    ],
    ids=["http", "kind", "length", "not for origins", "no json", "no strings", "no array"],
)
async def test_stranger_is_disconnected_by_the_origin(path: Path, garbage: bytes) -> None:
    publisher, good, mine = UnixPublisher(path), Edge(UnixSubscriber(path)), stream()
    async with running(publisher, good), RawEdge(path) as stranger:
        await good.bus.subscribe(mine)
        await stranger.send(garbage)
        assert await stranger.receive() == b""
        publisher.publish(mine, wake())
        await until(lambda: good.wakes)


async def test_socket_that_a_killed_origin_left_is_replaced(path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    publisher, edge, mine = UnixPublisher(path), Edge(UnixSubscriber(path)), stream()
    async with running(publisher, edge):
        assert await edge.bus.subscribe(mine)
    assert not await asyncio.to_thread(path.exists)


async def test_socket_belongs_to_its_owner_alone(path: Path) -> None:
    async with running(UnixPublisher(path)):
        found = await asyncio.to_thread(path.stat)
        assert found.st_mode & 0o777 == 0o600


async def test_origin_that_dies_is_doubted_at_once_and_all_is_asked_again(path: Path) -> None:
    edge, paths = Edge(UnixSubscriber(path)), [stream() for _ in range(2500)]
    async with running(edge):
        first = UnixPublisher(path)
        async with running(first):
            await until(lambda: edge.bus.up)
            assert all(await asyncio.gather(*map(edge.bus.subscribe, paths)))
            assert edge.doubts == [True]
        await until(lambda: not edge.bus.up)
        assert edge.doubts == [True, False]
        assert await edge.bus.subscribe(paths[0]) is False
        second = UnixPublisher(path)
        async with running(second):
            await until(lambda: edge.bus.up)
            # Told once, when every stream is there again.
            assert edge.doubts == [True, False, True]
            for one in paths:
                second.publish(one, wake())
            await until(lambda: len(edge.wakes) == len(paths))


class RawOrigin:
    """An origin that sends what it is told to, to every edge that connects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._on_edge, self.path)
        try:
            yield
        finally:
            server.close()
            for writer in self.writers:
                writer.close()

    async def _on_edge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while data := await reader.read(1 << 20):
            for _, body in Frames().feed(data):
                writer.write(encode_frame(Kind.DONE, body))


async def test_foreign_wakes_are_counted_and_ignored(path: Path) -> None:
    origin, edge, mine = RawOrigin(path), Edge(UnixSubscriber(path)), stream()
    async with origin.listening(), running(edge):
        assert await edge.bus.subscribe(mine)
        foreign = counted("wakes_received", outcome="foreign")
        good = encode_wake_frame(mine, wake())
        for body in (b"", b"\xff\xffHW1", b"\x00\x01\xffHW1 ", b"\x00\x01/{}"):
            origin.writers[0].write(encode_frame(Kind.WAKE, body))
        origin.writers[0].write(good[: len(good) // 2])
        await until(lambda: counted("wakes_received", outcome="foreign") == foreign + 4)
        assert edge.wakes == []
        origin.writers[0].write(good[len(good) // 2 :])
        await until(lambda: edge.wakes)
        assert edge.wakes == [(mine, wake())]
        assert edge.doubts == [True]


async def test_origin_that_talks_nonsense_is_left_and_tried_again(path: Path) -> None:
    origin, edge = RawOrigin(path), Edge(UnixSubscriber(path))
    async with origin.listening(), running(edge):
        await until(lambda: origin.writers)
        origin.writers[0].write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await until(lambda: len(origin.writers) == 2 and edge.bus.up)
        assert edge.doubts == [True, False, True]


async def test_edge_whose_own_handler_fails_doubts_and_goes_on(path: Path) -> None:
    publisher, bus, mine = UnixPublisher(path), UnixSubscriber(path), stream()
    doubts: list[bool] = []
    heard: list[Wake] = []

    def fail_once(_: str, one: Wake) -> None:
        if not heard:
            heard.append(one)
            raise KeyError("a fault of ours")
        heard.append(one)

    async with running(publisher):
        await bus.start(fail_once, lambda: doubts.append(bus.up))
        await bus.subscribe(mine)
        publisher.publish(mine, wake(0))
        await until(lambda: doubts == [True, False, True])
        publisher.publish(mine, wake(1))
        await until(lambda: heard == [wake(0), wake(1)])
        await bus.close()
