"""What SQLite would drop without a word: acknowledged commits behind a damaged WAL frame.

SQLite ends its write-ahead log at the first frame whose checksum is wrong, which is right for a
commit that a crash tore, and silent loss when the damage lies before commits that were
acknowledged. One commit at most is unacknowledged, so whatever follows a whole one proves damage.
"""

import struct
from pathlib import Path
from typing import BinaryIO, Final

from origin.frame import CorruptLog

# https://www.sqlite.org/fileformat2.html#walformat
_HEADER: Final = struct.Struct(">IIIIIIII")  # magic, version, page size, sequence, salts, checksums
_FRAME: Final = struct.Struct(">IIIIII")  # page, pages after commit or 0, salts, checksums
_MAGICS: Final = (0x377F0682, 0x377F0683)  # little-, big-endian checksums
_SUMMED: Final = 8  # bytes of a frame's head that its checksum covers, before the page
_TABLE_LEAF: Final = 0x0D  # https://www.sqlite.org/fileformat2.html#b_tree_pages

_Sums = tuple[int, int]


def check(database: Path, valid_frames: int, last_row: int | None = None) -> None:
    """Refuse a WAL in which something follows the commit that SQLite did not take.

    Args:
        database: the file whose WAL it is.
        valid_frames: how many frames SQLite took.
        last_row: the highest rowid that it sees, where each commit adds the next one.

    Raises:
        CorruptLog: names the file and the frame.
    """
    path = Path(f"{database}-wal")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    if size < _HEADER.size + _FRAME.size:
        return
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        order = _check_header(path, header)
        page_bytes = _HEADER.unpack(header)[2]
        frames = (size - _HEADER.size) // (_FRAME.size + page_bytes)
        if _goes_on(file, header, order, range(valid_frames, frames), last_row):
            last = "" if last_row is None else f" (journal frame {last_row} is the last before it)"
            where = f"{path}: frame {valid_frames + 1}"
            raise CorruptLog(f"{where} is damaged, and later commits lie behind it{last}")


def _goes_on(
    file: BinaryIO, header: bytes, order: str, behind: range, last_row: int | None
) -> bool:
    """Tell whether more than one torn commit lies behind the end.

    What lies there may be the rests of several: each was torn by a crash of its own, or found the
    disk full, and began where the one before it had. But none of them was written after another
    had ended, nor holds a later row than the next.
    """
    _, _, page_bytes, _, *salts, _, _ = _HEADER.unpack(header)
    seeds = [_sums_before(file, header, behind.start)]
    ended = broken = False
    for number in behind:
        file.seek(_HEADER.size + number * (_FRAME.size + page_bytes))
        head = file.read(_FRAME.size)
        _, pages, salt1, salt2, *stored = _FRAME.unpack(head)
        ours = [salt1, salt2] == salts  # frames of an earlier use of the file have older salts
        found: list[_Sums] = []
        if ours or not broken:
            page = file.read(page_bytes)
            found = [_sum(head[:_SUMMED] + page, order, seed) for seed in seeds]
        # Such a frame was written right after the one before it, damaged as that may be.
        follows = ours and (stored[0], stored[1]) in found
        if follows and ended:
            return True
        if ours and last_row is not None:
            row = _last_row(page)
            # The one after the next, torn as it may be: nobody has written that before.
            if row == last_row + 2 or (follows and row > last_row + 1):
                return True
        ended = ours and bool(pages)
        seeds = [(stored[0], stored[1])]
        if not follows:
            # It is damaged, or not the next one. If it is its checksum that is damaged, what
            # follows it was written after what that should be.
            seeds += found[:1]
            broken = True
    return False


def _sums_before(file: BinaryIO, header: bytes, number: int) -> _Sums:
    """Return the checksums that a frame's own begin with."""
    *_, page_bytes, _, _, _, sum1, sum2 = _HEADER.unpack(header)
    if not number:
        return sum1, sum2
    file.seek(_HEADER.size + (number - 1) * (_FRAME.size + page_bytes))
    *_, sum1, sum2 = _FRAME.unpack(file.read(_FRAME.size))
    return sum1, sum2


def _check_header(path: Path, header: bytes) -> str:
    """Return the byte order of checksums, as struct names it."""
    magic, *_, sum1, sum2 = _HEADER.unpack(header)
    if magic not in _MAGICS:
        raise CorruptLog(f"{path}: header begins with {magic:08x}")
    order = "<" if magic == _MAGICS[0] else ">"
    if _sum(header[:24], order, (0, 0)) != (sum1, sum2):
        raise CorruptLog(f"{path}: header checksum is wrong, no commit in it could be found")
    return order


def _sum(data: bytes, order: str, seed: _Sums) -> _Sums:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    one, two = seed
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _last_row(page: bytes) -> int:
    """Return the rowid of the last cell of a table's leaf page; 0 for any other page."""
    cells = int.from_bytes(page[3:5], "big")
    if page[0] != _TABLE_LEAF or not cells:
        return 0
    pointer = 8 + 2 * (cells - 1)
    at = int.from_bytes(page[pointer : pointer + 2], "big")
    _, at = _varint(page, at)  # payload size
    return _varint(page, at)[0]


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """Return an integer of up to 8 bytes, and the position after it."""
    value = 0
    for byte in page[at : at + 8]:
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value, at
