"""Seats: what is known of each connection, in a few bytes by its descriptor."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

FREE: Final = 0  # not a connection of the lane
HEAD: Final = 1  # the next request may come; nothing of it is here
PARTIAL: Final = 2  # some of it is
ASKED: Final = 3  # its chunk is being read
PARKED: Final = 4  # a live reader that waits
SENDING: Final = 5  # the rest of its reply waits for the kernel; then the next request
CATCHING_UP: Final = 6  # an event stream that is not at the tail yet
LEAVING: Final = 7  # the rest of its last reply; then it is closed
TURNED_AWAY: Final = 8  # over the limit: its request is read, then refused
DEAF: Final = 9  # as LEAVING, and its peer has sent its last: there is nothing to read
LINGERING: Final = 10  # it has its last reply and our goodbye, and may still say something
WRITING: Final = 11  # appends of it are under way at the upstream

NEVER: Final = float("inf")


class Party:
    """Descriptors that wait for the same thing, in the order in which they came.

    One that leaves is not searched for: its place is skipped, as its seat no longer points there.
    """

    __slots__ = ("count", "fds")

    def __init__(self) -> None:
        self.fds = array("i")
        self.count = 0


class Seats:
    """Arrays by descriptor: no object is held for a connection.

    `party` and `place` say what it waits for; `due_s` when that ends, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.state = bytearray()
        self.due_s = array("d")
        self.party: list[Party | None] = []
        self.place = array("I")
        self.taken = 0
        self._soonest_s = NEVER  # no wait ends before

    def take(self, fd: int, state: int, due_s: float) -> None:
        """Begin to know a descriptor."""
        missing = fd + 1 - len(self.state)
        if missing > 0:
            missing += len(self.state) // 8  # grow in steps, not one by one
            self.state.extend(bytes(missing))
            self.due_s.extend([NEVER] * missing)
            self.party.extend([None] * missing)
            self.place.extend([0] * missing)
        assert self.state[fd] == FREE
        self.state[fd] = state
        self.wait_until(fd, due_s)
        self.taken += 1

    def wait_until(self, fd: int, due_s: float) -> None:
        """Let what a descriptor waits for end then."""
        self.due_s[fd] = due_s
        if due_s < self._soonest_s:
            self._soonest_s = due_s

    def rest(self, fds: Sequence[int], due_s: float) -> None:
        """Let many wait until then for their next request."""
        state, due = self.state, self.due_s
        for fd in fds:
            state[fd] = HEAD
            due[fd] = due_s
        self._soonest_s = min(self._soonest_s, due_s)

    def due(self, now_s: float) -> list[int]:
        """Return the descriptors whose wait is over.

        Where none can be, it costs nothing; else all are looked at, 1 ms for 20,000, and nothing
        has to be kept in order when a wait is put off.
        """
        if now_s < self._soonest_s:
            return []
        found = [fd for fd, due_s in enumerate(self.due_s) if due_s <= now_s]
        # Whoever is due now is dealt with before the next look.
        self._soonest_s = min((due_s for due_s in self.due_s if due_s > now_s), default=NEVER)
        return found

    def free(self, fd: int) -> None:
        """Forget a descriptor, which has left its party."""
        assert self.party[fd] is None
        assert self.state[fd] != FREE
        self.state[fd] = FREE
        self.due_s[fd] = NEVER
        self.taken -= 1

    def join(self, fd: int, party: Party) -> None:
        """Let a descriptor wait with others."""
        assert self.party[fd] is None
        self.party[fd] = party
        self.place[fd] = len(party.fds)
        party.fds.append(fd)
        party.count += 1

    def leave(self, fd: int) -> Party | None:
        """Let it wait no more; return what it waited with."""
        party = self.party[fd]
        if party is not None:
            self.party[fd] = None
            party.count -= 1
        return party

    def part(self, party: Party, fds: Sequence[int]) -> None:
        """Let members of a party wait no more."""
        of = self.party
        for fd in fds:
            of[fd] = None
        party.count -= len(fds)

    def places(self, party: Party) -> Iterator[tuple[int, int]]:
        """Yield (place, descriptor) of who waits, in order; any may leave meanwhile."""
        for place, fd in enumerate(party.fds):
            if self.party[fd] is party and self.place[fd] == place:
                yield place, fd

    def members(self, party: Party) -> list[int]:
        """Return the descriptors that wait, in order."""
        return [fd for _, fd in self.places(party)]

    def tidy(self, party: Party) -> None:
        """Drop the places of those who left, once they are more than those who stay."""
        if len(party.fds) < 2 * party.count + 16:
            return
        fds = array("i", self.members(party))
        party.fds = fds
        for place, fd in enumerate(fds):
            self.place[fd] = place
