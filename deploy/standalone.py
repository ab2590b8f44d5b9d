"""Standalone: origin and edges as one service, whose processes start, stop and drain in order."""

import asyncio
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from deploy.admin import Admin
from deploy.child import Child, StartFailed
from deploy.layout import lay_out
from shared.config import Settings
from shared.tasks import background
from shared.web import Listener, listen_admin

_STOP_MARGIN_S: Final = 10.0


async def run(settings: Settings, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Run the service until stop is set, then drain it: edges first, so that no write is cut
    off.

    Raises:
        StartFailed: a process did not start, or the port is taken.
    """
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
    tiers = [
        [Child(process.command, process.settings) for process in tier]
        for tier in lay_out(settings, folder, port)
    ]
    children = [child for tier in tiers for child in tier]
    sockets = {child.role: child.admin_socket for child in children}
    admin = Admin(sockets, settings.stream_prefix)
    listener = Listener(admin.handle, counted=False)
    admin_port = await listen_admin(listener, settings)
    stack.push_async_callback(listener.drain, 0)
    for tier in tiers:
        stack.push_async_callback(_stop, tier, settings.drain_s + _STOP_MARGIN_S)
        await _start(tier)
    async with background(*(child.keep() for child in children)):
        url = f"http://{_shown(settings.host)}:{port}"
        announce(url)
        _hint(url, f"http://{_shown(settings.admin_host)}:{admin_port}", settings)
        await stop.wait()
        admin.draining = True
    # What the stack was given comes now: tiers stop, the last one first.


async def _start(tier: list[Child]) -> None:
    try:
        async with asyncio.TaskGroup() as starting:
            for child in tier:
                starting.create_task(child.start())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # the others were ended for its sake, or say the same


async def _stop(tier: list[Child], patience_s: float) -> None:
    await asyncio.gather(*(child.stop(patience_s) for child in tier))


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
