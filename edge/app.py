"""Wiring and lifecycle of an edge, no logic."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.chunks import Chunks
from edge.coalesce import Coalescer
from edge.handlers import Handlers
from edge.lane import Bounds, Lane, Parking
from edge.lines import Lines
from edge.parked import Parked
from edge.relay import Relay
from edge.source import EdgeSource
from edge.tails import Tails
from edge.upstream import Upstream
from shared import metrics
from shared.bus import Subscriber
from shared.clock import Clock, SystemClock
from shared.config import Settings
from shared.descriptors import claim_descriptors
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.reading import LiveTimes, Reading
from shared.sockets import listen_tcp, listen_unix
from shared.tracing import open_tracer
from shared.unix_bus import UnixSubscriber
from shared.web import Bodies, Health, Listener, listen_admin

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def subscriber(settings: Settings) -> Subscriber | None:
    """Return the bus that an edge hears of news by, if it has one."""
    if settings.redis is not None:
        from shared.redis_bus import RedisSubscriber  # which costs a quarter of a start

        return RedisSubscriber(settings.redis)
    if settings.bus_socket is not None:
        return UnixSubscriber(settings.bus_socket)
    return None


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge that runs: the lane answers reads, the handlers everything else."""

    lane: Lane
    handlers: Handlers


@asynccontextmanager
async def open_edge(
    settings: Settings,
    bus: Subscriber | None,
    clock: Clock | None = None,
    tracer: "Tracer | None" = None,
) -> AsyncIterator[Edge]:
    """Connect, run, and on leaving let go of all connections."""
    clock = clock or SystemClock()
    policy = CachePolicy(settings.cache_tail, settings.cache_live_empty, settings.surrogate_keys)
    times = LiveTimes(
        settings.long_poll_timeout_s, settings.sse_timeout_s, settings.sse_heartbeat_s
    )
    async with AsyncExitStack() as stack:
        upstream = writes = _upstream(settings, settings.upstream_socket)
        stack.push_async_callback(upstream.close)
        if settings.relay_socket is not None:
            writes = _upstream(settings, settings.relay_socket)
            stack.push_async_callback(writes.close)
        await writes.greet()
        reads: Coalescer[tuple[str, str], Chunk] = Coalescer()
        stack.push_async_callback(reads.close)
        parking: Parking = Parked
        if tracer is None:
            tails = Tails(upstream, reads, bus, clock)
        else:
            from edge.traced import TracedParked, TracedTails, Traces  # import what is an extra

            traces = Traces(tracer)
            tails = TracedTails(upstream, reads, bus, clock, traces=traces)
            parking = partial(TracedParked, traces=traces)
        stack.push_async_callback(tails.close)
        await tails.start()
        source = EdgeSource(upstream, tails, reads, Chunks(settings.chunk_cache_bytes), clock)
        reading = Reading(source, policy, times, clock)
        relay = Relay(writes, Bodies(settings.body_bytes_max))
        listener = Listener(
            lambda request: handlers.handle(request),
            settings.keepalive_timeout_s,
            settings.header_timeout_s,
        )
        bounds = Bounds(
            connections=claim_descriptors(settings.connections, settings.upstream_connections),
            header_timeout_s=settings.header_timeout_s,
            keepalive_timeout_s=settings.keepalive_timeout_s,
            body_bytes_max=settings.body_bytes_max,
        )
        metrics.CONNECTIONS_MAX.set(bounds.connections)
        lines = Lines(writes, settings.upstream_timeout_s)
        prefix = settings.stream_prefix
        lane = Lane(source, tails, lines, listener, prefix, policy, times, bounds, clock, parking)
        handlers = Handlers(reading, source, relay, prefix, listener, lane)
        await stack.enter_async_context(lane.running())
        yield Edge(lane, handlers)


def _upstream(settings: Settings, socket: Path | None) -> Upstream:
    return Upstream(
        settings.upstream,
        settings.stream_prefix,
        timeout_s=settings.upstream_timeout_s,
        connections=settings.upstream_connections,
        socket=socket,
    )


async def drain(edge: Edge, window_s: float, margin_s: float = 1.0) -> None:
    """Let everyone who waits go within a window, and finish what is under way.

    Args:
        margin_s: how much longer replies may take that were begun in time.
    """
    lane, listener, reading = edge.lane, edge.handlers.listener, edge.handlers.reading
    listener.draining = True
    lane.release(window_s)
    reading.release(window_s)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + window_s + margin_s
    await lane.drain(window_s + margin_s)
    # Then, and not meanwhile: until its end the lane brings connections, with writes to finish.
    await listener.drain(max(margin_s, end_s - loop.time()))


async def run(settings: Settings, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Serve until stop is set, then drain."""
    async with (
        open_tracer(settings) as tracer,
        open_edge(settings, subscriber(settings), tracer=tracer) as edge,
    ):
        health = Health()
        admin = Listener(health.handle, counted=False)
        await listen_admin(admin, settings)
        if settings.socket is not None:
            edge.lane.listen(listen_unix(settings.socket))
            where = f"unix:{settings.socket}"
        else:
            sock = listen_tcp(settings.host, settings.port, reuse_port=settings.reuse_port)
            where = f"http://{settings.host}:{sock.getsockname()[1]}"
            edge.lane.listen(sock)
        health.ready = True
        announce(where)
        await stop.wait()
        health.ready = False
        await drain(edge, settings.drain_s)
        await admin.drain(0)
