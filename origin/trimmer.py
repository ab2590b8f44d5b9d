"""Trimmer: lets go of what retention does not ask to keep.

A stream with a policy is looked at when its oldest data may be too old, and when an append has made
it too large. The index says whom and how its own data begins; what is decided becomes a record like
any other, and only then do extents go from the index, whole ones, unless a fork inherits them. A
fork lets go of all that it inherits at once, when that is older than it keeps or more.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from origin.catalog import Catalog
from origin.journal import CUTS, Deadline, Journal, Overdue
from origin.ledger import Ledger
from origin.stream import Stream
from origin.streams import Streams
from shared.clock import Clock
from shared.protocol.errors import Unavailable
from shared.protocol.retention import KEEP_ALL, Stretch, low_after
from shared.protocol.stream import StreamState

_EVERY_S: Final = 1.0
# Streams that one turn looks at: 50 µs each, of the loop's time.
_AT_ONCE: Final = 32
_REST_S: Final = 0.01
# What did not go though it should, for want of room, is looked at again.
_PATIENCE_MS: Final = 1000
_FROM_START: Final[Deadline] = (-(2**62), 0)


class Trimmer:
    """Carries out retention, a bounded number of streams at a time."""

    def __init__(
        self, catalog: Catalog, streams: Streams, ledger: Ledger, journal: Journal, clock: Clock
    ) -> None:
        self._catalog = catalog
        self._streams = streams
        self._ledger = ledger
        self._journal = journal
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._looked = _FROM_START  # as rows stay due until the index learns of what was done

    async def keep(self) -> None:
        """Trim, for ever."""
        while True:
            more = await self.turn()
            await asyncio.sleep(_REST_S if more else _EVERY_S)

    async def finish(self) -> None:
        """Wait for a look under way; none begins after it."""
        await self._one_at_a_time.acquire()

    async def turn(self) -> bool:
        """Look at some of the streams that are due; return whether there are more."""
        now_ms = self._clock.now_ms()
        # Being cancelled does not stop it half-way: `finish` waits.
        due = await asyncio.shield(asyncio.create_task(self._overdue(now_ms)))
        for overdue in due:
            self._look(overdue, now_ms)
        more = len(due) == _AT_ONCE
        self._looked = due[-1].due if more else _FROM_START
        try:
            await self._streams.settled()
        except Unavailable:  # there is no room: what was decided may have been undone
            for overdue in due:
                if (stream := self._catalog.of(overdue.due[1])) is not None:
                    self._ledger.look_at(stream, now_ms + _PATIENCE_MS)
        return more

    async def _overdue(self, now_ms: int) -> list[Overdue]:
        async with self._one_at_a_time:
            look = self._journal.overdue
            return await asyncio.to_thread(look, now_ms, self._looked, _AT_ONCE)

    def _look(self, overdue: Overdue, now_ms: int) -> None:
        """Decide about one stream, as it is now."""
        stream = self._catalog.of(overdue.due[1])
        if stream is None or stream.durable is None:
            return
        state = stream.state
        if state.deleted or state.retention == KEEP_ALL:
            self._ledger.look_at(stream, None)
            return
        stretches = _stretches(state, overdue.stretches)
        low = low_after(state.retention, state.tail, state.low, stretches, now_ms)
        if low > state.low:
            self._streams.trim(stream, low)
            if len(overdue.stretches) == CUTS:
                self._ledger.look_at(stream, now_ms)  # there may be more
                return
        self._ledger.look_at(stream, self._next_look(stream, stretches, low, now_ms))

    def _next_look(
        self, stream: Stream, stretches: Sequence[Stretch], low: int, now_ms: int
    ) -> int | None:
        """Return when something will be too old; what is too much, an append says."""
        age_s = stream.state.retention.age_s
        if age_s is None:
            return None
        oldest_ms = next((s.at_ms for s in stretches if s.end > low), now_ms)
        return max(oldest_ms + age_s * 1000, now_ms + _PATIENCE_MS)


def _stretches(state: StreamState, own: Sequence[Stretch]) -> list[Stretch]:
    """Return how a stream begins; what it inherits is one stretch, as old as the fork at least."""
    inherited = [Stretch(state.base, state.created_ms)] if state.low < state.base else []
    return [*inherited, *own]
