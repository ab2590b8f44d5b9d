"""python -m loadtests.locusts.held DESCRIPTOR: a swarm in a process of its own.

A process that locust has gevent run in has no epoll of its own any more, and its core is busy with
statistics.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from loadtests.orders import SwarmOrder
from loadtests.swarm import swarm


def main(descriptor: str) -> None:
    """Take an order from the pipe at a descriptor, and obey until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group; locust ends us
    pipe = Connection(int(descriptor))
    order = pipe.recv()
    assert isinstance(order, SwarmOrder)
    with suppress(EOFError, ConnectionError):
        swarm(pipe, order)


if __name__ == "__main__":
    main(*sys.argv[1:])
