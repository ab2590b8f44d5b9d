"""Small writes on few connections: every one gets its own reply, once, or an honest error."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from edge import lines
from edge.lines import Lines
from edge.upstream import OutcomeUnknown
from shared.protocol.errors import Unavailable
from tests.edge.following import until

Said = bytes | Exception


def request(name: str, size: int = 0) -> bytes:
    return f"POST /{name} HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size)


def reply_to(name: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name)


NO_CONTENT = b"HTTP/1.1 204 No Content\r\nStream-Next-Offset: 1\r\n\r\n"


class Upstream:
    """A real server whose replies are the test's."""

    def __init__(self) -> None:
        self.connections = 0
        self.reads = 0
        self.names: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.answer: Callable[[bytes], bytes] = reply_to
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        received = b""
        while data := await reader.read(1 << 20):
            self.reads += 1
            received += data
            while (end := received.find(b"\r\n\r\n")) >= 0:
                head = received[:end]
                size = int(head.partition(b"Content-Length: ")[2])
                if len(received) < end + 4 + size:
                    break
                received = received[end + 4 + size :]
                self.names.append(head.split(b" ")[1][1:])
                await self.gate.wait()
                writer.write(self.answer(self.names[-1]))
        writer.close()


@dataclass(frozen=True, slots=True)
class Peer:
    host: str
    port: int
    is_headwater: bool = True

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> object:
        return await asyncio.get_running_loop().create_connection(factory, self.host, self.port)


@asynccontextmanager
async def pair(timeout_s: float = 5.0) -> AsyncIterator[tuple[Upstream, Lines]]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]

    made = Lines(Peer(host, port), timeout_s)
    try:
        yield upstream, made
    finally:
        made.close()
        server.close()
        for writer in upstream.writers:
            writer.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)


async def test_each_request_gets_its_own_reply_on_few_connections_in_few_writes() -> None:
    said: dict[int, list[Said]] = {number: [] for number in range(500)}
    async with pair() as (upstream, made):
        for number, answers in said.items():
            made.send(request(str(number), number % 50), number, answers.append)
        await until(lambda: all(said.values()))
        assert upstream.connections <= lines._LINES
        assert upstream.reads < 20
    assert said == {number: [reply_to(str(number).encode())] for number in said}


async def test_replies_in_pieces_and_without_a_body_are_told_apart() -> None:
    said: list[Said] = []
    async with pair() as (upstream, made):
        upstream.gate.clear()
        for number in range(3):
            made.send(request(str(number)), 0, said.append)
        await until(lambda: upstream.names)
        writer = upstream.writers[0]
        for at in range(len(NO_CONTENT)):
            writer.write(NO_CONTENT[at : at + 1])
            await asyncio.sleep(0)
        await until(lambda: said)
        assert said == [NO_CONTENT]


async def test_upstream_that_breaks_off_leaves_every_outcome_unknown_and_is_connected_anew() -> (
    None
):
    said: list[Said] = []
    async with pair() as (upstream, made):
        upstream.gate.clear()
        for number in range(10):
            made.send(request(str(number)), 0, said.append)
        await until(lambda: upstream.names)
        for writer in upstream.writers:
            writer.transport.abort()
        await until(lambda: len(said) == 10)
        assert all(isinstance(one, OutcomeUnknown) for one in said)
        upstream.gate.set()
        made.send(request("again"), 0, said.append)
        await until(lambda: len(said) == 11)
        assert said[-1] == reply_to(b"again")


async def test_what_follows_a_last_reply_was_not_looked_at_and_may_be_sent_again() -> None:
    said: list[Said] = []
    last = NO_CONTENT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nServer: headwater\r\n\r\n")
    async with pair() as (upstream, made):
        upstream.answer = lambda name: last if name == b"1" else reply_to(name)
        for number in range(4):
            made.send(request(str(number)), 0, said.append)
        await until(lambda: len(said) == 4)
        # It is of the line that it was the last, and not of any client's connection.
        assert said[:2] == [reply_to(b"0"), last.replace(b"Connection: close\r\n", b"")]
        for error in said[2:]:
            assert isinstance(error, Unavailable)
            assert not isinstance(error, OutcomeUnknown)
        made.send(request("again"), 0, said.append)
        await until(lambda: len(said) == 5)
        assert said[4] == reply_to(b"again")


async def test_what_was_not_sent_yet_is_in_no_doubt() -> None:
    said: list[Said] = []
    async with pair() as (upstream, made):
        upstream.gate.clear()
        made.send(request("a"), 0, said.append)
        await until(lambda: upstream.names)
        made.send(request("b"), 0, said.append)
        made.close()
    assert [type(error) for error in said] == [OutcomeUnknown, Unavailable]
    assert upstream.names == [b"a"]


async def test_requests_of_one_sender_are_on_one_line() -> None:
    async with pair() as (upstream, made):
        said: list[Said] = []
        for number in range(100):
            made.send(request(str(number), 60_000 * (number % 2)), 7, said.append)
        await until(lambda: len(said) == 100)
        assert upstream.connections == 1
        assert upstream.names == [b"%d" % number for number in range(100)]


async def test_nobody_there_is_told_at_once_and_was_sent_nothing() -> None:
    said: list[Said] = []

    class Nobody(Peer):
        async def connect(self, factory: Callable[[], asyncio.Protocol]) -> object:
            raise ConnectionRefusedError("nobody there")

    made = Lines(Nobody("", 0), 5.0)
    for _ in range(3):
        made.send(request("a"), 0, said.append)
        await until(lambda: said)
        (error,) = said
        assert isinstance(error, Unavailable)
        assert not isinstance(error, OutcomeUnknown)
        assert "nobody there" in str(error)
        said.clear()
    made.close()


async def test_answer_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Said] = []
    async with pair(timeout_s=0.0) as (upstream, made):
        monkeypatch.setattr(made, "_timeout_s", 5.0)
        upstream.gate.clear()
        made.send(request("a"), 0, said.append)
        await until(lambda: upstream.names)
        made.expire()
        assert said == []
        monkeypatch.setattr(made, "_timeout_s", 0.0)
        made.expire()
        assert isinstance(said[0], OutcomeUnknown)


async def test_idle_line_is_closed_and_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Said] = []
    async with pair() as (upstream, made):
        made.send(request("a"), 0, said.append)
        await until(lambda: said)
        monkeypatch.setattr(lines, "IDLE_S", -1.0)
        made.expire()
        await asyncio.sleep(0)
        made.send(request("b"), 0, said.append)
        await until(lambda: len(said) == 2)
        assert said == [reply_to(b"a"), reply_to(b"b")]
        assert upstream.connections == 2


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"x" * 20_000,
    ],
    ids=["other protocol", "chunked", "too long", "interim", "endless head"],
)
async def test_reply_that_makes_no_sense_ends_the_line(nonsense: bytes) -> None:
    said: list[Said] = []
    async with pair() as (upstream, made):
        upstream.answer = lambda name: nonsense
        made.send(request("a"), 0, said.append)
        await until(lambda: said)
        assert isinstance(said[0], OutcomeUnknown)
        assert not made.usable


async def test_reply_to_nothing_ends_the_line() -> None:
    said: list[Said] = []
    async with pair() as (upstream, made):
        upstream.answer = lambda name: reply_to(name) * 2
        made.send(request("a"), 0, said.append)
        await until(lambda: said)
        assert said == [reply_to(b"a")]
        assert made.usable
        upstream.answer = reply_to
        made.send(request("b"), 0, said.append)
        await until(lambda: len(said) == 2)
        assert said[1] == reply_to(b"b")


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Said] = []
    async with pair() as (upstream, made):
        upstream.gate.clear()
        monkeypatch.setattr(lines, "_BYTES_MAX", 10_000)
        taken = 10_000 // len(request("a", 1000))
        for _ in range(taken):
            made.send(request("a", 1000), 0, said.append)
        with pytest.raises(Unavailable, match="too many writes"):
            made.send(request("a", 1000), 0, said.append)
        upstream.gate.set()
        await until(lambda: len(said) == taken)


async def test_stop_tells_everyone_who_waits() -> None:
    said: list[Said] = []
    async with pair() as (upstream, made):
        upstream.gate.clear()
        made.send(request("a"), 0, said.append)
        await until(lambda: upstream.names)
    assert isinstance(said[0], OutcomeUnknown)
