"""Wiring and lifecycle of an origin, no logic."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from origin.catalog import Catalog
from origin.commit import Committer
from origin.handlers import Handlers
from origin.journal import Journal
from origin.lane import Lane
from origin.ledger import Ledger
from origin.listing import Listing
from origin.purge import Purger, load_hook
from origin.reader import Reader
from origin.reads import Reads
from origin.recover import recover
from origin.sqlite import SqliteJournal
from origin.streams import Streams
from origin.trimmer import Trimmer
from origin.upkeep import Compactor, Indexer, or_stop, reap
from shared import metrics
from shared.bus import Publisher
from shared.clock import Clock, SystemClock
from shared.config import Settings
from shared.protocol.caching import CachePolicy
from shared.protocol.retention import Retention
from shared.reading import LiveTimes, Reading
from shared.sockets import listen_tcp, listen_unix
from shared.tasks import background
from shared.tracing import open_tracer
from shared.unix_bus import UnixPublisher
from shared.wake import PAYLOAD_BYTES_MAX, Wake
from shared.web import Bodies, Health, Listener, listen_admin

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_log = logging.getLogger(__name__)

# EX_SOFTWARE: a supervisor sees a stop that was not asked for, and starts the origin anew.
_EXIT_FAILED = 70


def fail_stop(error: BaseException) -> None:
    """End the process at once: what is on disk is unknown, and only recovery can tell."""
    _log.critical("stopping at once: error=%s", error)
    os._exit(_EXIT_FAILED)


def publishers(settings: Settings) -> list[Publisher]:
    """Return the buses that an origin announces on."""
    found: list[Publisher] = []
    if settings.bus_socket is not None:
        found.append(UnixPublisher(settings.bus_socket))
    if settings.redis is not None:
        from shared.redis_bus import RedisPublisher  # which costs a quarter of a start

        found.append(RedisPublisher(settings.redis))
    return found


@dataclass(frozen=True, slots=True)
class Origin:
    """An origin that runs: the lane answers small appends and hot reads, the handlers everything
    else, and the listing operators."""

    lane: Lane
    handlers: Handlers
    listener: Listener
    listing: Listing


@asynccontextmanager
async def open_origin(
    settings: Settings,
    journal: Journal,
    buses: list[Publisher],
    clock: Clock | None = None,
    on_failure: Callable[[BaseException], None] = fail_stop,
    tracer: "Tracer | None" = None,
) -> AsyncIterator[Origin]:
    """Recover, run, and on leaving commit what waits and close the journal.

    Raises:
        CorruptLog: the journal is damaged; nothing is served.
    """
    clock = clock or SystemClock()
    found = recover(journal, str(settings.data_dir / "journal.db"))
    policy = CachePolicy(settings.cache_tail, settings.cache_live_empty, settings.surrogate_keys)
    counted = sum(usage.streams for usage in found.usage.values())
    metrics.STREAMS.set(journal.total().streams + counted)
    catalog = Catalog(
        clock,
        journal,
        found.streams,
        found.deleted,
        found.next_incarnation,
        settings.hot_streams,
    )

    hook = load_hook(settings)
    purger = None if hook is None else Purger(hook)

    def publish(path: str, wake: Wake) -> None:
        for bus in buses:
            bus.publish(path, wake)
        if wake.deleted and purger is not None:
            purger.forget(path)

    reader = Reader(journal, catalog.recent_extents, settings.chunk_bytes)
    # What reads put into messages, a wake's bytes would lack.
    carried_bytes = 0 if settings.json_offsets else PAYLOAD_BYTES_MAX
    announce = publish if buses or purger is not None else None
    ledger = Ledger(catalog, reader, announce, carried_bytes, found)
    committer = Committer(journal, clock, ledger.on_commit, on_failure)
    retention = Retention(settings.retention_age_s, settings.retention_bytes)
    parts = (catalog, committer, ledger, reader, clock, retention)
    if tracer is None:
        streams = Streams(*parts)
    else:
        from origin.traced import TracedStreams  # which imports what is an extra

        streams = TracedStreams(*parts, tracer=tracer)
    reads = Reads(
        catalog,
        committer,
        ledger,
        reader,
        policy,
        clock,
        settings.chunk_bytes,
        json_offsets=settings.json_offsets,
    )
    times = LiveTimes(
        settings.long_poll_timeout_s, settings.sse_timeout_s, settings.sse_heartbeat_s
    )
    reading = Reading(reads, policy, times, clock)
    async with AsyncExitStack() as stack:
        stack.callback(journal.close)
        stack.callback(reader.close)
        committer.start(found.lsn + 1)
        for bus in buses:
            await bus.start()
            stack.push_async_callback(bus.close)
        indexer = Indexer(ledger, journal, on_failure)
        stack.push_async_callback(indexer.apply)
        stack.push_async_callback(committer.close)
        compactor = Compactor(journal, on_failure)
        trimmer = Trimmer(catalog, streams, ledger, journal, clock)
        for work in (compactor, trimmer):
            stack.push_async_callback(work.finish)
        if settings.registry:
            await streams.open_registry()
        bodies = Bodies(settings.body_bytes_max)
        prefix = settings.stream_prefix
        handlers = Handlers(streams, reads, reading, prefix, settings.public_url, bodies)
        listener = Listener(
            handlers.handle, settings.keepalive_timeout_s, settings.header_timeout_s
        )
        lane = Lane(
            streams,
            reads,
            committer,
            listener,
            prefix,
            policy,
            clock,
            body_bytes_max=settings.body_bytes_max,
            header_timeout_s=settings.header_timeout_s,
            keepalive_timeout_s=settings.keepalive_timeout_s,
        )
        upkeep = (indexer.keep(), compactor.keep(), trimmer.keep(), reap(catalog, streams))
        kept = [or_stop(work, on_failure) for work in upkeep]
        if purger is not None:
            kept.append(or_stop(purger.keep(), on_failure))
        await stack.enter_async_context(background(*kept, lane.sweep()))
        listing = Listing(catalog, ledger, journal, prefix)
        yield Origin(lane, handlers, listener, listing)


async def drain(origin: Origin, window_s: float, margin_s: float = 1.0) -> None:
    """Let everyone who waits go within a window, then answer what was sent, and close.

    Until the last reader has left, everything else goes on as ever: nobody takes our place.

    Args:
        margin_s: how long replies may take that were begun in time.
    """
    reading, listener = origin.handlers.reading, origin.listener
    reading.release(window_s)
    await reading.released()
    listener.draining = True
    await origin.lane.drain(margin_s)
    # Then, and not meanwhile: until its end the lane brings connections, with requests to answer.
    await listener.drain(margin_s)


async def run(settings: Settings, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Serve until stop is set, then drain."""
    journal = SqliteJournal(settings.data_dir)
    async with (
        open_tracer(settings) as tracer,
        open_origin(settings, journal, publishers(settings), tracer=tracer) as origin,
    ):
        health = Health(more=origin.listing.answer)
        admin = Listener(health.handle, counted=False)
        await listen_admin(admin, settings)
        if settings.socket is not None:
            sock = listen_unix(settings.socket)
            where = f"unix:{settings.socket}"
        else:
            sock = listen_tcp(settings.host, settings.port)
            where = f"http://{settings.host}:{sock.getsockname()[1]}"
        await origin.lane.listen(sock)
        health.ready = True
        announce(where)
        await stop.wait()
        health.ready = False
        await drain(origin, settings.drain_s)
        await admin.drain(0)
