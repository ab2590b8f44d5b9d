"""Notes: what each message of a load test says, and whether a reader has seen each one once.

A note is a JSON string `WWWWWWWW<NNNNNNNNNN>@TTTTTTTTTTTTTTTT;...`: who wrote it, which of theirs
in this stream it is (from 1 on), and when, in microseconds since 1970. Swarms find the last two by
the expressions that they know from other scenarios.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import orjson

from loadtests.client import BadReply
from loadtests.dialect import STAMPED_BYTES_MIN, stamped_message
from loadtests.ledger import Audit, Sent, audit

JSON: Final = "application/json"
WRITER_CHARS: Final = 8
NOTE_BYTES_MIN: Final = WRITER_CHARS + STAMPED_BYTES_MIN + 2  # with the quotes of JSON
_NOTE: Final = re.compile(r"([0-9a-f]{8})<(\d{10})>@(\d{16});\.*")


class Wrong(Exception):
    """A reader got something else than what comes next."""


class Gap(Wrong):
    """Notes are missing."""


class Doubled(Wrong):
    """A note came again, or after a later one."""


class Foreign(Wrong):
    """Something came that nobody wrote."""


@dataclass(frozen=True, slots=True)
class Note:
    """One message."""

    writer: str
    number: int
    at_s: float  # on the clock that all machines share, as well as they do


def encode(note: Note, size: int) -> bytes:
    """Return the body of an append, in bytes `size` or as many as it takes."""
    room = size - WRITER_CHARS - 2
    return b'"' + note.writer.encode() + stamped_message(note.number, note.at_s, room) + b'"'


def decode(body: bytes) -> list[Note]:
    """Return the notes in an answer or in the data of an event.

    Raises:
        Foreign: there is something else, or it is not whole.
    """
    try:
        texts = orjson.loads(body)
    except orjson.JSONDecodeError:
        texts = None
    if not isinstance(texts, list):
        raise Foreign(f"not an array of messages: {body[:80]!r}")
    return [_note(text) for text in texts]


def _note(text: object) -> Note:
    found = _NOTE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise Foreign(f"not a message of a load test: {str(text)[:80]!r}")
    return Note(found[1], int(found[2]), int(found[3]) / 1e6)


class Account:
    """What a reader has seen of one stream, and what must come next."""

    def __init__(self, *, from_start: bool) -> None:
        """
        Args:
            from_start: it reads from the beginning; else the first note of each writer may be any.
        """
        self.seen = 0
        self.last: dict[str, int] = {}  # by writer
        self._from_start = from_start

    def take(self, note: Note) -> None:
        """See a note; after an error, go on behind it: one mistake is counted once.

        Raises:
            Gap, Doubled: it is not the next one of its writer.
        """
        self.seen += 1
        last = self.last.get(note.writer)
        if last is None:
            last = 0 if self._from_start else note.number - 1
        expected = last + 1
        if note.number < expected:
            raise Doubled(f"writer {note.writer}: expected {expected}, received {note.number}")
        self.last[note.writer] = note.number
        if note.number > expected:
            raise Gap(f"writer {note.writer}: expected {expected}, received {note.number}")


def settle(sent: dict[str, Sent], stored: list[Note]) -> Audit:
    """Compare what was acknowledged with what a stream holds, by writer."""
    places = {writer: at for at, writer in enumerate(sent)}
    named = [(places.get(note.writer, -1), note.number - 1) for note in stored]
    return audit({places[writer]: one for writer, one in sent.items()}, named)


class Events:
    """Server-sent events out of pieces as they arrive."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._rest = b""

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]:
        """Return kind and data of each event that is whole now.

        Raises:
            BadReply: a line is not one of an event.
        """
        *blocks, self._rest = (self._rest + piece).split(b"\n\n")
        return [event for block in blocks if (event := _event(block)) is not None]

    @property
    def whole(self) -> bool:
        """Whether no event is cut off."""
        return not self._rest


def _event(block: bytes) -> tuple[str, bytes] | None:
    kind, data = "", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"event":
            kind = value.strip().decode()
        elif field == b"data":
            data.append(value.removeprefix(b" "))
        elif field:
            raise BadReply(f"not a line of an event: {line[:80]!r}")
    return (kind, b"\n".join(data)) if kind else None
