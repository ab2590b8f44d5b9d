"""Groups: readers who wait at one place of a stream for the same bytes."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from edge.seats import Party, Seats
from edge.tail import Tail
from edge.tails import Tails
from shared.clock import Clock
from shared.plain import Plain
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.offset import SENTINELS
from shared.protocol.request import Live

Key = tuple[str, Live | None, str | None, str | None, str | None, bool]


def key_of(plain: Plain, chunk: Chunk, now_ms: int) -> Key:
    """Return what makes the next bytes of a reader: where it is, and what it asked for."""
    asked = plain.asked
    # A cursor that the clock has passed is as good as none, for ever.
    passed = next_cursor(now_ms, asked.cursor) == next_cursor(now_ms, None)
    cursor = None if passed else asked.cursor
    if asked.live is Live.SSE:
        return chunk.next, asked.live, cursor, None, None, False
    named = asked.offset if asked.offset in SENTINELS else None  # it bounds a cache's patience
    return chunk.next, None, cursor, named, asked.if_none_match, plain.keep_alive


class Group(Party):
    """Readers who wait at one place of a stream, and get the same bytes next."""

    __slots__ = ("chunk", "crowd", "fetching", "heard_s", "key", "passing", "plain")

    def __init__(
        self, crowd: "Crowd", key: Key, plain: Plain, chunk: Chunk, heard_s: float
    ) -> None:
        super().__init__()
        self.crowd = crowd
        self.key = key
        self.plain = plain  # of the first of them: what may differ makes no difference
        self.chunk = chunk  # what they have; they wait for what follows it
        self.heard_s = heard_s  # when they last got anything
        self.passing = False  # a pass goes over them
        self.fetching: asyncio.Task[None] | None = None

    @property
    def streams(self) -> bool:
        """Whether their replies go on after this one."""
        return self.plain.asked.live is Live.SSE

    @property
    def over(self) -> bool:
        """Whether it takes no more readers: it has news, or is no more."""
        return self.crowd.groups.get(self.key) is not self or self.crowd.tail.failed is not None


class Listener(Protocol):
    """Who is told of news."""

    def stir(self, crowd: "Crowd") -> None:
        """The tail of a stream has moved, or there is nothing to follow any more."""
        ...


class Crowd:
    """All groups of one stream, and the tail that they wait for."""

    __slots__ = ("_listener", "groups", "passing", "path", "tail")

    def __init__(self, listener: Listener, path: str, tail: Tail) -> None:
        self._listener = listener
        self.path = path
        self.tail = tail
        self.groups: dict[Key, Group] = {}  # but those that a pass goes over
        self.passing = 0  # event streams that come back after their pass

    def on_news(self) -> None:
        """Hear, as the listener of the tail, that it has moved."""
        self._listener.stir(self)


class Groups:
    """All groups of an edge, by stream; a stream is followed while it has any."""

    def __init__(self, seats: Seats, tails: Tails, clock: Clock, listener: Listener) -> None:
        self._seats = seats
        self._tails = tails
        self._clock = clock
        self._listener = listener
        self._crowds: dict[str, Crowd] = {}
        # Event streams but those that a pass goes over, by when they last heard anything, nearly:
        # to look at all that wait, most of them in vain, stopped an edge every few seconds. A set
        # that keeps order: a `dict` would leave gaps at its front, for each look to step over.
        self._quiet: OrderedDict[Group, None] = OrderedDict()

    def __iter__(self) -> Iterator[Group]:
        for crowd in self._crowds.values():
            yield from crowd.groups.values()

    @property
    def quietest(self) -> Group | None:
        """The event streams that heard nothing for longest."""
        return next(iter(self._quiet), None)

    def at(self, plain: Plain, chunk: Chunk) -> Group:
        """Return the group of whoever asks so at that place, found or new, for it to join."""
        crowd = self._crowds.get(plain.path)
        if crowd is None or crowd.tail.failed is not None:
            crowd = Crowd(self._listener, plain.path, self._tails.hold(plain.path))
            crowd.tail.listener = crowd
            self._crowds[plain.path] = crowd
        key = key_of(plain, chunk, self._clock.now_ms())
        group = crowd.groups.get(key)
        if group is None:
            group = Group(crowd, key, plain, chunk, self._clock.monotonic_s())
            self._put_in(group)
        return group

    def lend(self, group: Group) -> None:
        """Take a group out for a pass: whoever comes meanwhile gets something else."""
        self._take_out(group)
        group.passing = True
        group.crowd.passing += 1
        group.heard_s = self._clock.monotonic_s()

    def put_back(self, group: Group, *, ended: bool) -> bool:
        """Let a group wait again after its pass; return whether anybody of it does.

        Args:
            ended: they have their last bytes.
        """
        group.passing = False
        group.crowd.passing -= 1
        if ended:
            self._part(group.crowd)
            return False
        if not group.count:
            self._dissolve(group)
            return False
        self._merge(group)
        return True

    def left(self, group: Group) -> None:
        """Note that a member has left."""
        if group.passing:
            return  # its places stay as they are
        if group.count:
            self._seats.tidy(group)
        else:
            self._dissolve(group)

    def _merge(self, group: Group) -> None:
        """Put a group back, with whoever has come to the same place meanwhile."""
        group.key = key = key_of(group.plain, group.chunk, self._clock.now_ms())
        other = group.crowd.groups.get(key)
        if other is None:
            self._put_in(group)
            self._seats.tidy(group)
            return
        small, large = sorted((group, other), key=lambda one: one.count)
        for fd in self._seats.members(small):
            self._seats.leave(fd)
            self._seats.join(fd, large)
        if large is group:
            self._take_out(other)
            self._put_in(group)
        if small.fetching is not None:
            small.fetching.cancel()

    def _dissolve(self, group: Group) -> None:
        if group.fetching is not None:
            group.fetching.cancel()
        self._take_out(group)
        self._part(group.crowd)

    def _put_in(self, group: Group) -> None:
        group.crowd.groups[group.key] = group
        if group.streams:
            self._quiet[group] = None

    def _take_out(self, group: Group) -> None:
        if group.crowd.groups.get(group.key) is group:
            del group.crowd.groups[group.key]
            self._quiet.pop(group, None)

    def _part(self, crowd: Crowd) -> None:
        """Let go of a stream that nobody waits on."""
        if not crowd.groups and not crowd.passing and crowd.tail.listener is crowd:
            crowd.tail.listener = None
            self._tails.let_go(crowd.tail)
            if self._crowds.get(crowd.path) is crowd:
                del self._crowds[crowd.path]
