"""What was acknowledged against what a stream holds: nothing lost, doubled or reordered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sent:
    """What one connection appended to one stream, numbered from 0 in the order of sending."""

    count: int = 0
    # Sent, but without an acknowledgement: the stream may hold each of these once or not at all.
    unknown: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts of appends. `acknowledged` are stored once each if all after it are 0."""

    acknowledged: int
    stored: int
    lost: int  # acknowledged, and not there
    doubled: int
    reordered: int  # stored after a later one of the same connection
    foreign: int  # never sent

    @property
    def clean(self) -> bool:
        """Return whether the stream holds exactly what was acknowledged, in order."""
        return not (self.lost or self.doubled or self.reordered or self.foreign)

    def __add__(self, other: Audit) -> Audit:
        """Return the sums over two streams."""
        return Audit(
            self.acknowledged + other.acknowledged,
            self.stored + other.stored,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.reordered + other.reordered,
            self.foreign + other.foreign,
        )


NOTHING = Audit(0, 0, 0, 0, 0, 0)


def audit(sent: dict[int, Sent], stored: Iterable[tuple[int, int]]) -> Audit:
    """Check what one stream holds.

    Args:
        sent: by connection, what it appended to this stream.
        stored: connection and number of each append that the stream holds, in its order.
    """
    following = dict.fromkeys(sent, 0)  # the number that comes next if all is well
    skipped: dict[int, set[int]] = {connection: set() for connection in sent}
    total = doubled = reordered = foreign = 0
    for connection, number in stored:
        total += 1
        if connection not in sent or number >= sent[connection].count:
            foreign += 1
            continue
        expected = following[connection]
        if number >= expected:
            skipped[connection].update(range(expected, number))
            following[connection] = number + 1
        elif number in skipped[connection]:
            skipped[connection].remove(number)
            reordered += 1
        else:
            doubled += 1
    lost = 0
    for connection, one in sent.items():
        missing = skipped[connection] | set(range(following[connection], one.count))
        lost += len(missing - one.unknown)
    acknowledged = sum(one.count - len(one.unknown) for one in sent.values())
    return Audit(acknowledged, total, lost, doubled, reordered, foreign)
