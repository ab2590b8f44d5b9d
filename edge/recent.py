"""Recent: the newest data of all streams, for readers who come back a round trip late."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

# Of all streams together: some 10,000 small appends, half a minute of 20,000 chats on one process.
# What has left is read like anything else.
_BYTES_MAX: Final = 4 * 1024 * 1024
_OVERHEAD_BYTES: Final = 300  # of a piece beside its body, roughly
# More than this at once is a chunk, and is kept as one.
PIECE_BYTES_MAX: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Data between two offsets."""

    next: str
    body: bytes


class Recent:
    """Pieces by who keeps them and where they start; the oldest leave first."""

    def __init__(self, bytes_max: int = _BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, str], Piece] = OrderedDict()
        self._keepers = 0

    def keeper(self) -> int:
        """Return a number for a new keeper: what an earlier one of the same stream kept, it does
        not see."""
        self._keepers += 1
        return self._keepers

    def get(self, keeper: int, start: str) -> Piece | None:
        """Return what follows an offset."""
        return self._kept.get((keeper, start))

    def keep(self, keeper: int, start: str, piece: Piece) -> None:
        """Keep a piece, if it is small."""
        if len(piece.body) > PIECE_BYTES_MAX or (keeper, start) in self._kept:
            return
        self._kept[keeper, start] = piece
        self._bytes += len(piece.body) + _OVERHEAD_BYTES
        while self._bytes > self._bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.body) + _OVERHEAD_BYTES
