"""Small appends that the lane passes on: each has its effect once, and every client its own
reply."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge import lane as lane_module
from edge import seats, writes
from edge.app import open_edge
from edge.lane import Lane
from edge.replies import Replies
from origin.memory import MemoryJournal
from shared.config import Settings
from shared.sockets import listen_tcp
from tests.edge.served import PREFIX, Line, Served, asking, run, served, until

PRODUCER = ("Producer-Id: p", "Producer-Epoch: 0", "Producer-Seq: 0")
LITTLE = 4096  # what the kernel of a slow client holds, more or less


def append(path: str, body: bytes, *fields: str) -> bytes:
    return asking(path, *fields, method="POST", body=body)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Commits wait while it is not set."""
    gate = threading.Event()
    gate.set()
    commit = MemoryJournal.append

    def wait(journal: MemoryJournal, lsn: int, frame: Sequence[bytes]) -> None:
        gate.wait(20)
        commit(journal, lsn, frame)

    monkeypatch.setattr(MemoryJournal, "append", wait)
    return gate


async def writing(lane: Lane, count: int) -> list[int]:
    """Return the connections with appends under way, once there are so many."""
    await until(lambda: len(lane._writes) == count)
    return list(lane._writes._queues)


async def whole(here: Served, path: str) -> bytes:
    line = await here.connect()
    await line.ask(f"{path}?offset=-1")
    body = (await line.reply()).body
    line.close()
    return body


def test_appends_and_reads_take_turns_on_a_connection_that_stays_in_the_lane() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            for turn in range(3):
                await line.send(append("s", b"<%d>" % turn))
                written = await line.reply()
                assert written.status == 204
                await line.ask(f"s?offset={tail}")
                assert (await line.reply()).body.endswith(b"<%d>" % turn)
                await line.ask(f"s?offset={written.next}&live=long-poll")
                await until(lambda: here.lane._parked.polls)
                await line.send(append("s", b"own"))  # waits behind the long-poll
                await here.append("s", b"news")
                assert (await line.reply()).body == b"news"
                assert (await line.reply()).status == 204
            assert here.edge.handlers.listener.connections == 0
            assert await whole(here, "s") == b"<0>newsown<1>newsown<2>newsown"
            line.close()

    run(story)


def test_who_leaves_is_not_answered_and_his_append_is_there(disk: threading.Event) -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s", b"0")
            disk.clear()
            leaving = await here.connect()
            await leaving.send(append("s", b"1") + append("s", b"2"))
            (left,) = await writing(here.lane, 1)
            # Whoever comes next gets the lowest descriptor that is free: that is to be the same.
            line = Line(socket.socket())
            line.sock.setblocking(False)
            fillers = [os.open(os.devnull, os.O_RDONLY)]
            while fillers[-1] < left:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
            leaving.reset()
            fillers.append(os.open(os.devnull, os.O_RDONLY))
            await until(lambda: here.lane._seats.state[left] == seats.FREE)
            address = ("127.0.0.1", here.lane_port)
            await asyncio.get_running_loop().sock_connect(line.sock, address)
            await line.send(append("s", b"3", *PRODUCER))
            assert await writing(here.lane, 1) == [left]
            disk.set()
            assert (await line.reply()).status == 200
            await line.ask("s?offset=-1")
            assert (await line.reply()).body == b"0123"
            line.close()
            for filler in fillers:
                os.close(filler)
            await until(lambda: here.lane.connections == 0)
            assert (len(here.lane._writes), here.lane._writes._ready) == (0, {})

    run(story)


def test_pipelined_appends_are_under_way_together_and_answered_in_order(
    disk: threading.Event,
) -> None:
    count = 300

    async def story() -> None:
        async with served() as here:
            await here.create("s")
            disk.clear()
            line = await here.connect()
            sent = b"".join(append("s", b"<%d>" % number) for number in range(count))
            await line.send(
                sent + asking("s?offset=-1") + append("s", b"last", "Connection: close")
            )
            (fd,) = await writing(here.lane, 1)
            await until(lambda: len(here.lane._writes._queues[fd]) == count)
            disk.set()
            replies = [await line.reply() for _ in range(count)]
            assert {reply.status for reply in replies} == {204}
            assert [r.next for r in replies] == sorted({r.next for r in replies})
            assert (await line.reply()).body == b"".join(b"<%d>" % n for n in range(count))
            last = await line.reply()
            assert (last.status, last.header("connection")) == (204, "close")
            await line.ended()
            line.close()

    run(story)


def test_refusals_keep_their_place_and_the_rest_goes_on() -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s")
            line = await here.connect()
            asked = [append("s", b"a"), append("nobody", b"b"), append("s", b""), append("s", b"c")]
            await line.send(b"".join(asked).replace(b"\r\n\r\n\r\n", b"\r\n\r\n"))
            # What has no length is none of ours: it, and what follows, is aiohttp's.
            assert [(await line.reply()).status for _ in asked] == [204, 404, 400, 204]
            assert await whole(here, "s") == b"ac"
            line.close()

    run(story)


def test_client_that_takes_no_replies_is_not_given_ever_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 3000
    most = 0

    async def story() -> None:
        nonlocal most
        async with served() as here:
            await here.create("s")
            lane, pass_back = here.lane, Replies.passed_back

            def watch(to: Replies, fd: int, replies: bytes, **how: bool) -> None:
                nonlocal most
                pass_back(to, fd, replies, **how)
                waiting = len(lane._received.get(fd, b""))
                rest = lane._outbox._rests.get(fd)
                most = max(most, waiting + (rest.size if rest else 0))

            monkeypatch.setattr(Replies, "passed_back", watch)
            line = await here.connect(receive_bytes=LITTLE)
            sending = asyncio.create_task(line.send(append("s", b"x") * count))
            await until(lambda: len(here.lane._outbox) == 1)
            for _ in range(count):
                assert (await line.reply()).status == 204
            await sending
            assert await whole(here, "s") == b"x" * count
            line.close()
        # Replies to all that may be under way, and some requests; 2 MB would be all replies.
        assert 10_000 < most < writes._UNDER_WAY_MAX * 700 + 20_000

    run(story)


def test_appends_under_way_are_answered_before_the_end(disk: threading.Event) -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s")
            disk.clear()
            lines = [await here.connect() for _ in range(5)]
            for line in lines:
                await line.send(append("s", b"x") * 2)
            await writing(here.lane, 5)
            here.lane.release(0.1)
            draining = asyncio.create_task(here.lane.drain(10.0))
            await asyncio.sleep(0.6)  # sweeps come by
            assert not draining.done()
            disk.set()
            for line in lines:
                first, second = await line.reply(), await line.reply()
                assert (first.status, first.header("connection")) == (204, None)
                assert (second.status, second.header("connection")) == (204, "close")
                await line.ended()
                line.close()
            await draining

    run(story)


# --- bodies that come late -----------------------------------------------------------------------


def test_body_in_pieces_is_waited_for_in_the_lane() -> None:
    body = bytes(range(256)) * 256
    request = append("s", body)

    async def story() -> None:
        async with served() as here:
            await here.create("s")
            line = await here.connect()
            for at in range(0, len(request), 9000):
                await line.send(request[at : at + 9000])
                await asyncio.sleep(0.002)
            assert (await line.reply()).status == 204
            assert here.edge.handlers.listener.connections == 0
            assert here.lane._uploading == set()
            assert await whole(here, "s") == body
            line.close()

    run(story)


def test_bodies_that_wait_are_bounded_and_late_ones_are_left_to_aiohttp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane_module, "_UPLOADS_MAX", 2)
    request = append("s", bytes(1000))

    async def story() -> None:
        async with served(header_timeout_s=0.3) as here:
            await here.create("s")
            listener = here.edge.handlers.listener
            lines = [await here.connect() for _ in range(5)]
            for line in lines:
                await line.send(request[:-1])
            await until(lambda: listener.connections == 3)
            assert len(here.lane._uploading) == 2
            # The time of a head is not that of a body: those two are not refused, but handed over.
            await until(lambda: listener.connections == 5)
            assert here.lane._uploading == set()
            for line in lines:
                await line.send(request[-1:])
                assert (await line.reply()).status == 204
                line.close()
            assert await whole(here, "s") == bytes(5000)

    run(story)


# --- an upstream that fails ----------------------------------------------------------------------


class Scripted:
    """A server that says what a test likes, and keeps what it was sent."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.answer = answer
        self.received = b""
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while data := await reader.read(65536):
            self.received += data
            said = self.answer(data)
            if said is None:
                break
            writer.write(said)
        writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def before(
    answer: Callable[[bytes], bytes | None], **changes: Any
) -> AsyncIterator[tuple[Scripted, Line]]:
    """Serve an edge before a scripted server on TCP, and connect to it."""
    script = Scripted(answer)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = replace(Settings(), upstream=url, **changes)
    async with open_edge(settings, None) as edge:
        sock = listen_tcp("127.0.0.1", 0)
        edge.lane.listen(sock)
        reader = Line(await connected(sock.getsockname()[1]))
        try:
            yield script, reader
        finally:
            reader.close()
            await edge.handlers.listener.drain(0)
    script.close()
    server.close()
    await asyncio.sleep(0.01)


async def connected(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


OURS = b"HTTP/1.1 204 No Content\r\nServer: headwater\r\nDate: x\r\n\r\n"


def test_what_the_upstream_gets_is_rendered_anew_and_its_reply_comes_back_as_it_is() -> None:
    head = (
        f"POST {PREFIX}s?a=b HTTP/1.1\r\nHOST:h\r\nConnection: close\r\nCookie:  a=b \r\n"
        "Authorization: Bearer x\r\nX-Forwarded-Proto: HTTPS\r\nForwarded: for=y\r\n"
        "content-type: a/b\r\nContent-Length: 3\r\n\r\n"
    )

    async def story() -> None:
        async with before(lambda data: OURS) as (script, line):
            script.received = b""
            await line.send(head.encode() + b"abc")
            reply = await line.reply()
            assert (reply.status, reply.headers) == (
                204,
                (("connection", "close"), ("server", "headwater")),
            )
            await line.ended()
        assert (
            script.received
            == (
                f"POST {PREFIX}s?a=b HTTP/1.1\r\nhost: h\r\ncookie: a=b\r\n"
                "authorization: Bearer x\r\nforwarded: for=y\r\ncontent-type: a/b\r\n"
                "content-length: 3\r\nx-forwarded-proto: https\r\n\r\nabc"
            ).encode()
        )

    run(story)


@pytest.mark.parametrize(
    "fields", [b"Server: other", b"Server: headwater\r\nVia: 1.1 proxy"], ids=["foreign", "between"]
)
def test_other_servers_are_asked_by_http_client_alone(fields: bytes) -> None:
    """Pipelining is not for them: each request has a connection to itself."""
    seen: list[bytes] = []

    def answer(data: bytes) -> bytes:
        seen.append(data)
        return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\nContent-Length: 0\r\n\r\n"

    async def story() -> None:
        async with before(answer) as (_, line):
            await line.send(append("s", b"x") * 3)
            assert [(await line.reply()).status for _ in range(3)] == [200] * 3
        posts = [data for data in seen if data.startswith(b"POST")]
        assert [data.count(b"POST") for data in posts] == [1, 1, 1]

    run(story)


def test_upstream_that_breaks_off_leaves_the_outcome_unknown() -> None:
    def answer(data: bytes) -> bytes | None:
        return None if data.startswith(b"POST") else OURS

    async def story() -> None:
        async with before(answer) as (script, line):
            for _ in range(2):  # the connection stays
                await line.send(append("s", b"x"))
                reply = await line.reply()
                assert (reply.status, reply.header("retry-after")) == (502, None)
                assert orjson.loads(reply.body)["error"]["code"] == "outcome_unknown"
            assert script.received.count(b"POST") == 2

    run(story)


def test_upstream_that_is_not_there_is_told_and_asked_again() -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s")
            upstream = here.lane._lines._upstream
            there = upstream._socket  # type: ignore[attr-defined]
            upstream._socket = Path("/nonexistent/socket")  # type: ignore[attr-defined]
            for line in here.lane._lines._lines:
                line.fail("the test has it so")
            asking_ = await here.connect()
            for _ in range(2):
                await asking_.send(append("s", b"lost"))
                reply = await asking_.reply()
                assert (reply.status, reply.header("retry-after")) == (503, "1")
            upstream._socket = there  # type: ignore[attr-defined]
            await asking_.send(append("s", b"kept"))
            assert (await asking_.reply()).status == 204
            assert await whole(here, "s") == b"kept"
            asking_.close()

    run(story)


CHUNKED = OURS.replace(b"Date: x", b"Transfer-Encoding: chunked").replace(b"204", b"200")
CHUNKED += b"0\r\n\r\n"


def test_reply_that_makes_no_sense_ends_the_use_of_lines() -> None:
    def answer(data: bytes) -> bytes:
        if data.startswith(b"POST"):
            return CHUNKED
        return OURS

    async def story() -> None:
        async with before(answer) as (_, line):
            statuses = []
            for _ in range(3):
                await line.send(append("s", b"x"))
                statuses.append((await line.reply()).status)
            assert statuses == [502, 200, 200]  # aiohttp understands it

    run(story)
