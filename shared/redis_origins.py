"""Origins: who publishes, as a subscriber hears it from their beats (pure).

A subscriber whose own connections are in order can't see that an origin lost its own. So every
origin beats: on one channel, so often, with a count of how many times it had to lose wakes.
"""

import logging
import re
from dataclasses import dataclass, field
from typing import Final

from shared.redis_cluster import Node
from shared.wake import ForeignWake

_log = logging.getLogger(__name__)

BEAT_CHANNEL: Final = b"headwater:origins"
# Two and a half messages a second for each edge: less than one stream that is written to.
BEAT_S: Final = 0.4
# Ticks of BEAT_S without a beat after which an origin is silent: 1.2 to 1.6 s, as a reader may be
# late by 2 s. Fewer prove nothing, since our own loop may have stood.
_SILENCES_MAX: Final = 4
# An origin that took its leave is back after a restart, and then says so. Till then nothing can be
# appended, so nobody has to ask for it.
_AWAY_TICKS_MAX: Final = int(10 / BEAT_S)
# One that fell silent and never comes back was moved to another name; nobody says so.
_SILENT_TICKS_MAX: Final = int(300 / BEAT_S)
# Shards of one service; a name beyond is no origin of ours.
ORIGINS_MAX: Final = 256

_BEAT: Final = re.compile(rb"HW1 beat ([0-9a-f]{32}) ([0-9a-f]{32}) ([0-9]{1,18}) ([01])")


@dataclass(frozen=True, slots=True)
class Beat:
    """That an origin is there."""

    name: str  # 32 hexadecimal digits; the same after a restart
    life: str  # 32 hexadecimal digits; never the same again
    doubts: int  # how many times wakes were lost in this life
    last: bool = False  # it takes its leave


def encode_beat(beat: Beat) -> bytes:
    """Return a beat as one message."""
    return f"HW1 beat {beat.name} {beat.life} {beat.doubts} {beat.last:d}".encode()


def decode_beat(message: bytes) -> Beat:
    """Return the beat in a message.

    Raises:
        ForeignWake: not of this version, or damaged.
    """
    found = _BEAT.fullmatch(message)
    if found is None:
        raise ForeignWake(f"not a beat: {message[:32]!r}")
    name, life, doubts, last = (part.decode() for part in found.groups())
    return Beat(name, life, int(doubts), last == "1")


@dataclass(slots=True)
class _Origin:
    beat: Beat
    silences: dict[Node, int] = field(default_factory=dict)  # ticks since it was heard there
    ticks: int = 0  # since it is away or silent

    @property
    def heard(self) -> bool:
        return max(self.silences.values()) < _SILENCES_MAX


class Origins:
    """The origins that were heard, by each connection of a subscriber."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._origins: dict[str, _Origin] = {}

    @property
    def well(self) -> bool:
        """Whether there is an origin, and every one is heard on every connection."""
        return bool(self._origins) and not any(
            one.ticks for one in self._origins.values() if not one.beat.last
        )

    def begin(self, nodes: tuple[Node, ...]) -> None:
        """Listen on new connections: who was known has to be heard there first."""
        self._nodes = list(nodes)
        for one in self._origins.values():
            one.silences = dict.fromkeys(nodes, _SILENCES_MAX)
            one.ticks = max(one.ticks, 1)

    def add(self, node: Node) -> None:
        """Listen on one more connection; who was heard on the others will be heard there soon."""
        self._nodes.append(node)
        for one in self._origins.values():
            one.silences[node] = 0

    def hear(self, node: Node, beat: Beat) -> bool:
        """Take in a beat.

        Returns:
            Whether wakes may have been lost: the origin is new, or says so.

        Raises:
            ForeignWake: there are too many origins to be true.
        """
        one = self._origins.get(beat.name)
        if one is None:
            if len(self._origins) >= ORIGINS_MAX:
                raise ForeignWake("one origin too many")
            one = self._origins[beat.name] = _Origin(beat, dict.fromkeys(self._nodes, 0))
            _log.info("origin heard: origin=%s", beat.name)
            return True
        before = one.beat
        one.silences[node] = 0
        if beat.life == before.life and (before.last or beat.doubts < before.doubts):
            return False  # the same beat came by another node, and newer ones before it
        one.beat = beat
        if beat.last != before.last:
            one.ticks = 0
            _log.info("origin %s: origin=%s", "left" if beat.last else "back", beat.name)
        elif one.ticks and one.heard:
            one.ticks = 0
            _log.info("origin heard again: origin=%s", beat.name)
        return (before.life, before.doubts) != (beat.life, beat.doubts)

    def tick(self) -> None:
        """Count one more BEAT_S for everyone."""
        for name, one in list(self._origins.items()):
            if one.beat.last:
                one.ticks += 1
                if one.ticks > _AWAY_TICKS_MAX:
                    del self._origins[name]
                continue
            for node in one.silences:
                one.silences[node] += 1
            if one.heard:
                continue
            if not one.ticks:
                _log.warning("origin silent: origin=%s", name)
            one.ticks += 1
            if one.ticks > _SILENT_TICKS_MAX:
                del self._origins[name]
