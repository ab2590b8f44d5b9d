"""Chunks: a bounded cache of full chunks, which mean the same bytes forever."""

from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field

from shared import metrics
from shared.protocol.chunk import Chunk
from shared.protocol.offset import life_of

# What a kept chunk costs beside its body, roughly: it keeps tiny ones from being free.
_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk, and when its upstream last said that it stands."""

    chunk: Chunk
    confirmed_s: float


@dataclass(slots=True)
class _Stream:
    """What is kept of one stream."""

    # In order: a stream may have 20,000, as a reader makes one of each position in its last append.
    offsets: list[str] = field(default_factory=list)
    # From which offset on all of its life was there, when the upstream was last asked.
    first: str | None = None
    confirmed_s: float = float("-inf")


class Chunks:
    """Full chunks by path and offset; the least recently used leave first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._streams: dict[str, _Stream] = {}

    def get(self, path: str, offset: str) -> Kept | None:
        """Return what is kept at an offset, and count it as used."""
        kept = self._kept.get((path, offset))
        if kept is not None:
            self._kept.move_to_end((path, offset))
        return kept

    def life_confirmed_s(self, path: str, offset: str) -> float:
        """Return when the upstream last said, by what comes before it in the same life, that what
        is kept at an offset stands; long ago, if it never did."""
        stream, life = self._streams[path], life_of(offset)
        first = stream.first
        if life is None or first is None or not first.startswith(life) or offset < first:
            return float("-inf")
        return stream.confirmed_s

    def confirm(self, path: str, first: str, confirmed_s: float) -> None:
        """Note that a life of a stream was there, from an offset on: it only goes away as a whole,
        or from its beginning on."""
        stream = self._streams.get(path)
        if stream is not None and confirmed_s >= stream.confirmed_s:
            stream.first, stream.confirmed_s = first, confirmed_s

    def earliest(self, path: str, life: str) -> str | None:
        """Return the first offset of a life at which anything is kept."""
        stream = self._streams.get(path)
        if stream is None:
            return None
        place = bisect_left(stream.offsets, life)
        found = stream.offsets[place : place + 1]
        return found[0] if found and found[0].startswith(life) else None

    def put(self, path: str, offset: str, chunk: Chunk, confirmed_s: float) -> None:
        """Keep a chunk, if it fits at all, in place of what was kept there."""
        size = len(chunk.body) + _OVERHEAD_BYTES
        if (path, offset) in self._kept:
            self._remove(path, offset)
        if size > self._bytes_max:
            return
        self._kept[path, offset] = Kept(chunk, confirmed_s)
        insort(self._streams.setdefault(path, _Stream()).offsets, offset)
        self._bytes += size
        while self._bytes > self._bytes_max:
            self._remove(*next(iter(self._kept)))
        metrics.CHUNK_BYTES.set(self._bytes)

    def drop(self, path: str) -> None:
        """Forget all chunks of a stream."""
        stream = self._streams.get(path)
        if stream is not None:
            self._cut(path, stream, 0, len(stream.offsets))

    def drop_before(self, path: str, life: str, first: str | None) -> None:
        """Forget the chunks of a life of a stream: those before an offset, or all."""
        stream = self._streams.get(path)
        if stream is not None:
            end = life + "~" if first is None or not first.startswith(life) else first
            begin = bisect_left(stream.offsets, life)
            self._cut(path, stream, begin, bisect_left(stream.offsets, end, begin))

    def _remove(self, path: str, offset: str) -> None:
        stream = self._streams[path]
        place = bisect_left(stream.offsets, offset)
        self._cut(path, stream, place, place + 1)

    def _cut(self, path: str, stream: _Stream, begin: int, end: int) -> None:
        for offset in stream.offsets[begin:end]:
            self._bytes -= len(self._kept.pop((path, offset)).chunk.body) + _OVERHEAD_BYTES
        del stream.offsets[begin:end]
        if not stream.offsets:
            del self._streams[path]
        metrics.CHUNK_BYTES.set(self._bytes)
