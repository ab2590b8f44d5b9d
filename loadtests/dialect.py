"""What a live reader sends and receives, as long-polls or as server-sent events.

Every append of the fan-out scenario carries a wave number, counted from 1, and each reader must see
each number once. Parsing is pure; thousands of readers receive the same bytes, so a swarm asks here
once for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from loadtests.client import BadReply, Head, Target, parse_head, parse_reply, required, unchunk

_WAVE: Final = re.compile(rb"<(\d{10})>")
WAVE_BYTES_MIN: Final = 12
_STAMP: Final = re.compile(rb"@(\d{16});")
STAMPED_BYTES_MIN: Final = WAVE_BYTES_MIN + 18
_CONTROL_OFFSET: Final = re.compile(rb'"streamNextOffset":\s*"([^"]+)"')
_CONTROL_CURSOR: Final = re.compile(rb'"streamCursor":\s*"([^"]+)"')
_DATA_EVENT: Final = re.compile(rb"event: ?data\b")
_REPLY: Final = b"HTTP/1.1 "
CONTENT_TYPE: Final = "text/plain"  # server-sent events carry it as it is


def wave_message(number: int, size: int) -> bytes:
    """Return the message of one append."""
    return (b"<%010d>" % number).ljust(size, b".")


def stamped_message(number: int, due: float, size: int) -> bytes:
    """Return the message of an append that tells when it was due, on the monotonic clock."""
    return (b"<%010d>@%016d;" % (number, due * 1e6)).ljust(size, b".")


def waves_in(body: bytes) -> tuple[int, ...]:
    """Return the wave numbers in a body, in order."""
    return tuple(int(number) for number in _WAVE.findall(body))


def stamps_in(body: bytes) -> tuple[float, ...]:
    """Return when the messages in a body were due, in order; nothing if they do not tell."""
    return tuple(int(stamp) / 1e6 for stamp in _STAMP.findall(body))


class Place(NamedTuple):
    """Where a reader is: what the server has told it to come back with."""

    offset: str
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What received bytes mean to the reader that got them."""

    status: int
    waves: tuple[int, ...] = ()
    stamps: tuple[float, ...] = ()
    place: Place | None = None  # from where to go on, or None: as before
    ended: bool = False  # the reply is over: the reader must ask again to hear more
    retry_after_s: float = 0.0  # a refusal may ask for this much patience


class Dialect(Protocol):
    """One way to read live."""

    def request(self, path: str, place: Place) -> bytes:
        """Return the request that waits for what comes after a place."""

    def step(self, data: bytes) -> Step | None:
        """Interpret what arrived; None: incomplete, try again with more appended.

        Raises:
            BadReply: no reader can make sense of it.
        """


class _Live:
    def __init__(self, target: Target, live: str) -> None:
        self._target = target
        self._live = live

    def request(self, path: str, place: Place) -> bytes:
        url = f"{path}?live={self._live}&offset={place.offset}"
        if place.cursor:
            url += f"&cursor={place.cursor}"
        return self._target.request("GET", url, "Accept: */*", "User-Agent: headwater-loadtests")


class LongPoll(_Live):
    """A reader that asks anew after each reply."""

    def __init__(self, target: Target) -> None:
        """Read from one server."""
        super().__init__(target, "long-poll")

    def step(self, data: bytes) -> Step | None:
        """Interpret a reply."""
        reply = parse_reply(data)
        if reply is None:
            return None
        head = reply.head
        if head.status not in (200, 204):
            return refusal(head)
        place = Place(required(head, "Stream-Next-Offset"), head.field("Stream-Cursor"))
        return Step(head.status, waves_in(reply.body), stamps_in(reply.body), place, ended=True)


class ServerSentEvents(_Live):
    """A reader of one long reply, in events."""

    def __init__(self, target: Target) -> None:
        """Read from one server."""
        super().__init__(target, "sse")
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
                return refusal(head) if parse_reply(data) else None
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
        place = None
        if offsets:
            place = Place(offsets[-1].decode(), cursors[-1].decode() if cursors else None)
        return Step(200, waves_in(events), stamps_in(events), place, ended)


def refusal(head: Head) -> Step:
    """Return the step of a reply that is no news, and no end of a wait either."""
    seconds = head.field("Retry-After") or ""
    return Step(head.status, ended=True, retry_after_s=float(seconds) if seconds.isdigit() else 0.0)


def _is_chunked(head: Head) -> bool:
    if head.length is not None:
        raise BadReply(f"events with a length: {head.raw[:200]!r}")
    return head.chunked


def _whole(events: bytes) -> bool:
    """Return whether these are whole events, and no data waits for the control event after it."""
    if not events.endswith(b"\n\n"):
        return False
    return not _DATA_EVENT.match(events[:-2].rpartition(b"\n\n")[2])


# By the name of a mode; each reads one server, over any number of connections.
Dialects = Mapping[str, Callable[[Target], Dialect]]
DIALECTS: Final[Dialects] = {"lp": LongPoll, "sse": ServerSentEvents}
