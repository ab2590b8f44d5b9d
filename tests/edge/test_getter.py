"""Whole replies, however they come; and no connection is used again that may have bytes left."""

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from edge import getter
from edge.getter import BrokenReply, Getter, Got

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: x\r\n\r\ndata"
CLOSE = b""  # in place of a piece: the server closes


class Server:
    """Answers each request on a connection with the next reply, a piece at a time."""

    def __init__(self, *replies: bytes | Sequence[bytes]) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Event()  # a client closed its connection
        self.pause_s = 0.0  # between pieces
        self._replies = [[reply] if isinstance(reply, bytes) else reply for reply in replies]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                try:
                    self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                except asyncio.IncompleteReadError:
                    self.left.set()
                    return
                for piece in self._replies.pop(0) if self._replies else ():
                    if piece == CLOSE:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(self.pause_s)
        except ConnectionError:
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def getting(there: Server) -> AsyncIterator[Getter]:
    server = await asyncio.start_server(there.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    loop = asyncio.get_running_loop()
    made = Getter(lambda factory: loop.create_connection(factory, host, port), "there:1", 10.0)
    try:
        yield made
    finally:
        made.close()
        server.close()


async def test_asks_as_it_is_told_and_returns_what_the_reply_says() -> None:
    there = Server(b"HTTP/1.1 200 Fine\r\nX-One:  a \r\nX-ONE: b\r\nContent-Length: 4\r\n\r\ndata")
    async with getting(there) as here:
        got = await here.get("/a%20b?c=d", {"If-None-Match": '"tag"'}, 10.0)
    assert got == Got(200, {"x-one": "a", "content-length": "4"}, b"data")
    assert there.requests == [
        b'GET /a%20b?c=d HTTP/1.1\r\nHost: there:1\r\nIf-None-Match: "tag"\r\n\r\n'
    ]


FRAMES = [
    pytest.param(OK, b"data", True, id="by length"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", True, id="of nothing"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndat\r\n1\r\na\r\n0\r\n\r\n",
        b"data",
        True,
        id="in chunks",
    ),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, id="204"),
    pytest.param(b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n", b"", True, id="304"),
    pytest.param(b"HTTP/1.1 103 Soon\r\nLink: x\r\n\r\n" + OK, b"data", True, id="after another"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndata",
        b"data",
        False,
        id="the last one",
    ),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ndata", b"data", False, id="of long ago"
    ),
]


@pytest.mark.parametrize(("reply", "body", "kept"), FRAMES)
@pytest.mark.parametrize("whole", [True, False], ids=["in one piece", "byte by byte"])
async def test_reply_ends_where_it_says_and_the_next_one_is_another(
    reply: bytes, body: bytes, kept: bool, whole: bool
) -> None:
    pieces = [reply] if whole else [bytes((byte,)) for byte in reply]
    there = Server(pieces, OK.replace(b"data", b"next"))
    async with getting(there) as here:
        assert (await here.get("/", {}, 10.0)).body == body
        assert (await here.get("/", {}, 10.0)).body == b"next"
    assert there.connections == (1 if kept else 2)


async def test_reply_without_a_length_ends_with_its_connection() -> None:
    there = Server([b"HTTP/1.1 200 OK\r\n\r\nda", b"ta", CLOSE], OK)
    async with getting(there) as here:
        assert (await here.get("/", {}, 10.0)).body == b"data"
        assert (await here.get("/", {}, 10.0)).body == b"data"
    assert there.connections == 2


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([OK[:-1], CLOSE], id="shorter than it says"),
        pytest.param([OK[:20], CLOSE], id="half a head"),
        pytest.param([CLOSE], id="nothing"),
        pytest.param(
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndat", CLOSE],
            id="without the last chunk",
        ),
    ],
)
async def test_reply_that_breaks_off_is_an_error_and_is_not_asked_for_again(
    pieces: list[bytes],
) -> None:
    there = Server(pieces, OK)
    async with getting(there) as here:
        with pytest.raises(ConnectionError):
            await here.get("/", {}, 10.0)
    assert len(there.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"220 mail.example ESMTP\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", id="no number"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", id="more than a chunk"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two ends",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, id="endless head"),
        pytest.param(b"HTTP/1.1 099 Odd\r\nContent-Length: 1\r\n\r\nx", id="no status"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", id="upgrade"),
    ],
)
async def test_what_is_no_reply_is_an_error_and_its_connection_is_closed(reply: bytes) -> None:
    there = Server(reply, OK)
    async with getting(there) as here:
        with pytest.raises(BrokenReply):
            await here.get("/", {}, 10.0)
        await there.left.wait()
        assert (await here.get("/", {}, 10.0)).body == b"data"


async def test_body_without_a_length_that_ends_by_a_reset_is_not_whole() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.05)
        reset = struct.pack("ii", 1, 0)  # close() sends a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()

    there = Server()
    there.serve = serve  # type: ignore[method-assign]
    async with getting(there) as here:
        with pytest.raises(ConnectionError):
            await here.get("/", {}, 10.0)


async def test_trailers_are_not_headers() -> None:
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n0\r\nX: y\r\n\r\n"
    there = Server(reply, OK)
    async with getting(there) as here:
        got = await here.get("/", {}, 10.0)
        assert (got.headers, got.body) == ({"transfer-encoding": "chunked"}, b"data")
        await here.get("/", {}, 10.0)
    assert there.connections == 1


async def test_header_of_any_bytes_can_be_sent_back() -> None:
    there = Server(OK.replace(b"ETag: x", b'ETag: "\xe9"'), OK)
    async with getting(there) as here:
        tag = (await here.get("/", {}, 10.0)).headers["etag"]
        await here.get("/", {"If-None-Match": tag}, 10.0)
    assert b'If-None-Match: "\xe9"\r\n' in there.requests[1]


@pytest.mark.parametrize("pieces", [[OK], [OK[:-1]], [OK[:-1], CLOSE], [b"?"]])
async def test_connection_leaves_no_cycle_behind(
    pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the collector may wait for minutes, with half a chunk each."""
    made: list[weakref.ref[object]] = []

    class Watched(getter._Connection):
        def __init__(self) -> None:
            super().__init__()
            made.append(weakref.ref(self))

    monkeypatch.setattr(getter, "_Connection", Watched)
    there = Server(pieces)
    gc.disable()
    try:
        async with getting(there) as here:
            with suppress(OSError, BrokenReply):
                await here.get("/", {}, 0.05)
        await asyncio.sleep(0.05)  # for what the loop still has to tell
        assert [connection() for connection in made] == [None]
    finally:
        gc.enable()


async def test_body_has_a_bound_where_no_length_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getter, "BODY_BYTES_MAX", 1000)
    there = Server([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 400] * 3])
    async with getting(there) as here:
        with pytest.raises(BrokenReply, match="more than 1000 bytes"):
            await here.get("/", {}, 10.0)


async def test_of_a_long_refusal_the_beginning_is_enough() -> None:
    there = Server([b"HTTP/1.1 404 No\r\n\r\n", *[b"x" * 1000] * 100], OK)
    async with getting(there) as here:
        got = await here.get("/", {}, 10.0)
        assert (got.status, got.body) == (404, b"x" * 4096)
        assert (await here.get("/", {}, 10.0)).body == b"data"
    assert there.connections == 2


async def test_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    there = Server(OK, [CLOSE], OK)
    async with getting(there) as here:
        for _ in range(2):
            assert (await here.get("/", {}, 10.0)).body == b"data"
    assert (there.connections, len(there.requests)) == (2, 3)


async def test_connection_on_which_something_comes_unasked_is_not_used_again() -> None:
    there = Server(OK + OK, OK.replace(b"data", b"mine"))
    async with getting(there) as here:
        assert (await here.get("/", {}, 10.0)).body == b"data"
        assert (await here.get("/", {}, 10.0)).body == b"mine"
    assert there.connections == 2


async def test_silence_has_a_bound_and_slowness_has_none() -> None:
    pieces = [OK[at : at + 4] for at in range(0, len(OK), 4)]
    there = Server(pieces, [OK[:-1]])
    there.pause_s = 0.1
    async with getting(there) as here:
        assert (await here.get("/", {}, 1.0)).body == b"data"  # which takes longer in all
        with pytest.raises(TimeoutError):
            await here.get("/", {}, 0.05)
        await there.left.wait()


async def test_who_leaves_takes_the_connection_along() -> None:
    there = Server([OK[:-1]], OK)
    async with getting(there) as here:
        asking = asyncio.create_task(here.get("/", {}, 5.0))
        while not there.requests:  # noqa: ASYNC110  # the server tells of nothing but its requests
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await there.left.wait()
        assert (await here.get("/", {}, 10.0)).body == b"data"


async def test_connection_that_idled_too_long_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = Server(OK, OK)
    async with getting(there) as here:
        await here.get("/", {}, 10.0)
        monkeypatch.setattr(getter, "IDLE_S", -1.0)
        await here.get("/", {}, 10.0)
    assert there.connections == 2


async def test_connections_are_as_many_as_reads_at_once_and_close_when_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(getter, "IDLE_S", 0.1)
    there = Server(*[OK] * 8)
    there.pause_s = 0.01
    async with getting(there) as here:
        for _ in range(2):
            await asyncio.gather(*(here.get("/", {}, 10.0) for _ in range(3)))
        assert there.connections == 3
        await there.left.wait()
        assert (await here.get("/", {}, 10.0)).body == b"data"


async def test_nobody_there_is_an_error() -> None:
    loop = asyncio.get_running_loop()
    here = Getter(lambda factory: loop.create_connection(factory, "127.0.0.1", 1), "x", 10.0)
    with pytest.raises(OSError, match="127"):
        await here.get("/", {}, 10.0)
