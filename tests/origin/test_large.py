"""Files of large frames: whole and on disk when `put` returns, or nobody hears of them."""

from __future__ import annotations

import errno
import os
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from origin.frame import HEAD_BYTES, CorruptLog, decode_frame, encode_frame
from origin.large import _BLOCK_BYTES, _BUFFER_BYTES, ROW_BYTES, LargeFrames, kept
from shared.protocol.errors import Unavailable
from tests.fakes import failing_call
from tests.origin.test_frame import appends, whole

BLOCK, BUFFER = _BLOCK_BYTES, _BUFFER_BYTES


@pytest.fixture
def large(tmp_path: Path) -> Iterator[LargeFrames]:
    """Files that leave no descriptor open, whatever a test does to them."""
    before = os.listdir("/proc/self/fd")
    large = LargeFrames(tmp_path)
    large.create()
    yield large
    large.close()
    assert os.listdir("/proc/self/fd") == before


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def pieces_of(frame: bytes, size: int) -> list[bytes]:
    return [frame[at : at + size] for at in range(0, len(frame), size)]


def names(large: LargeFrames) -> set[str]:
    return set(os.listdir(large.path))


# --- put, and what comes back --------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        *(HEAD_BYTES, BLOCK - 1, BLOCK, BLOCK + 1),
        *(BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER, 3 * BUFFER + 5000),
    ],
)
def test_frame_comes_back_to_the_byte(large: LargeFrames, size: int) -> None:
    large.put(6, [b"\xff" * BUFFER])  # what the buffer held before is not in the padding
    frame = noise(size)
    row = large.put(7, [frame])
    assert row == frame[:HEAD_BYTES] + struct.pack(">Q", size)
    assert len(row) == ROW_BYTES
    assert large.whole(7, row) == frame
    assert (large.path / "7").read_bytes() == frame + bytes(-size % BLOCK)


@pytest.mark.parametrize(
    ("size", "piece_bytes"),
    [(300_000, 37), (300_000, BLOCK), (BUFFER + 100, BUFFER - 1), (2 * BUFFER, BUFFER // 2 + 1)],
)
def test_pieces_come_back_as_one(large: LargeFrames, size: int, piece_bytes: int) -> None:
    frame = noise(size)
    pieces = [b"", *pieces_of(frame, piece_bytes), b""]
    assert large.whole(7, large.put(7, pieces[1:])) == frame


@pytest.mark.parametrize(
    "places",
    [
        *([(at, size)] for at in (0, 1, BLOCK - 1, BLOCK, 9000) for size in (0, 1, BLOCK, 900)),
        pytest.param([(0, 1000), (1000, 2000), (3000, 5)], id="side by side"),
        pytest.param([(9000, 900), (0, 2), (9100, 20)], id="far apart, to and fro"),
        pytest.param([(500, 400), (100, 400), (700, 400)], id="close, in another order"),
    ],
)
def test_some_bytes_come_back_from_where_they_are(
    large: LargeFrames, places: list[tuple[int, int]]
) -> None:
    frame = noise(10_000 + BLOCK)
    large.put(7, [frame])
    assert large.read(7, places) == [frame[at : at + size] for at, size in places]


def test_read_without_descriptors_says_so_and_not_that_there_is_damage(
    large: LargeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    large.put(7, [noise(9000)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing_call(errno.EMFILE))
        with pytest.raises(Unavailable):
            large.read(7, [(0, 1)])


def test_what_a_crash_left_is_written_over(large: LargeFrames) -> None:
    large.put(7, [noise(50_000)])
    frame = noise(20_000)
    assert large.whole(7, large.put(7, [frame])) == frame
    assert (large.path / "7").stat().st_size == 20_480


# --- how it is written ---------------------------------------------------------------------------


def test_bytes_are_on_disk_and_then_the_name(
    large: LargeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    flags_of: list[int] = []
    real = os.open, os.pwrite, os.fsync

    def name_of(file: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{file}")).name

    def open_(path: Path, flags: int, mode: int) -> int:
        flags_of.append(flags)
        return real[0](path, flags, mode)

    def pwrite(file: int, data: memoryview, at: int) -> int:
        calls.append(f"pwrite {name_of(file)}")
        return real[1](file, data, at)

    def fsync(file: int) -> None:
        calls.append(f"fsync {name_of(file)}")
        real[2](file)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    large.put(7, [noise(BUFFER + 1)])
    monkeypatch.undo()
    assert calls == ["pwrite 7", "pwrite 7", "fsync frames"]
    # Each write is durable by itself, and passes by the page cache where that is possible.
    assert flags_of[0] & os.O_DSYNC == os.O_DSYNC
    assert flags_of[0] & os.O_DIRECT


@pytest.mark.parametrize("refuses", ["open", "pwrite"])
def test_file_system_that_has_no_direct_writes_gets_others(
    large: LargeFrames, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    asked = 0
    open_, pwrite = os.open, os.pwrite

    def refuse(here: str, flags: int) -> None:
        nonlocal asked
        if here == refuses and flags & os.O_DIRECT:
            asked += 1
            raise OSError(errno.EINVAL, "Invalid argument")

    def opens(path: Path, flags: int, mode: int = 0o777) -> int:
        refuse("open", flags)
        return open_(path, flags, mode)

    def writes(file: int, data: memoryview, at: int) -> int:
        flags = next(
            line.split()[1]
            for line in Path(f"/proc/self/fdinfo/{file}").read_text().splitlines()
            if line.startswith("flags:")
        )
        refuse("pwrite", int(flags, 8))
        return pwrite(file, data, at)

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "pwrite", writes)
    for lsn in (1, 2):
        frame = noise(10_000 + lsn)
        assert large.whole(lsn, large.put(lsn, [frame])) == frame
    assert asked == 2


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL], ids=os.strerror)
def test_whatever_else_goes_wrong_rises(
    large: LargeFrames, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing_call(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            large.put(7, [noise(10_000)])
    large.discard(7)
    assert names(large) == set()
    frame = noise(9000)
    assert large.whole(7, large.put(7, [frame])) == frame


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=os.strerror)
def test_write_that_failed_is_not_tried_again(
    large: LargeFrames, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It would succeed, and prove nothing."""
    pwrite, calls = os.pwrite, iter([failing_call(number)])
    monkeypatch.setattr(os, "pwrite", lambda *arguments: next(calls, pwrite)(*arguments))
    with pytest.raises(OSError, match=os.strerror(number)):
        large.put(7, [noise(10_000)])


@pytest.mark.parametrize("most", [BLOCK, 3 * BLOCK, 1000], ids=str)
def test_write_that_is_cut_short_goes_on_where_it_was(
    large: LargeFrames, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """At any byte only where writes pass through the page cache."""
    pwrite = os.pwrite

    def writes(file: int, data: memoryview, at: int) -> int:
        return pwrite(file, data[:most], at)

    monkeypatch.setattr(os, "pwrite", writes)
    frame = noise(50_000)
    assert large.whole(7, large.put(7, [frame])) == frame


# --- damage --------------------------------------------------------------------------------------


def test_file_that_is_not_there_is_named(large: LargeFrames) -> None:
    row = large.put(7, [noise(9000)])
    large.discard(7)
    named = re.escape(f"{large.path}/7: frame 7: No such file")
    with pytest.raises(CorruptLog, match=named):
        large.read(7, [(0, 1)])
    with pytest.raises(CorruptLog, match=named):
        large.whole(7, row)


def test_file_that_is_shorter_is_named(large: LargeFrames) -> None:
    row = large.put(7, [noise(9000)])
    for size in (8999, BLOCK, 10, 0):
        os.truncate(large.path / "7", size)
        with pytest.raises(CorruptLog, match=re.escape(f"{large.path}/7: frame 7 ends before")):
            large.whole(7, row)
        with pytest.raises(CorruptLog, match=r"/7: frame 7 ends before byte 9000"):
            large.read(7, [(8000, 1000)])
        assert len(large.read(7, [(0, size)])[0]) == size


def test_file_of_another_frame_is_named(large: LargeFrames) -> None:
    row = large.put(7, [noise(9000)])
    (large.path / "7").write_bytes(noise(9001))
    with pytest.raises(CorruptLog, match=re.escape(f"{large.path}/7: frame 7 is not the one")):
        large.whole(7, row)


def test_every_flipped_bit_of_a_row_is_found(large: LargeFrames) -> None:
    """Whatever it says of the size: more than fits into memory is not there either."""
    row = large.put(7, encode_frame(7, 5, appends(5000)).pieces)
    for bit in range(ROW_BYTES * 8):
        damaged = bytearray(row)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptLog, match=r"frame 7"):
            decode_frame(large.whole(7, bytes(damaged)), "journal.db: frame 7")


def test_real_frame_of_several_pieces_decodes(large: LargeFrames) -> None:
    records = appends(*(100_000,) * 6)
    encoded = encode_frame(7, 5, records)
    frame = large.whole(7, large.put(7, encoded.pieces))
    assert frame == whole(encoded)
    assert list(decode_frame(frame, "frame 7").records) == records


# --- removal -------------------------------------------------------------------------------------


def test_removed_are_those_that_are_asked_for_where_they_are(large: LargeFrames) -> None:
    for lsn in (1, 2, 3):
        large.put(lsn, [b"x" * 100])
    assert large.remove([1, 3, 9])
    assert names(large) == {"2"}
    large.discard(2)
    large.discard(2)
    assert names(large) == set()


def test_removal_that_fails_rises_and_does_not_hold_others_off(
    large: LargeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    large.put(1, [b"x" * 100])
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing_call(errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            large.remove([1])
    assert names(large) == {"1"}
    other = LargeFrames(large.path.parent)
    other.create()
    assert other.remove([1])
    other.close()
    assert names(large) == set()


def test_nothing_is_removed_while_a_backup_copies(large: LargeFrames, tmp_path: Path) -> None:
    large.put(1, [b"x" * 100])
    with kept(tmp_path):
        with kept(tmp_path):
            assert not large.remove([1])
        assert not large.remove([1])
        large.put(2, [b"x" * 100])  # commits go on
        assert names(large) == {"1", "2"}
    assert large.remove([1])
    assert names(large) == {"2"}


def test_folder_of_an_earlier_version_has_nothing_to_keep(tmp_path: Path) -> None:
    with kept(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


# --- which there are -----------------------------------------------------------------------------


def test_some_come_at_a_time_until_those_were_all(large: LargeFrames) -> None:
    """And then again from the first: what was there meanwhile is seen the next time."""
    lsns = {1, 2, 3, 10, 20, 30, 12_345}
    for name in (*lsns, "x", "5.part", "-5", "lost+found"):
        (large.path / str(name)).touch()
    for _ in range(2):
        found: list[int] = []
        while some := large.some(3):
            assert len(some) <= 3
            found += some
        assert sorted(found) == sorted(lsns)
    large.some(1)  # a look that is not finished is no descriptor left open
