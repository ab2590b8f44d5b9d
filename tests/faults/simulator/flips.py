"""Flipped bits: damage to what lies still is reported, or does no harm; it is never served."""

from __future__ import annotations

import random
import struct
from typing import Final

from origin.large import FOLDER
from tests.faults.simulator.disk import Files

_DATABASES: Final = ("journal.db", "packs.db", "index.db")
_HEADER_BYTES: Final = 32  # of a WAL
_FRAME: Final = struct.Struct(">II8sII")  # page, pages after commit or 0, salts, checksums
_LITTLE: Final = b"\x37\x7f\x06\x82"  # checksums are of little-endian words


def flip(files: Files, random_: random.Random) -> tuple[Files, str, int] | None:
    """Return files of which one has a flipped bit, which, and at what byte; None: nothing could
    tell it.

    The last whole commit of a log is left alone: damage there is what a crash in the middle of a
    commit looks like.
    """
    ours = [name for name in files.live if name.startswith(_DATABASES)]
    names = [name for name in ours if files.live[name].content()]
    if frames := [name for name in files.live if name.startswith(f"{FOLDER}/")]:
        names.append(random_.choice(frames))
    if not names:
        return None
    damaged = files.copy()
    name = random_.choice(names)
    inode = damaged.live[name]
    content = inode.content()
    # Where something is written: most of a small database is empty, and no harm comes of that.
    written = [at for at, byte in enumerate(content) if byte]
    if not written:
        return None
    at = random_.choice(written)
    if name.endswith("-wal") and at >= _last_commit(bytes(content)):
        return None
    content[at] ^= 1 << random_.randrange(8)
    inode.durable, inode.pending = content, []
    return damaged, name, at


def _last_commit(log: bytes) -> int:
    """Return where the last whole commit of a log begins, or its first frame."""
    if len(log) < _HEADER_BYTES:
        return 0
    page_bytes = int.from_bytes(log[8:12], "big")
    order = "<" if log[:4] == _LITTLE else ">"
    sums = struct.unpack_from(">II", log, 24)
    first = found = _HEADER_BYTES
    for at in range(_HEADER_BYTES, len(log) - _FRAME.size, _FRAME.size + page_bytes):
        _, pages, salts, *stored = _FRAME.unpack_from(log, at)
        page = log[at + _FRAME.size : at + _FRAME.size + page_bytes]
        if len(page) < page_bytes:
            break
        sums = _sum(log[at : at + 8] + page, order, *sums)
        if salts != log[16:24] or (*stored,) != sums:
            break
        if pages:
            found, first = first, at + _FRAME.size + page_bytes
    return found


def _sum(data: bytes, order: str, one: int, two: int) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
