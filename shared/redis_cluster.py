"""Redis Cluster: which node carries which channel (pure)."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import ClusterDownError, InvalidResponse, RedisError

_SLOTS: Final = 16_384  # of every cluster, by its specification
# The specification recommends no more; each edge has a connection to every one.
_NODES_MAX: Final = 1000

# Host and port; None: the server of the URL.
Node = tuple[str, int] | None


class NodesLeft(RedisError):
    """A node that was used owns no slots any more."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The nodes that own slots, and which owns which."""

    nodes: tuple[Node, ...]
    _owners: "array[int] | None" = None  # by slot, a place in nodes

    @property
    def sharded(self) -> bool:
        """Whether each channel belongs to one node: by sharded pub/sub, and not by broadcast."""
        return self._owners is not None

    def slot(self, channel: bytes) -> int:
        """Return the slot of a channel; all share one where the server is no cluster."""
        return key_slot(channel) if self._owners is not None else 0

    def owner(self, slot: int) -> Node:
        """Return the node that carries the channels of a slot."""
        return self.nodes[self._owners[slot]] if self._owners is not None else self.nodes[0]

    def check_holds_all(self, used: Sequence[Node]) -> None:
        """See that every node that is used still owns something.

        Raises:
            NodesLeft: one does not. It may know of no message any more, and says nothing of that.
        """
        left = set(used).difference(self.nodes)
        if left:
            raise NodesLeft(f"own no slots any more: {sorted(map(str, left))}")


SINGLE: Final = Topology((None,))


def parse_slots(reply: Any, host: str) -> Topology:
    """Return what a reply to CLUSTER SLOTS says.

    Args:
        host: of the node that was asked; a node may leave it to us how we reach it.

    Raises:
        ClusterDownError: a slot has no owner, so wakes of some streams would go nowhere.
        InvalidResponse: it is no such reply.
    """
    places: dict[Node, int] = {}
    owners = array("h", [-1]) * _SLOTS
    try:
        for first, last, master, *_ in reply:
            node = ((master[0] or b"").decode() or host, int(master[1]))
            place = places.setdefault(node, len(places))
            owners[first : last + 1] = array("h", [place]) * (last + 1 - first)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise InvalidResponse(f"malformed map of slots: {str(reply)[:200]}") from error
    if len(owners) != _SLOTS or len(places) > _NODES_MAX:
        raise InvalidResponse(f"map of {len(owners)} slots on {len(places)} nodes")
    if -1 in owners:
        raise ClusterDownError(f"{owners.count(-1)} slots have no owner")
    return Topology(tuple(places), owners)
