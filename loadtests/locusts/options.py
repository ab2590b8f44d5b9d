"""Options: what a run is told on locust's command line, and where its streams are."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Final

from locust.env import Environment

from loadtests.layout import client_shares
from loadtests.locusts.notes import NOTE_BYTES_MIN

_KEEP_S: Final = 86_400  # whatever a run leaves behind ends by itself


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to locust's own; a master passes them on to its workers."""
    group = parser.add_argument_group("Headwater")
    group.add_argument(
        "--run-name",
        default=f"run-{os.getpid()}",
        help="streams are below loadtests/RUN_NAME/; runs that go on at once need different ones",
    )
    group.add_argument("--stream-prefix", default="/v1/stream/", help="below which streams are")
    group.add_argument(
        "--readers", type=int, default=0, help="readers of the broadcast, held by swarms"
    )
    group.add_argument("--reader-mode", choices=("lp", "sse"), default="sse", help="how they wait")
    group.add_argument("--rate", type=float, default=1.0, help="broadcast messages a second")
    group.add_argument("--size", type=int, default=120, help="bytes of a message")
    group.add_argument(
        "--lost-replies",
        type=float,
        default=0.02,
        help="share of appends whose connection is dropped before the reply, and sent again",
    )


@dataclass(frozen=True, slots=True)
class Run:
    """The options of one run, checked."""

    prefix: str
    readers: int
    reader_mode: str
    rate: float
    size: int
    lost_replies: float

    @classmethod
    def of(cls, environment: Environment) -> Run:
        """Read what locust has parsed.

        Raises:
            ValueError: a value makes no sense.
        """
        told = environment.parsed_options
        assert told is not None
        if told.rate <= 0:
            raise ValueError(f"expected --rate above 0, received {told.rate}")
        if told.size < NOTE_BYTES_MIN:
            raise ValueError(f"expected --size from {NOTE_BYTES_MIN}, received {told.size}")
        if not 0 <= told.lost_replies < 1:
            raise ValueError(f"expected --lost-replies in [0, 1), received {told.lost_replies}")
        if told.readers < 0:
            raise ValueError(f"expected --readers from 0, received {told.readers}")
        return cls(
            f"{told.stream_prefix}loadtests/{told.run_name}/",
            told.readers,
            told.reader_mode,
            told.rate,
            told.size,
            told.lost_replies,
        )

    @property
    def broadcast(self) -> str:
        """Return the path of the one stream that everyone reads."""
        return f"{self.prefix}broadcast"

    @property
    def creation(self) -> dict[str, str]:
        """Return the headers of a PUT; the same each time, so that each is the first or idle."""
        return {"Content-Type": "application/json", "Stream-TTL": str(_KEEP_S)}


def swarms(readers: int, descriptors: int) -> int:
    """Return how many swarms it takes; each holds the same number, rounded up."""
    return len(client_shares(readers, descriptors)) if readers else 0
