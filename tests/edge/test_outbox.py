"""What the kernel did not take: all of it arrives, in order, within bounds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from edge.outbox import STALLED_S, Outbox


@pytest.fixture
def pair() -> Iterator[tuple[int, socket.socket]]:
    """A descriptor to write to that takes little, and the other end."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.setblocking(False)
    far.settimeout(5)
    with near, far:
        yield near.fileno(), far


def take(far: socket.socket, size: int) -> bytes:
    return far.recv(size, socket.MSG_WAITALL)


def test_what_fits_is_sent_at_once_and_nothing_is_kept(pair: tuple[int, socket.socket]) -> None:
    fd, far = pair
    outbox = Outbox()

    assert outbox.send(fd, (b"head", b"body"), 0.0)

    assert take(far, 8) == b"headbody"
    assert len(outbox) == 0


def test_all_of_it_arrives_in_order(pair: tuple[int, socket.socket]) -> None:
    fd, far = pair
    outbox = Outbox()
    parts = (os.urandom(100_000), os.urandom(1), os.urandom(50_000))

    assert not outbox.send(fd, parts, 0.0)
    assert not outbox.send(fd, (b"later", b"too"), 0.0)

    received = b""
    while not outbox.flush(fd, 0.0):
        received += far.recv(1 << 16)
    received += take(far, len(b"".join(parts)) + 8 - len(received))
    assert received == b"".join(parts) + b"latertoo"
    assert len(outbox) == 0
    assert outbox.flush(fd, 0.0)


def test_reader_is_full_once_more_waits_than_the_backlog_allows(
    pair: tuple[int, socket.socket],
) -> None:
    fd, _ = pair
    outbox = Outbox(backlog_bytes=10_000)
    while outbox.send(fd, (b"x" * 4096,), 0.0):
        assert not outbox.is_full(fd)

    outbox.add(fd, (b"x" * 5000,))
    assert not outbox.is_full(fd)
    outbox.add(fd, (b"x" * 5000,))
    assert outbox.is_full(fd)

    outbox.drop(fd)
    assert not outbox.is_full(fd)


def test_broken_connection_is_told(pair: tuple[int, socket.socket]) -> None:
    fd, far = pair
    far.close()

    with pytest.raises(BrokenPipeError):
        Outbox().send(fd, (b"x",), 0.0)


def test_reader_without_progress_is_found_and_others_are_spared() -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    outbox = Outbox()
    try:
        for near, _ in pairs:
            near.setblocking(False)
            assert not outbox.send(near.fileno(), (b"x" * 1_000_000,), 0.0)
        slow, moving, gone = (near.fileno() for near, _ in pairs)
        pairs[1][1].recv(1 << 16)
        assert not outbox.flush(moving, STALLED_S)
        outbox.drop(gone)

        assert outbox.stalled(STALLED_S) == []
        assert outbox.stalled(STALLED_S + 1) == [slow]
        assert outbox.stalled(2 * STALLED_S + 1) == [slow, moving]
    finally:
        for near, far in pairs:
            near.close()
            far.close()


def test_bodies_that_many_wait_for_count_once_and_too_many_of_them_cost_the_slowest() -> None:
    pairs = [socket.socketpair() for _ in range(12)]
    outbox = Outbox()
    shared = bytes(10_000_000)
    try:
        for near, _ in pairs:
            near.setblocking(False)
            outbox.send(near.fileno(), (b"head", shared), 0.0)
        assert outbox.stalled(1.0) == []

        outbox.drop(pairs[0][0].fileno())
        for near, _ in pairs[1:9]:
            outbox.drop(near.fileno())
            outbox.send(near.fileno(), (bytes(10_000_000),), 0.0)
        # The longest without progress: those who have waited for the shared one all along.
        assert outbox.stalled(1.0)[:3] == [near.fileno() for near, _ in pairs[9:]]

        for near, _ in pairs[1:]:
            outbox.drop(near.fileno())
        assert outbox.stalled(1.0) == []
    finally:
        for near, far in pairs:
            near.close()
            far.close()
