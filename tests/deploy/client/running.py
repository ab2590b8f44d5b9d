"""Runs a command in this process, on standard streams of its own."""

import argparse
import asyncio
import contextlib
import io
import sys
from dataclasses import dataclass

from deploy.client.commands import add_client_commands


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: bytes
    err: str


class Input(io.BytesIO):
    """Standard input that arrives in pieces of at most so many bytes, as from a pipe."""

    def __init__(self, data: bytes, piece_bytes: int) -> None:
        super().__init__(data)
        self._piece_bytes = piece_bytes

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(min(size or 0, self._piece_bytes))


def run(*argv: str, stdin: bytes = b"", piece_bytes: int = 1 << 20) -> Done:
    """Run a command in this process, on standard streams of its own."""
    parser = argparse.ArgumentParser(prog="headwater")
    add_client_commands(parser.add_subparsers(required=True))
    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(Input(stdin, piece_bytes))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                args = parser.parse_args(argv)
                code = args.run(args)
            except SystemExit as stopped:
                code = int(stopped.code or 0)
    finally:
        sys.stdin = before
    out.flush()
    err.flush()
    assert isinstance(out.buffer, io.BytesIO)
    assert isinstance(err.buffer, io.BytesIO)
    return Done(code, out.buffer.getvalue(), err.buffer.getvalue().decode())


async def run_beside(*argv: str, stdin: bytes = b"", piece_bytes: int = 1 << 20) -> Done:
    """Run a command while this event loop serves it."""
    return await asyncio.to_thread(run, *argv, stdin=stdin, piece_bytes=piece_bytes)
