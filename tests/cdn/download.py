"""Many readers of a long stream at once, each in a thread, who compare every byte as it comes."""

from __future__ import annotations

import re
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.cdn.caches import port_of
from tests.http.api import Stream

_ROOM = 2 * 1024 * 1024  # a chunk of these tests, and its head
_TIMEOUT_S = 30.0


@dataclass
class Downloads:
    """What the replies were, by the offset that was asked for."""

    whole: int = 0  # readers who got all of it
    missed: Counter[str] = field(default_factory=Counter)  # not in the cache
    lifetimes: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # offsets as the first reader met them


def download(url: str, stream: Stream, body: bytes, readers: int) -> Downloads:
    """Let so many readers read a stream from the beginning to its tail."""
    with ThreadPoolExecutor(readers) as pool:
        results = list(pool.map(lambda _: _read(port_of(url), stream.target, body), range(readers)))
    found = Downloads(order=[reply.offset for reply in results[0]])
    for replies in results:
        found.whole += 1
        for reply in replies:
            found.lifetimes[reply.offset] = reply.lifetime
            if reply.cached != "HIT":
                found.missed[reply.offset] += 1
    return found


@dataclass(frozen=True, slots=True)
class _Reply:
    offset: str
    cached: str
    lifetime: str


def _read(port: int, target: str, body: bytes) -> list[_Reply]:
    replies: list[_Reply] = []
    room = bytearray(_ROOM)
    offset, at = "-1", 0
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as connection:
        while True:
            request = f"GET {target}?offset={offset} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            connection.sendall(request.encode())
            head, content = _receive(connection, memoryview(room))
            assert head.startswith("HTTP/1.1 200 "), head
            # As bytes: views are compared one element at a time, a hundred times as slowly.
            assert content.tobytes() == body[at : at + len(content)], (offset, len(content))
            at += len(content)
            replies.append(_Reply(offset, _field(head, "X-Cache"), _field(head, "Cache-Control")))
            offset = _field(head, "Stream-Next-Offset")
            if "Stream-Up-To-Date: true" in head:
                assert at == len(body)
                return replies


def _receive(connection: socket.socket, room: memoryview) -> tuple[str, memoryview]:
    got = 0
    while (end := bytes(room[: min(got, 4096)]).find(b"\r\n\r\n")) < 0:
        got += _more(connection, room[got:])
    head = bytes(room[:end]).decode()
    size = end + 4 + int(_field(head, "Content-Length"))
    while got < size:
        got += _more(connection, room[got:size])
    assert got == size
    return head, room[end + 4 : size]


def _more(connection: socket.socket, room: memoryview) -> int:
    count = connection.recv_into(room)
    assert count, "the reply is cut off"
    return count


def _field(head: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*?)\r?$", head, re.MULTILINE | re.IGNORECASE)
    assert found is not None, (name, head)
    return found[1]
