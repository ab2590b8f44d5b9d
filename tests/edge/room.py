"""A room of readers who wait: descriptors before an edge without HTTP, and a desk that keeps all
it is told."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from edge import seats as states
from edge.groups import Crowd, Group
from edge.outbox import Outbox
from edge.parked import Parked
from edge.seats import NEVER, Seats
from shared.plain import Plain
from shared.protocol.caching import CachePolicy
from shared.protocol.request import Live, Read
from shared.wake import Wake
from tests.edge.following import PATH, Edge, edge, turn, until

END = b"0\r\n\r\n"


class Room:
    """Readers of one stream, and where they go to."""

    def __init__(self, here: Edge) -> None:
        self.here = here
        self.seats = Seats()
        self.outbox = Outbox()
        self.parked = Parked(
            self.seats, self.outbox, self, here.tails, here.source, CachePolicy(), here.clock
        )
        self.far: dict[int, socket.socket] = {}
        self.done: list[tuple[int, bool]] = []  # descriptors answered, and whether they are kept
        self.closed: list[tuple[int, str | None]] = []

    # --- the desk --------------------------------------------------------------------------------

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        self.seats.rest(fds, NEVER)
        self.done += ((fd, keep_alive) for fd in fds)

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        if fd in self.outbox:
            self.outbox.add(fd, (payload,))
        else:
            self.outbox.keep(fd, (payload,), sent, self.here.clock.monotonic_s())

    def close(self, fd: int, reason: str | None = None) -> None:
        if isinstance(self.seats.party[fd], Group):
            self.parked.leave(fd)
        self.seats.free(fd)
        self.outbox.drop(fd)
        self.closed.append((fd, reason))
        os.close(fd)

    # --- readers ---------------------------------------------------------------------------------

    async def poll(self, offset: str, **asked: str) -> int:
        """Let a long-poll wait at an offset."""
        return await self.join(Plain(PATH, Read(offset, Live.LONG_POLL, **asked), True))

    async def stream(self, offset: str, **asked: str) -> int:
        """Let an event stream wait at an offset."""
        return await self.join(Plain(PATH, Read(offset, Live.SSE, **asked), True))

    async def join(self, plain: Plain, near: int | None = None) -> int:
        chunk = await self.here.source.join(PATH, plain.asked.offset)
        assert chunk.empty
        ours, theirs = socket.socketpair()
        fd = ours.detach()
        if near is not None and near != fd:
            os.dup2(fd, near)
            os.close(fd)
            fd = near
        os.set_blocking(fd, False)
        theirs.setblocking(False)
        self.far[fd] = theirs
        self.seats.take(fd, states.PARKED, NEVER)
        self.parked.park(fd, plain, chunk)
        return fd

    def leave(self, fd: int) -> None:
        """Let a reader break off."""
        self.far.pop(fd).close()
        self.close(fd)

    def got(self, fd: int) -> bytes:
        """Return what has come to a reader since it was asked last."""
        try:
            return self.far[fd].recv(1 << 20)
        except BlockingIOError:
            return b""

    def peek(self, fd: int) -> bytes:
        """Return what has come to a reader, and leave it there."""
        try:
            return self.far[fd].recv(1 << 20, socket.MSG_PEEK)
        except BlockingIOError:
            return b""

    @property
    def groups(self) -> list[Group]:
        return list(self.parked._groups)

    @property
    def crowds(self) -> dict[str, Crowd]:
        return self.parked._groups._crowds

    @property
    def busy(self) -> bool:
        parked = self.parked
        return bool(parked.busy or parked._stirred or parked._turn)

    async def settle(self) -> None:
        await until(lambda: not self.busy and not any(g.fetching for g in self.groups))

    def wake(self, more: bytes) -> Wake:
        """Let the stream grow, and its wake come."""
        wake = self.here.append(more)
        self.here.wake(wake)
        return wake


@asynccontextmanager
async def room(data: bytes) -> AsyncIterator[Room]:
    async with edge(data) as here:
        made = Room(here)
        try:
            yield made
        finally:
            made.parked.close()
            await turn()
            for fd, theirs in made.far.items():
                theirs.close()
                if made.seats.state[fd] != states.FREE:
                    made.close(fd)


def heard(stream: bytes) -> list[bytes]:
    """Return the lines of data in an event stream."""
    return [
        line[5:] for line in stream.split(b"\n") if line.startswith(b"data:") and line[5:6] != b"{"
    ]
