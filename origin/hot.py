"""Hot chunks: what was read lately of streams that have not changed since."""

from collections import OrderedDict
from typing import Final

from shared.protocol.chunk import Chunk
from shared.protocol.expiry import NEVER
from shared.protocol.stream import StreamState

_BYTES_MAX: Final = 32 * 1024 * 1024
_CHUNK_BYTES_MAX: Final = 256 * 1024  # larger ones cost the disk as little as they would cost here
_OVERHEAD_BYTES: Final = 1024  # of an entry beside its body, roughly


class HotChunks:
    """Chunks by path and offset; the least recently used leave first.

    A state is never changed, only replaced: who still has the very same has the same data, tail
    and closure.
    """

    def __init__(self, bytes_max: int = _BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], tuple[StreamState, Chunk]] = OrderedDict()

    def get(self, path: str, offset: str, state: StreamState | None) -> Chunk | None:
        """Return what was read at an offset of a stream in this state."""
        kept = self._kept.get((path, offset))
        if kept is None or kept[0] is not state:
            return None
        self._kept.move_to_end((path, offset))
        return kept[1]

    def put(self, offset: str, state: StreamState, chunk: Chunk) -> None:
        """Keep a chunk, unless reads of its stream do something beside."""
        if len(chunk.body) > _CHUNK_BYTES_MAX or state.expiry != NEVER:
            return
        key = (state.path, offset)
        before = self._kept.pop(key, None)
        if before is not None:
            self._bytes -= len(before[1].body) + _OVERHEAD_BYTES
        self._kept[key] = (state, chunk)
        self._bytes += len(chunk.body) + _OVERHEAD_BYTES
        while self._bytes > self._bytes_max:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._bytes -= len(oldest.body) + _OVERHEAD_BYTES
