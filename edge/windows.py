"""Windows: streams that expire where nobody reads or writes them, and when to read them again.

An origin counts a sliding window from what reaches it (PROTOCOL §5.1), and an edge answers readers
by itself: it has to speak for them now and then.
"""

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Final

from edge.tail import Tail

_RENEWAL_S_MIN: Final = 0.1  # whatever a foreign server says
# Places of streams that were let go are not searched for; more than this and they are cleared out.
_LEFT_MAX: Final = 1024


def renewal_s(ttl_s: int) -> float:
    """Return how long an origin need not hear of the readers of a stream: so much earlier than they
    would think, at most, it may expire after the last of them.

    A tenth of its window, as a read of each of 100,000 streams is 30 s of work for a core; at least
    a second, where that leaves time for another try.
    """
    return max(min(ttl_s / 3, 1.0), ttl_s / 10, _RENEWAL_S_MIN)


class Windows:
    """The streams that have one, by when their turn comes."""

    def __init__(self) -> None:
        self._turns: dict[Tail, float] = {}
        self._heap: list[tuple[float, int, Tail]] = []  # with places of those that left
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, tail: Tail) -> None:
        """Begin to look after a stream, unless that is so already."""
        if tail not in self._turns:
            self._put(tail, _due_s(tail))

    def discard(self, tail: Tail) -> None:
        """Forget a stream, if it is known."""
        self._turns.pop(tail, None)
        if len(self._heap) > 2 * len(self._turns) + _LEFT_MAX:
            self._heap = [place for place in self._heap if self._turns.get(place[2]) == place[0]]
            heapq.heapify(self._heap)

    def due(self, now_s: float) -> Iterator[Tail]:
        """Yield those with readers of which the origin has not heard for too long, each once until
        its next turn."""
        while self._heap and self._heap[0][0] <= now_s:
            turn_s, _, tail = heapq.heappop(self._heap)
            if self._turns.get(tail) != turn_s:
                continue  # it was let go
            due_s = _due_s(tail)  # by now: what is written is heard of, too
            if due_s > now_s:
                self._put(tail, due_s)
                continue
            self._put(tail, now_s + renewal_s(tail.ttl_s or 0))
            if tail.users:
                yield tail

    def _put(self, tail: Tail, turn_s: float) -> None:
        self._turns[tail] = turn_s
        heapq.heappush(self._heap, (turn_s, next(self._numbers), tail))


def _due_s(tail: Tail) -> float:
    return tail.heard_s + renewal_s(tail.ttl_s or 0)
