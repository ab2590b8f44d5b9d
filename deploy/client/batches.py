"""What is appended: arguments and standard input, cut into the bodies of appends."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

import orjson

from deploy.client.failures import BadInput

PIECE_BYTES = 1 << 20
BATCH_BYTES = 1 << 20
BATCH_LINES = 512
# Above the 10 MiB that a server takes unless told otherwise, so that it says what its limit is.
BODY_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Portion:
    """What goes in one append."""

    body: bytes
    count: int = 1  # lines or arguments that it is made of
    last: bool = False  # known to be the last, so that the stream can be closed with it


def arguments(texts: list[str]) -> Iterator[Portion]:
    """Make each argument one append."""
    for number, text in enumerate(texts, start=1):
        yield Portion(argument(text), last=number == len(texts))


def argument(text: str) -> bytes:
    """Return the bytes of an argument, or those of standard input for `-`."""
    if text != "-":
        return os.fsencode(text)
    data = sys.stdin.buffer.read(BODY_BYTES_MAX + 1)
    if len(data) > BODY_BYTES_MAX:
        raise BadInput(
            f"standard input is longer than {BODY_BYTES_MAX >> 20} MiB, too much for one append: "
            "use --lines"
        )
    return data


def lines(*, json: bool, eager: bool) -> Iterator[Portion]:
    """Yield appends of the lines of standard input.

    Args:
        json: each line is a message.
        eager: as they arrive; else portions depend on the input alone, and not on when it arrives.
    """
    stdin = cast(BufferedReader, sys.stdin.buffer)
    arriving = iter(lambda: stdin.read1(PIECE_BYTES), b"")
    batches = batched(lines_of(arriving), BATCH_LINES, eager=eager)
    if json:
        yield from json_portions(batches)
    else:
        yield from (Portion(b"".join(batch), len(batch)) for batch in batches)


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield lines with their ends, and None whenever the next one may have to be waited for."""
    rest = bytearray()
    for piece in pieces:
        *whole_lines, rest_of_piece = piece.split(b"\n")
        for line in whole_lines:
            yield bytes(rest) + line + b"\n"
            rest.clear()
        rest += rest_of_piece
        if len(rest) > BODY_BYTES_MAX:
            raise BadInput(f"a line is longer than {BODY_BYTES_MAX >> 20} MiB")
        yield None
    if rest:
        yield bytes(rest)


def batched(lines: Iterable[bytes | None], count: int, *, eager: bool) -> Iterator[list[bytes]]:
    """Group lines by count at most, and about BATCH_BYTES; eager: rather than wait for another."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if line is not None:
            if batch and size + len(line) > BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        if len(batch) == count or (eager and line is None and batch):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def json_portions(batches: Iterable[list[bytes]]) -> Iterator[Portion]:
    """Make each batch one JSON array, whose elements are its lines without the blank ones.

    Raises:
        BadInput: a line is not one JSON value, which inside an array could pass for several.
    """
    before = 0  # lines of earlier batches
    unsent = 0  # of them, blank ones that wait to be counted
    for batch in batches:
        values = []
        for number, line in enumerate(batch, start=before + 1):
            if value := line.strip():
                try:
                    orjson.loads(value)
                except orjson.JSONDecodeError as error:
                    raise BadInput(f"line {number} is not JSON: {error}") from error
                values.append(value)
        before += len(batch)
        unsent += len(batch)
        if values:
            yield Portion(b"[" + b",".join(values) + b"]", unsent)
            unsent = 0
