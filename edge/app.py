"""Wiring and lifecycle of an edge, no logic."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from edge.chunks import Chunks
from edge.coalesce import Coalescer
from edge.handlers import Handlers
from edge.relay import Relay
from edge.source import EdgeSource
from edge.tails import Tails
from edge.upstream import Upstream
from shared.bus import Subscriber
from shared.clock import Clock, SystemClock
from shared.config import Settings
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.reading import LiveTimes, Reading
from shared.redis_bus import RedisSubscriber
from shared.unix_bus import UnixSubscriber
from shared.web import Bodies, Health, Listener, listen_admin


def subscriber(settings: Settings) -> Subscriber | None:
    """Return the bus that an edge hears of news by, if it has one."""
    if settings.redis is not None:
        return RedisSubscriber(settings.redis)
    if settings.bus_socket is not None:
        return UnixSubscriber(settings.bus_socket)
    return None


@asynccontextmanager
async def open_edge(
    settings: Settings, bus: Subscriber | None, clock: Clock | None = None
) -> AsyncIterator[Handlers]:
    """Connect, run, and on leaving let go of all connections."""
    clock = clock or SystemClock()
    policy = CachePolicy(settings.cache_tail, settings.cache_live_empty)
    times = LiveTimes(
        settings.long_poll_timeout_s, settings.sse_timeout_s, settings.sse_heartbeat_s
    )
    async with AsyncExitStack() as stack:
        upstream = Upstream(
            settings.upstream,
            settings.stream_prefix,
            timeout_s=settings.upstream_timeout_s,
            connections=settings.upstream_connections,
            socket=settings.upstream_socket,
        )
        stack.push_async_callback(upstream.close)
        reads: Coalescer[tuple[str, str], Chunk] = Coalescer()
        stack.push_async_callback(reads.close)
        tails = Tails(upstream, reads, bus, clock)
        stack.push_async_callback(tails.close)
        await tails.start()
        chunks = Chunks(settings.chunk_cache_bytes)
        source = EdgeSource(upstream, tails, reads, chunks, clock)
        reading = Reading(source, policy, times, clock)
        relay = Relay(upstream, Bodies(settings.body_bytes_max))
        yield Handlers(reading, source, relay, settings.stream_prefix)


async def run(settings: Settings, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Serve until stop is set, then drain."""
    async with open_edge(settings, subscriber(settings)) as handlers:
        health = Health()
        admin, listener = Listener(health.handle), Listener(handlers.handle)
        await listen_admin(admin, settings)
        port = await listener.listen(
            host=settings.host, port=settings.port, reuse_port=settings.reuse_port
        )
        health.ready = True
        announce(f"http://{settings.host}:{port}")
        await stop.wait()
        health.ready = False
        handlers.reading.release(settings.drain_s)
        await listener.drain(settings.drain_s + 1.0)
        await admin.drain(0)
