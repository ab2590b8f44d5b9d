"""Child: one process of the service; forked with all imports done, and started again if it dies."""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

from shared.config import EDGE, ORIGIN, Settings
from shared.process import run_role

_log = logging.getLogger(__name__)

_START_TIMEOUT_S: Final = 600.0  # recovery of a large journal included
_RESTART_FIRST_S: Final = 0.2
_RESTART_MOST_S: Final = 10.0
_STABLE_S: Final = 30.0  # a process that ran this long starts again at once
_CODE_TIMEOUT_S: Final = 1.0  # between a process's end and what the fork server says of it

_forkserver = multiprocessing.get_context("forkserver")
# `__main__` is `headwater` itself: each child would run its imports anew otherwise.
_forkserver.set_forkserver_preload(["__main__", "deploy.forked"])
# multiprocessing keeps books of its children without a lock, so one thread makes all its calls.
_calls = ThreadPoolExecutor(1, "fork")


class StartFailed(Exception):
    """A process ended before it was ready; it has said why itself."""


@dataclass(slots=True)
class Child:
    """One process of the service.

    Its standard input and output are a socket to us. A line on it says that it is ready; its end
    of input tells it to stop, whether we ask for that or are gone; and the end of its output is
    the end of the process. So none of it depends on the fork server, which may be killed: the next
    start of a child brings a new one.
    """

    command: str
    settings: Settings
    started_s: float = 0.0
    backoff_s: float = field(default=_RESTART_FIRST_S)
    _process: ForkServerProcess | None = None
    _output: asyncio.StreamReader | None = None
    _input: asyncio.StreamWriter | None = None

    @property
    def role(self) -> str:
        return self.settings.role

    @property
    def admin_socket(self) -> Path:
        assert self.settings.admin_socket is not None
        return self.settings.admin_socket

    async def start(self) -> None:
        """Start it, and wait until it says that it is ready.

        Raises:
            StartFailed: it ended, or did not get ready in time.
        """
        loop = asyncio.get_running_loop()
        self.started_s = loop.time()
        ours, theirs = socket.socketpair()
        self._output, self._input = await asyncio.open_unix_connection(sock=ours)
        with theirs:
            self._process = _forkserver.Process(
                target=_run, args=(self.command, self.settings, theirs), name=self.role
            )
            try:
                await loop.run_in_executor(_calls, self._process.start)
            except (OSError, EOFError) as error:  # no memory, or the fork server died just now
                self._input.close()
                raise StartFailed(f"{self.role} cannot be forked: {error}") from None
        line = b""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await self._output.readline()
        if not line:
            await self.stop(0.0)
            raise StartFailed(f"{self.role} did not start")

    async def ended(self) -> int | None:
        """Wait until it has ended; return its exit code, or None if nobody knows."""
        assert self._process is not None
        assert self._output is not None
        with suppress(ConnectionError):
            while await self._output.read(4096):
                pass
        assert self._input is not None
        self._input.close()
        if self._process.pid is None:
            return None  # it was never there
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(_calls, self._process.join, _CODE_TIMEOUT_S)
        return self._process.exitcode

    async def stop(self, patience_s: float) -> None:
        """Ask it to end; after patience_s, end it."""
        if self._process is None or self._input is None or self._input.is_closing():
            return
        self._input.write_eof()
        try:
            async with asyncio.timeout(patience_s):
                await self.ended()
        except TimeoutError:
            # Its output is open, so it lives, and its id is its own.
            assert self._process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            await self.ended()

    async def keep(self) -> None:
        """Start it again whenever it ends."""
        loop = asyncio.get_running_loop()
        while True:
            code = await self.ended()
            if loop.time() - self.started_s > _STABLE_S:
                self.backoff_s = _RESTART_FIRST_S
            _log.error(
                "process ended, starting it again: role=%s code=%s in_s=%.1f",
                self.role,
                code,
                self.backoff_s,
            )
            await asyncio.sleep(self.backoff_s)
            self.backoff_s = min(self.backoff_s * 2, _RESTART_MOST_S)
            with suppress(StartFailed, OSError):  # OSError: no descriptor can be had just now
                await self.start()


def _run(command: str, settings: Settings, channel: socket.socket) -> None:
    """Be a child."""
    for descriptor in (0, 1):
        os.dup2(channel.fileno(), descriptor)
    channel.close()
    with suppress(OSError):  # for people who look at the list of processes; 15 bytes at most
        Path("/proc/self/comm").write_text(f"hw-{settings.role}")
    # In memory already: whoever supervises needs neither.
    if command == ORIGIN:
        from origin.app import run
    else:
        assert command == EDGE
        from edge.app import run
    sys.exit(run_role(settings.role, settings, run))
