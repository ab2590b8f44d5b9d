"""Process: one role of the service as a program: settings, signals, exit codes."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import uvloop

from shared import logs
from shared.collector import collect_for_ever
from shared.config import BadSetting, Settings, add_flags, load
from shared.tasks import background
from shared.web import watch_loop_delay

EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 1

Run = Callable[[Settings, asyncio.Event, Callable[[str], None]], Awaitable[None]]


def serve(command: str, given: Mapping[str, Any], run: Run) -> int:
    """Run a command until it is told to stop; return the exit code."""
    try:
        settings = load(command, given)
    except BadSetting as error:
        print(f"headwater {command}: {error}", file=sys.stderr)
        return EXIT_USAGE
    return run_role(settings.role or command, settings, run)


def run_role(role: str, settings: Settings, run: Run) -> int:
    """Run one role until it is told to stop; return the exit code.

    Args:
        role: what the process is called in its logs and its ready line.
    """
    logs.set_up(role, settings.log_level)
    # The commit thread has its turn soon: 5 ms, the default, is many fsyncs long.
    sys.setswitchinterval(0.0005)

    def announce(where: str) -> None:
        print(f"headwater {role} is ready at {where}", flush=True)

    try:
        uvloop.run(_until_signalled(settings, run, announce))
    except Exception as error:
        # Whatever ends a start ends it with one line that says what and where.
        print(f"headwater {role}: {error or type(error).__name__}", file=sys.stderr)
        if settings.log_level == "debug":
            raise
        return EXIT_USAGE if isinstance(error, BadSetting) else EXIT_FAILED
    return 0


async def _until_signalled(settings: Settings, run: Run, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if settings.supervised:
        # Ctrl-C reaches the whole foreground group, and the parent says in which order to stop. If
        # the parent dies without a word, its end of the pipe closes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_reader(0, _on_parent, loop, stop)
    else:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    async with background(watch_loop_delay(), collect_for_ever()):
        await run(settings, stop, announce)


def _on_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(0, 4096):
        loop.remove_reader(0)
        stop.set()


def main(command: str, run: Run) -> int:
    """Parse a command line of one role, and run it."""
    parser = argparse.ArgumentParser(prog=f"python -m {command}")
    add_flags(parser, command)
    return serve(command, vars(parser.parse_args()), run)
