"""Chunks: a bounded cache of full chunks, which mean the same bytes forever."""

from collections import OrderedDict
from dataclasses import dataclass

from shared import metrics
from shared.protocol.chunk import Chunk

# What a kept chunk costs beside its body, roughly: it keeps tiny ones from being free.
_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk, and when its upstream last said that it stands."""

    chunk: Chunk
    confirmed_s: float


class Chunks:
    """Full chunks by path and offset; the least recently used leave first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._offsets: dict[str, set[str]] = {}

    def get(self, path: str, offset: str) -> Kept | None:
        """Return what is kept at an offset, and count it as used."""
        kept = self._kept.get((path, offset))
        if kept is not None:
            self._kept.move_to_end((path, offset))
        return kept

    def put(self, path: str, offset: str, chunk: Chunk, confirmed_s: float) -> None:
        """Keep a chunk, if it fits at all, in place of what was kept there."""
        size = len(chunk.body) + _OVERHEAD_BYTES
        if (path, offset) in self._kept:
            self._remove(path, offset)
        if size > self._bytes_max:
            return
        self._kept[path, offset] = Kept(chunk, confirmed_s)
        self._offsets.setdefault(path, set()).add(offset)
        self._bytes += size
        while self._bytes > self._bytes_max:
            self._remove(*next(iter(self._kept)))
        metrics.CHUNK_BYTES.set(self._bytes)

    def drop(self, path: str) -> None:
        """Forget all chunks of a stream."""
        for offset in list(self._offsets.get(path, ())):
            self._remove(path, offset)
        metrics.CHUNK_BYTES.set(self._bytes)

    def _remove(self, path: str, offset: str) -> None:
        self._bytes -= len(self._kept.pop((path, offset)).chunk.body) + _OVERHEAD_BYTES
        self._offsets[path].discard(offset)
        if not self._offsets[path]:
            del self._offsets[path]
