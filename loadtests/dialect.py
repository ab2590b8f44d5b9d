"""What a live reader sends and receives, as long-polls or as server-sent events.

Every append of the fan-out scenario carries a wave number, counted from 1, and each reader must see
each number once. Parsing is pure; thousands of readers receive the same bytes, so a swarm asks here
once for all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Protocol

from loadtests.client import BadReply, Head, Target, parse_head, parse_reply, required, unchunk

_WAVE: Final = re.compile(rb"<(\d{10})>")
WAVE_BYTES_MIN: Final = 12
_CONTROL_OFFSET: Final = re.compile(rb'"streamNextOffset":\s*"([^"]+)"')
_CONTROL_CURSOR: Final = re.compile(rb'"streamCursor":\s*"([^"]+)"')
_DATA_EVENT: Final = re.compile(rb"event: ?data\b")
_REPLY: Final = b"HTTP/1.1 "
CONTENT_TYPE: Final = "text/plain"  # server-sent events carry it as it is


def wave_message(number: int, size: int) -> bytes:
    """Return the message of one append."""
    return (b"<%010d>" % number).ljust(size, b".")


def waves_in(body: bytes) -> tuple[int, ...]:
    """Return the wave numbers in a body, in order."""
    return tuple(int(number) for number in _WAVE.findall(body))


@dataclass(frozen=True, slots=True)
class Step:
    """What received bytes mean to the reader that got them."""

    status: int
    waves: tuple[int, ...] = ()
    request: bytes | None = None  # what to send next, or after a lost connection
    ended: bool = False  # the reply is over: the reader must ask again to hear more


class Dialect(Protocol):
    """One way to read live."""

    def request(self, offset: str, cursor: str | None = None) -> bytes:
        """Return the request that waits for what comes after offset."""

    def step(self, data: bytes) -> Step | None:
        """Interpret what arrived; None: incomplete, try again with more appended.

        Raises:
            BadReply: no reader can make sense of it.
        """


class _Live:
    def __init__(self, target: Target, path: str, live: str) -> None:
        self._target = target
        self._url = f"{path}?live={live}&offset="

    def request(self, offset: str, cursor: str | None = None) -> bytes:
        url = self._url + offset + (f"&cursor={cursor}" if cursor else "")
        return self._target.request("GET", url, "Accept: */*", "User-Agent: headwater-loadtests")


class LongPoll(_Live):
    """A reader that asks anew after each reply."""

    def __init__(self, target: Target, path: str) -> None:
        """Read one stream of one server."""
        super().__init__(target, path, "long-poll")

    def step(self, data: bytes) -> Step | None:
        """Interpret a reply."""
        reply = parse_reply(data)
        if reply is None:
            return None
        head = reply.head
        if head.status not in (200, 204):
            return Step(head.status, ended=True)
        following = self.request(required(head, "Stream-Next-Offset"), head.field("Stream-Cursor"))
        return Step(head.status, waves_in(reply.body), following, ended=True)


class ServerSentEvents(_Live):
    """A reader of one long reply, in events."""

    def __init__(self, target: Target, path: str) -> None:
        """Read one stream of one server."""
        super().__init__(target, path, "sse")
        # Whether this server sends its events in chunks of HTTP/1.1: all of its replies, or none.
        self._chunked = False

    def step(self, data: bytes) -> Step | None:
        """Interpret the head of a reply, events, or both."""
        events, ended = data, False
        if data.startswith(_REPLY):
            head = parse_head(data)
            if head is None:
                return None
            if head.status != 200:
                return Step(head.status, ended=True) if parse_reply(data) else None
            self._chunked = _is_chunked(head)
            events = data[head.size :]
        elif _REPLY.startswith(data[: len(_REPLY)]):
            return None
        if self._chunked:
            rest = events
            events, end, ended = unchunk(rest)
            if end < len(rest):
                return None
        if not ended and not _whole(events):
            return None
        offsets = _CONTROL_OFFSET.findall(events)
        cursors = _CONTROL_CURSOR.findall(events)
        following = None
        if offsets:
            following = self.request(
                offsets[-1].decode(), cursors[-1].decode() if cursors else None
            )
        return Step(200, waves_in(events), following, ended)


def _is_chunked(head: Head) -> bool:
    if head.length is not None:
        raise BadReply(f"events with a length: {head.raw[:200]!r}")
    return head.chunked


def _whole(events: bytes) -> bool:
    """Return whether these are whole events, and no data waits for the control event after it."""
    if not events.endswith(b"\n\n"):
        return False
    return not _DATA_EVENT.match(events[:-2].rpartition(b"\n\n")[2])


DIALECTS: Final[dict[str, type[LongPoll] | type[ServerSentEvents]]] = {
    "lp": LongPoll,
    "sse": ServerSentEvents,
}
