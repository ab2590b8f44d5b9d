"""The lane and aiohttp alone give the same replies to whatever comes, byte for byte."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from dataclasses import replace

import pytest

from tests.edge.dialogues import ask
from tests.edge.requests import Dialogue, Generator, Known
from tests.edge.served import PREFIX, Reply, Served, run, served, until

ROUNDS, DIALOGUES = 4, 400
AT_ONCE = 100


async def populate(here: Served) -> list[Known]:
    """Create streams of every kind; return what is known of them."""
    every_byte = bytes(range(256))
    known = []

    async def stream(
        path: str, kind: str, bodies: list[bytes], *, closed: bool = False, **headers: str
    ) -> None:
        offsets = [await here.create(path, b"", Content_Type=kind, **headers)]
        for body in bodies:
            offsets.append(await here.append(path, body, Content_Type=kind))
        if closed:
            await here.write("POST", path, Stream_Closed="true")
        tags = [f'"{offsets[0]}:{offsets[-1]}{end}"' for end in ("", ":c", ":t")]
        tags += [f'"{a}:{b}"' for a, b in itertools.pairwise(offsets)]
        known.append(Known(path, tuple(offsets), tuple(tags)))

    text = "text/plain; charset=x"
    await stream("text", text, [b"one\r\n", b"two\n", b" three"])
    await stream("text/closed", "text/plain", [b"one", b"two"], closed=True)
    await stream("json", "application/json", [b'{"a":1}', b"[1,2]"])
    await stream("json-closed", "application/json", [b'"x"'], closed=True)
    await stream("bytes", "application/octet-stream", [every_byte, every_byte])
    await stream("bytes-closed", "image/png", [every_byte], closed=True)
    await stream("empty", "text/plain", [])
    await stream("empty-closed", "application/json", [], closed=True)
    await stream("expiring", "text/plain", [b"abc"], Stream_TTL="3600")
    await stream("chunks", "text/plain", [b"x" * 700 for _ in range(9)])
    await stream("chunks-closed", "text/plain", [b"y" * 700 for _ in range(5)], closed=True)
    await stream("great", "application/octet-stream", [os.urandom(300_000)], closed=True)
    await stream("a%20b/%C3%BC", "text/html", [b"<p>"])
    await here.create("fork", Stream_Forked_From=f"{PREFIX}text", Content_Type=text)
    tail = await here.append("fork", b"own", Content_Type=text)
    known.append(Known("fork", (*known[0].offsets, tail), known[0].tags))
    return known


def agree(ours: list[Reply | None], theirs: list[Reply | None]) -> None:
    """Compare; an event stream whose time was over is as long as the machine was fast."""
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one and other and one.header("content-type") == "text/event-stream":
            size = min(len(one.body), len(other.body))
            ours[number] = replace(one, body=one.body[:size])
            theirs[number] = replace(other, body=other.body[:size])
    assert ours == theirs


def watch(here: Served, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return the ports of clients whose connections the lane hands over, as it does so."""
    handed_over = set()
    take = here.edge.handlers.listener.take

    async def spy(sock: object, received: bytes) -> None:
        handed_over.add(sock.getpeername()[1])  # type: ignore[attr-defined]
        await take(sock, received)  # type: ignore[arg-type]

    monkeypatch.setattr(type(here.edge.handlers.listener), "take", lambda _, *given: spy(*given))
    return handed_over


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_same_replies_and_the_same_fate_of_the_connection(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with served(
            same_day=True, chunk_bytes=1024, long_poll_timeout_s=0.05, sse_timeout_s=0.1
        ) as here:
            generator = Generator(seed, await populate(here))
            handed_over = watch(here, monkeypatch)
            gate, counts = asyncio.Semaphore(AT_ONCE), Counter[str]()

            async def compare(dialogue: Dialogue) -> None:
                async with gate:
                    alone, lane = await here.connect(here.aiohttp_port), await here.connect()
                    handed_over.discard(lane.port)  # somebody may have had it before
                    try:
                        agree(await ask(lane, dialogue), await ask(alone, dialogue))
                        counts["plain"] += dialogue.plain
                        assert not (dialogue.plain and lane.port in handed_over)
                        counts["handed over"] += lane.port in handed_over
                    except BaseException as error:
                        error.add_note(repr(dialogue))
                        raise
                    finally:
                        alone.close()
                        lane.close()

            async with asyncio.TaskGroup() as group:
                for _ in range(DIALOGUES):
                    group.create_task(compare(generator.dialogue()))
            # Neither way was spared its part.
            assert counts["plain"] > DIALOGUES / 3
            assert counts["handed over"] > DIALOGUES / 4
            await until(lambda: here.lane.connections == 0)

    run(story)


def test_bytes_that_are_handed_over_arrive_whole_wherever_they_are_cut() -> None:
    body = bytes(range(256)) * 40
    head = f"POST {PREFIX}s HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    places = [*range(1, len(request) - len(body) + 3, 7), 8189, 8190, 8191, len(request) - 1]

    async def story() -> None:
        async with served() as here:
            await here.create("s", Content_Type="a/b")

            async def send(place: int) -> None:
                line = await here.connect()
                await line.send(request[:place])
                await asyncio.sleep(0.01)
                await line.send(request[place:])
                assert (await line.reply()).status == 204
                line.close()

            async with asyncio.TaskGroup() as group:
                for place in places:
                    group.create_task(send(place))
            line = await here.connect()
            await line.ask("s?offset=-1")
            assert (await line.reply()).body == len(places) * body
            line.close()

    run(story)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(f"GET {PREFIX}s HTTP/1.1\nHost: x\n\n".encode(), id="bare newlines"),
        pytest.param(f"GET {PREFIX}s HTTP/1.1\r\nHost: x\n\r\n".encode(), id="one bare newline"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
        pytest.param(b"\x00\x00", id="nul"),
        pytest.param(b"get / ", id="small letters"),
    ],
)
def test_what_can_never_become_a_request_is_refused_without_waiting_for_more(sent: bytes) -> None:
    async def story() -> None:
        async with served(header_timeout_s=300) as here:
            for port in (here.aiohttp_port, here.lane_port):
                line = await here.connect(port)
                await line.send(sent)
                assert (await line.reply()).status == 400
                await line.ended()
                line.close()

    run(story)
