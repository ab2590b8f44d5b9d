"""CPU, memory and accept queues as Linux counts them."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from loadtests import proc
from loadtests.proc import Elsewhere, Tree, accept_queue

# A parent that waits while its child works until its input ends.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import os, sys\\nheld = b'x' * 30_000_000\\n"
    "while os.times().user < 0.1: pass\\nprint('worked', flush=True)\\nsys.stdin.read()"])
child.wait()
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "worked\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def test_a_server_costs_what_its_children_cost(family: subprocess.Popen[str]) -> None:
    tree = Tree(family.pid)
    assert len(tree.pids) == 2
    assert tree.cpu_s() >= 0.1
    memory = tree.memory()
    assert 30_000_000 < memory.uss <= memory.pss


def test_an_idle_server_settles(family: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    last_busy = Tree(family.pid).settle(quiet_s=0.1, limit_s=30)
    assert last_busy is not None
    assert began <= last_busy < began + 30


def test_a_process_that_ended_costs_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    tree = Tree(process.pid)
    assert tree.cpu_s() == 0
    assert tree.memory().pss == 0


def test_accept_queue_counts_who_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        assert accept_queue(address[1]) == 0
        with socket.create_connection(address), socket.create_connection(address):
            assert accept_queue(address[1]) == 2
            listener.accept()[0].close()
            assert accept_queue(address[1]) == 1


def test_elsewhere_is_what_the_machine_does_beside_this_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, own, clock = iter([100.0, 103.0]), iter([40.0, 42.0]), iter([7.0, 9.0])
    monkeypatch.setattr(proc, "_machine_busy_s", lambda: next(machine))
    monkeypatch.setattr(Tree, "cpu_s", lambda _: next(own))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert Elsewhere().cores() == 0.5


def test_the_whole_machine_is_at_least_as_busy_as_this_process() -> None:
    machine, own = proc._machine_busy_s(), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert proc._machine_busy_s() - machine >= 0.1
