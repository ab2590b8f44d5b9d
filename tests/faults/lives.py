"""An origin that is killed and started again on the same folder, as often as a test likes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.service import ROOT, _free_port

READY_TIMEOUT_S = 30.0


class Origin:
    """One life after another of `python -m origin`, at one port.

    A successor is started while its predecessor still runs, and waits for the folder: so a life
    begins within a moment of the end of the one before it, and not after Python's own start.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self.data = folder / "data"
        self.bus = folder / "bus"
        self.log = folder / "origin.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.kills = 0
        self._flags = [
            *("--port", str(self.port), "--admin-port", "0", "--data-dir", str(self.data)),
            *("--bus-socket", str(self.bus), *flags),
        ]
        self._process: asyncio.subprocess.Process | None = None
        self._next: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in (self._next, self._process):
            if process is not None:
                await _end(process)
        if error is not None and self.log.exists():
            error.add_note(f"--- origin.log\n{self.log.read_text()[-4000:]}")

    async def start(self) -> None:
        """Begin a life, and return once it serves."""
        process = self._process = self._next or await self._spawn()
        self._next = None
        assert process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT_S):
            line = await process.stdout.readline()
        assert self.url in line.decode(), (
            f"the origin did not start: {self.log.read_text()[-4000:]}"
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def prepare(self) -> None:
        """Start the successor, which waits at most 5 s for the folder."""
        if self._next is None:
            self._next = await self._spawn()

    async def kill(self) -> None:
        """End the life at once, without a word (SIGKILL)."""
        assert self._process is not None
        code = await _end(self._process)
        assert code == -signal.SIGKILL, f"it had ended before: {self.log.read_text()[-4000:]}"
        self.kills += 1

    async def kill_while_it_starts(self, after_s: float) -> None:
        """Let the successor take the folder, and kill it while it recovers."""
        await self.prepare()
        successor, self._next = self._next, None
        assert successor is not None
        await asyncio.sleep(after_s)
        await _end(successor)
        self.kills += 1

    async def stop(self) -> int:
        """End the life as an operator does (SIGTERM); return the exit code."""
        assert self._process is not None
        self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), READY_TIMEOUT_S)

    async def _spawn(self) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "origin", *self._flags),
                cwd=ROOT,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )


async def _end(process: asyncio.subprocess.Process) -> int:
    """Kill a process, if it runs; return how it ended."""
    if process.returncode is None:
        process.kill()
    code = await process.wait()
    transport = process._transport  # type: ignore[attr-defined]
    transport.close()  # of its pipes; else the loop's end would warn of them
    return code
