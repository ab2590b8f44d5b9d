"""Standalone: origin and edges as one service, each a process; one that dies is started again."""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from deploy.admin import Admin
from shared.config import EDGE, ORIGIN, PREFIX, Settings
from shared.tasks import background
from shared.web import Listener, listen_admin

_log = logging.getLogger(__name__)

_START_TIMEOUT_S: Final = 600.0  # recovery of a large journal included
_RESTART_FIRST_S: Final = 0.2
_RESTART_MOST_S: Final = 10.0
_STABLE_S: Final = 30.0  # a process that ran this long starts again at once
_STOP_MARGIN_S: Final = 10.0


class StartFailed(Exception):
    """A process ended before it was ready; it has said why itself."""


@dataclass(slots=True)
class Child:
    """One process of the service."""

    role: str
    command: list[str]
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    started_s: float = 0.0
    backoff_s: float = field(default=_RESTART_FIRST_S)

    async def start(self) -> None:
        """Start it, and wait until it says that it is ready.

        Raises:
            StartFailed: it ended, or did not get ready in time.
        """
        self.started_s = asyncio.get_running_loop().time()
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(os.environ),
            stdin=asyncio.subprocess.PIPE,  # held open: the child stops when the parent is gone
        )
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await self.process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await self.stop(0.0)
            raise StartFailed(f"{self.role} did not start")
        self.ready = True

    async def stop(self, patience_s: float) -> None:
        """Ask it to end; after patience_s, end it."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await self.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        self.ready = False


async def run(settings: Settings, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Run the service until stop is set, then drain it: edges first, so that no write is cut
    off."""
    with tempfile.TemporaryDirectory(prefix="headwater-") as folder:
        async with AsyncExitStack() as stack:
            await _run(settings, Path(folder), stop, announce, stack)


async def _run(
    settings: Settings,
    folder: Path,
    stop: asyncio.Event,
    announce: Callable[[str], None],
    stack: AsyncExitStack,
) -> None:
    # Bound but not listening: it keeps the port for the edges, and finds a free one for port 0.
    reserved = stack.enter_context(_reserve(settings))
    port = int(reserved.getsockname()[1])
    origin, edges = _children(settings, folder, port)
    children = [origin, *edges]
    sockets = {child.role: folder / f"{child.role}.admin" for child in children}
    admin = Admin(sockets, settings.stream_prefix)
    listener = Listener(admin.handle)
    admin_port = await listen_admin(listener, settings)
    stack.push_async_callback(listener.drain, 0)
    patience_s = settings.drain_s + _STOP_MARGIN_S
    stack.push_async_callback(origin.stop, patience_s)
    await origin.start()
    for edge in edges:
        stack.push_async_callback(edge.stop, patience_s)
    await asyncio.gather(*(edge.start() for edge in edges))
    async with background(*(_keep(child) for child in children)):
        url = f"http://{_shown(settings.host)}:{port}"
        announce(url)
        _hint(url, f"http://{_shown(settings.admin_host)}:{admin_port}", settings)
        await stop.wait()
        admin.draining = True
    await asyncio.gather(*(edge.stop(patience_s) for edge in edges))
    await origin.stop(patience_s)


def _children(settings: Settings, folder: Path, port: int) -> tuple[Child, list[Child]]:
    bus, upstream = folder / "bus", folder / "origin"
    shared = replace(settings, bus_socket=bus, supervised=True)
    origin = _child(
        ORIGIN,
        replace(shared, socket=upstream, role="origin", admin_socket=folder / "origin.admin"),
    )
    edges = [
        _child(
            EDGE,
            replace(
                shared,
                port=port,
                reuse_port=True,
                upstream_socket=upstream,
                # Redis is for edges elsewhere: here the socket is nearer, and never away.
                redis=None,
                role=f"edge-{number}",
                admin_socket=folder / f"edge-{number}.admin",
            ),
        )
        for number in range(settings.edges)
    ]
    return origin, edges


def _child(command: str, settings: Settings) -> Child:
    return Child(settings.role, [sys.executable, "-m", command, *settings.flags(command)])


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without settings: a child gets all of its own as flags."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIX)}


async def _keep(child: Child) -> None:
    """Start a process again whenever it ends."""
    loop = asyncio.get_running_loop()
    while True:
        assert child.process is not None
        code = await child.process.wait()
        child.ready = False
        if loop.time() - child.started_s > _STABLE_S:
            child.backoff_s = _RESTART_FIRST_S
        _log.error(
            "process ended, starting it again: role=%s code=%s in_s=%.1f",
            child.role,
            code,
            child.backoff_s,
        )
        await asyncio.sleep(child.backoff_s)
        child.backoff_s = min(child.backoff_s * 2, _RESTART_MOST_S)
        with suppress(StartFailed, OSError):  # OSError: no process can be had just now
            await child.start()


def _reserve(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # A port that another program listens on must be an error, and SO_REUSEPORT would share it.
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise StartFailed(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            ) from None
        port = probe.getsockname()[1]
    held = socket.socket(family)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((settings.host, port))
    return held


def _shown(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


def _hint(url: str, admin: str, settings: Settings) -> None:
    """Tell a person at the terminal what to do next; standard output has the ready line alone."""
    stream = f"{url}{settings.stream_prefix}hello"
    print(
        f"try:   curl -X PUT -H 'Content-Type: text/plain' -d 'hello, stream' {stream}"
        f" && curl '{stream}?offset=-1'\nadmin: {admin}/readyz {admin}/metrics",
        file=sys.stderr,
        flush=True,
    )
