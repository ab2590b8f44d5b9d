"""Upkeep: what the origin does beside its requests: brings the index up to the journal, ends what
expired."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from origin.catalog import Catalog
from origin.journal import DiskFull, Journal
from origin.ledger import Ledger
from origin.streams import Streams
from shared import metrics
from shared.protocol.errors import Unavailable

_log = logging.getLogger(__name__)

# How much a restart may have to replay, and how long what is in the index only lags.
_APPLY_EVERY_S: Final = 1.0
# How often is looked whether a part of that is better applied now.
_APPLY_PART_S: Final = 0.25
# How often compaction looks whether there is enough to do.
_COMPACT_EVERY_S: Final = 1.0
# TTLs hold to a second; every access looks for itself besides.
_REAP_EVERY_S: Final = 0.25
# Expired streams that one turn deletes: more would hold up the appends that share their frame.
_REAP_AT_ONCE: Final = 8
# Of the loop's time while a crowd of them is over; the rest is for requests.
_REAP_SHARE: Final = 0.05


async def or_stop(
    work: Coroutine[Any, Any, None], fail_stop: Callable[[BaseException], None]
) -> None:
    """Do work that is never over; if it fails, stop the process, for nobody else would notice."""
    try:
        await work
    except Exception as error:
        fail_stop(error)


class Indexer:
    """Brings the index up to the journal, one batch at a time."""

    def __init__(
        self, ledger: Ledger, journal: Journal, fail_stop: Callable[[BaseException], None]
    ) -> None:
        """Prepare.

        Args:
            fail_stop: called when the index cannot be written; must end the process.
        """
        self._ledger = ledger
        self._journal = journal
        self._fail_stop = fail_stop
        self._one_at_a_time = asyncio.Lock()

    async def keep(self) -> None:
        """Apply what has become durable, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            due_s = clock() + _APPLY_EVERY_S
            while not self._ledger.enough.is_set() and (left_s := due_s - clock()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, _APPLY_PART_S)):
                        await self._ledger.enough.wait()
                if self._ledger.scattered:
                    break
            await self.apply()

    async def apply(self) -> None:
        """Apply what has become durable so far. Being cancelled does not stop it half-way."""
        await asyncio.shield(asyncio.create_task(self._apply()))

    async def _apply(self) -> None:
        async with self._one_at_a_time:
            batch = self._ledger.take_batch()
            if batch is None:
                return
            try:
                await asyncio.to_thread(self._journal.apply, batch)
            except DiskFull as error:
                # Nothing is lost: the frames are there, and the next batch holds what this one
                # held.
                _log.warning("index waits for room: error=%s", error)
                self._ledger.put_back(batch)
            except Exception as error:
                # What the index lacks would be kept in memory without bound; a restart rebuilds it.
                self._fail_stop(error)
            else:
                self._ledger.applied(batch)
            metrics.INDEX_LAG.set(self._ledger.behind)


class Compactor:
    """Lets the journal compact itself, a step at a time, with rests in between."""

    def __init__(self, journal: Journal, fail_stop: Callable[[BaseException], None]) -> None:
        """Prepare.

        Args:
            fail_stop: called when it is not known what is on disk; must end the process.
        """
        self._journal = journal
        self._fail_stop = fail_stop
        self._one_at_a_time = asyncio.Lock()

    async def keep(self) -> None:
        """Compact, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            began_s = clock()
            more = await asyncio.shield(asyncio.create_task(self._step()))
            # A third of one core at most: whoever decides and answers needs the interpreter too.
            await asyncio.sleep(2 * (clock() - began_s) if more else _COMPACT_EVERY_S)

    async def finish(self) -> None:
        """Wait for a step under way; none begins after it."""
        await self._one_at_a_time.acquire()

    async def _step(self) -> bool:
        async with self._one_at_a_time:
            try:
                return await asyncio.to_thread(self._journal.compact)
            except (DiskFull, Unavailable) as error:
                _log.warning("compaction waits for room: error=%s", error)
            except Exception as error:
                self._fail_stop(error)
            return False


async def reap(catalog: Catalog, streams: Streams) -> None:
    """Delete streams whose time is over, for ever."""
    clock = asyncio.get_running_loop().time
    while True:
        began_s = clock()
        ended = [streams.expire(stream) for stream in islice(catalog.due(), _REAP_AT_ONCE)]
        busy_s = clock() - began_s
        with suppress(Unavailable):  # there is no room: they are looked at again
            await streams.settled()
        crowded = len(ended) == _REAP_AT_ONCE
        await asyncio.sleep(busy_s / _REAP_SHARE if crowded else _REAP_EVERY_S)
