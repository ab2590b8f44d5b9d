"""Connections that come from somebody else, and go back."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import uvloop
from aiohttp import web
from prometheus_client import REGISTRY

from shared.connection import GivenBack
from shared.web import Bodies, Listener

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback"
WAIT_S = 20.0

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])

NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Half:
    """A server of two halves: one that reads bytes itself, and aiohttp, which gives back."""

    def __init__(self) -> None:
        self.listener = Listener(self.handle)
        self.given: dict[str, socket.socket] = {}
        self.seen: list[str] = []
        self.held = asyncio.Event()
        self.bodies = Bodies(1024)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(request.path)
        if request.path.startswith("/back/"):
            sock = self.listener.give_back(request)
            if sock is not None:
                self.given[request.path] = sock
                raise GivenBack
            return web.Response(text="stays")
        if request.path == "/held":
            await self.held.wait()
            kept = self.listener.give_back(request)
            assert kept is None
        body = await self.bodies.read(request)
        self.bodies.release(body)
        return web.Response(body=f"{request.path}:".encode() + body)

    @property
    def connections(self) -> int:
        return len(self.listener._connections().connections)


def pair(family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection."""
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            theirs = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
    for end in (ours, theirs):
        end.setblocking(False)
    return ours, theirs


async def received(sock: socket.socket, size: int) -> bytes:
    """Read exactly size bytes."""
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        assert piece, data
        data += piece
    return data


async def reply(sock: socket.socket) -> bytes:
    """Read one reply; return its body."""
    data = b""
    async with asyncio.timeout(WAIT_S):
        while b"\r\n\r\n" not in data:
            piece = await asyncio.get_running_loop().sock_recv(sock, 65536)
            assert piece, data
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return body + await received(sock, length - len(body))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110  # the loop's own work makes it so
            await asyncio.sleep(0.005)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def run(new_loop: NewLoop, story: Callable[[Half], Any]) -> None:
    """Run a story in a loop whose complaints are failures."""
    complaints: list[dict[str, Any]] = []

    async def told() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        half = Half()
        await story(half)
        await half.listener.drain(0)
        gc.collect()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(told())
    gc.collect()
    assert complaints == []


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@LOOPS
@FAMILIES
def test_connections_go_to_and_fro_and_leave_nothing_behind(
    new_loop: NewLoop, family: socket.AddressFamily, caplog: pytest.LogCaptureFixture
) -> None:
    def seen(half: Half, path: str) -> bool:
        return path in half.seen

    async def one(half: Half, name: str) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = pair(family)
        for turn in range(3):
            path = f"/back/{name}/{turn}"
            request = get(path)
            cut = (sum(name.encode()) * 7 + turn) % (len(request) + 1)
            # Some bytes are here before, some come while it is handed over, some after.
            await half.listener.take(ours, request[:cut])
            await loop.sock_sendall(theirs, request[cut:])
            await until(partial(seen, half, path))
            if path not in half.given:
                # Its end came in two pieces: aiohttp keeps it, and has answered.
                assert await reply(theirs) == b"stays"
                path += "/again"
                await loop.sock_sendall(theirs, get(path))
                await until(partial(seen, half, path))
            ours = half.given.pop(path)
            # What comes now waits for whoever reads next.
            await loop.sock_sendall(theirs, b"next")
            await loop.sock_sendall(ours, ANSWER)
            assert await reply(theirs) == b"back"
            assert await received(ours, 4) == b"next"
        ours.close()
        assert await loop.sock_recv(theirs, 1) == b""
        theirs.close()

    async def story(half: Half) -> None:
        await asyncio.gather(*(one(half, f"first-{number}") for number in range(20)))
        await until(lambda: half.connections == 0)
        before = descriptors()
        for again in range(10):
            await asyncio.gather(*(one(half, f"{again}-{number}") for number in range(20)))
        await until(lambda: half.connections == 0)
        assert descriptors() == before
        assert half.listener.active == 0
        assert len(half.seen) >= 220 * 3

    with caplog.at_level(logging.WARNING):
        run(new_loop, story)
    assert caplog.records == []


@LOOPS
@FAMILIES
def test_bytes_that_came_before_are_read_first_and_whole(
    new_loop: NewLoop, family: socket.AddressFamily
) -> None:
    body = bytes(range(256)) * 4
    head = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    request = head + body

    async def one(half: Half, cut: int) -> None:
        ours, theirs = pair(family)
        # The rest is in the socket already: it must not overtake.
        await asyncio.get_running_loop().sock_sendall(theirs, request[cut:])
        await half.listener.take(ours, request[:cut])
        assert await reply(theirs) == b"/p:" + body
        theirs.close()

    async def story(half: Half) -> None:
        for cut in (0, 1, 5, len(head) - 1, len(head), len(head) + 1, len(request) - 1):
            await one(half, cut)
        await until(lambda: half.connections == 0)

    run(new_loop, story)


@LOOPS
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET /back/1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", id="http-1.0"),
        pytest.param(b"GET /back/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", id="close"),
        pytest.param(b"GET /back/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", id="body"),
        pytest.param(
            b"GET /back/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
            id="body-that-looks-like-the-end-of-a-head",
        ),
        pytest.param(
            b"GET /back/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="empty-chunked-body",
        ),
        pytest.param(get("/back/1") + b"GE", id="part-of-the-next"),
        pytest.param(get("/back/1") + get("/back/2")[:-1], id="nearly-all-of-the-next"),
        pytest.param(get("/back/1") + get("/other"), id="the-next"),
        pytest.param(
            b"GET /back/1 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            id="upgrade",
        ),
    ],
)
def test_connection_that_is_not_whole_stays(new_loop: NewLoop, sent: bytes) -> None:
    async def story(half: Half) -> None:
        ours, theirs = pair(socket.AF_INET)
        await half.listener.take(ours, sent)
        assert (await reply(theirs)).startswith(b"stays")
        assert half.given == {}
        theirs.close()

    run(new_loop, story)


@LOOPS
def test_connection_with_a_next_request_that_came_meanwhile_stays(new_loop: NewLoop) -> None:
    async def story(half: Half) -> None:
        loop = asyncio.get_running_loop()
        for more in (b"G", get("/other"), get("/other")[:-4]):
            ours, theirs = pair(socket.AF_INET)
            half.held.clear()
            half.seen.clear()
            await half.listener.take(ours, get("/held"))
            await until(lambda: "/held" in half.seen)
            await loop.sock_sendall(theirs, more)
            for _ in range(10):
                await asyncio.sleep(0.001)
            half.held.set()
            assert (await reply(theirs)).startswith(b"/held:")
            theirs.close()

    run(new_loop, story)


@LOOPS
def test_connection_whose_last_reply_is_not_sent_to_its_end_stays(new_loop: NewLoop) -> None:
    big = bytes(8 * 2**20)

    async def story(half: Half) -> None:
        seen: list[bool] = []

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if request.path == "/big":
                return web.Response(body=big)
            transport = request.transport
            assert transport is not None
            seen.append(transport.get_write_buffer_size() > 0)
            assert half.listener.give_back(request) is None
            return web.Response(text="stays")

        half.listener.handler = handle
        ours, theirs = pair(socket.AF_INET)
        # Buffers above the reply's size: aiohttp goes on to the next request before it is sent.
        await half.listener.take(ours, b"")
        (connection,) = half.listener._connections().connections
        assert connection.transport is not None
        connection.transport.set_write_buffer_limits(high=2 * len(big))
        await asyncio.get_running_loop().sock_sendall(theirs, get("/big"))
        transport = connection.transport
        await until(lambda: transport.get_write_buffer_size() > 0)
        await asyncio.get_running_loop().sock_sendall(theirs, get("/back/1"))
        await until(lambda: bool(seen))
        assert seen == [True]
        assert await reply(theirs) == big
        theirs.close()

    run(new_loop, story)


@LOOPS
def test_first_bytes_that_are_too_many_stop_reading(new_loop: NewLoop) -> None:
    async def story(half: Half) -> None:
        ours, theirs = pair(socket.AF_UNIX)
        await half.listener.take(ours, get("/held") * 64)
        loop = asyncio.get_running_loop()
        # Without it, aiohttp would take in whatever comes while the first waits.
        sending = asyncio.ensure_future(loop.sock_sendall(theirs, get("/o") * 2**20))
        await asyncio.wait((sending,), timeout=0.5)
        assert not sending.done()
        sending.cancel()
        await asyncio.wait((sending,))
        half.held.set()
        for _ in range(64):
            pass
        theirs.close()
        await until(lambda: half.connections == 0)

    run(new_loop, story)


async def test_head_that_does_not_end_is_answered_and_counted() -> None:
    def counted() -> float:
        labels = {"method": "other", "status": "408"}
        return REGISTRY.get_sample_value("headwater_requests_total", labels) or 0.0

    half, before = Half(), counted()
    half.listener = Listener(half.handle, 60.0, 0.05)
    ours, theirs = pair(socket.AF_UNIX)
    await half.listener.take(ours, b"GET /half HTTP/1.1\r\n")
    assert b"0.05 s" in await reply(theirs)
    assert counted() == before + 1
    assert half.seen == []
    theirs.close()
    await half.listener.drain(0)
