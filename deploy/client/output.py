"""Where data goes: standard output or a file; and when nobody reads it any more."""

import asyncio
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


def say(text: str) -> None:
    """Tell the person one line, beside the data."""
    print(f"headwater: {text}", file=sys.stderr, flush=True)


class Output:
    """Standard output, or a file, which is touched once there is an answer."""

    def __init__(self, path: str | None = None) -> None:
        self._path = None if path == "-" else path
        self._stream: BinaryIO | None = None

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *error: object) -> None:
        if self._path is not None and self._stream is not None:
            self._stream.close()

    def write(self, data: bytes) -> None:
        """Write data where the next command of a pipe sees it at once."""
        if self._stream is None:
            self._stream = sys.stdout.buffer if self._path is None else open(self._path, "wb")  # noqa: SIM115
        self._stream.write(data)
        self._stream.flush()


def silence_output() -> None:
    """Lead standard output nowhere: Python would complain when it flushes what nobody reads."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Leave the block with BrokenPipeError once nobody reads standard output, even if it is idle.

    So that `tail | grep -m 1 done` ends with grep, and not with the message after it.
    """
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        loop.remove_reader(output)
        task.cancel()

    try:
        output = sys.stdout.fileno()
        watched = stat.S_ISFIFO(os.fstat(output).st_mode)
    except (OSError, ValueError):  # standard output is closed, or no file
        output, watched = -1, False
    if watched:
        # The writing end of a pipe turns readable when the reading end is closed, and only then.
        loop.add_reader(output, leave)
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            raise BrokenPipeError from None
        raise
    finally:
        if watched:
            loop.remove_reader(output)
