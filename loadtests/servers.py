"""The servers that scenarios measure: each fresh, on files of its own, stopped by its pid."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.client import Target
from loadtests.exposition import counter_sum
from loadtests.launch import KNOWN, ROOT, CannotStart, Launch, Options
from loadtests.proc import Tree
from loadtests.speech import Speech

READY_S: Final = 30.0
STOP_S: Final = 30.0
_URL: Final = re.compile(r"http://[\w.]+:\d+")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    name: str
    url: str
    pid: int
    launch: Launch

    @property
    def speech(self) -> Speech:
        """Return how it is spoken to."""
        return self.launch.speech

    def edges(self) -> Tree:
        """Return Headwater's edges and the shield behind them; of other servers, all processes."""
        tree = Tree(self.pid)
        edges = tree.named("hw-edge", "hw-shield")
        return edges if edges.pids else tree

    def metrics(self) -> str | None:
        """Return its metrics in Prometheus' text format; None where there are none."""
        if self.launch.metrics_url is None:
            return None
        with urllib.request.urlopen(self.launch.metrics_url, timeout=60) as reply:
            text: str = reply.read().decode()
            return text

    def counter(self, name: str) -> float | None:
        """Return the sum of a counter over its labels; None where there is none."""
        text = self.metrics()
        return None if text is None else counter_sum(text, name)


def raise_descriptor_limit() -> None:
    """Let this process and those it starts open as many files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@contextmanager
def running(name: str, parent: Path, options: Options) -> Iterator[Server]:
    """Start a server on a new folder under `parent`; stop it and remove the folder at the end.

    Raises:
        CannotStart: it was not ready within READY_S, or is not installed.
    """
    with tempfile.TemporaryDirectory(prefix=f"loadtests-{name}-", dir=parent) as folder:
        data = Path(folder) / "data"
        data.mkdir()
        launch = KNOWN[name](data, options)
        output, log = Path(folder) / "stdout", Path(folder) / "stderr"
        with output.open("wb") as out, log.open("wb") as err:
            # Its own session, so that Ctrl-C stops it here, after its readers, and not at once.
            process = subprocess.Popen(
                launch.command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True
            )
        try:
            url = _wait_until_ready(name, process, launch, output, log)
            yield Server(name, url, process.pid, launch)
        finally:
            _stop(process)


def _wait_until_ready(
    name: str, process: subprocess.Popen[bytes], launch: Launch, output: Path, log: Path
) -> str:
    # Each process that is to face readers takes a part of a second to start, on a core of its own.
    patience_s = READY_S + launch.processes
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if launch.url is not None and _serves(process.pid, launch):
            return launch.url
        whole_lines, _, _ = output.read_text(errors="replace").rpartition("\n")
        ready = _URL.search(whole_lines)
        if ready:
            return ready.group()
        if process.poll() is not None:
            break
        time.sleep(0.02)
    state = "was not ready" if process.poll() is None else f"ended with {process.returncode}"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise CannotStart(f"{name} {state} within {patience_s:.0f} s; the end of its log:\n{tail}")


def _serves(pid: int, launch: Launch) -> bool:
    """Return whether it listens, and all its processes are there: one listens before it forks."""
    target = Target.of(launch.url or "")
    with socket.socket() as probe:
        listens = probe.connect_ex((target.host, target.port)) == 0
    return listens and len(Tree(pid).pids) > launch.processes


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its session, and so its children, are its own
        process.wait()
