"""locust -f loadtests/locustfile.py: people and crowds, who look at what they get.

Name the users that a run is to have behind the options; without names, all of them come.
`loadtests/README.md` says what each is, and what their statistics mean.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from locust import events
from locust.env import Environment

from loadtests.locusts.ending import arrange
from loadtests.locusts.options import Run, add_options, swarms
from loadtests.locusts.people import (
    Broadcaster,
    CatchUp,
    Chat,
    LongPollFollower,
    SseFollower,
    Writer,
)
from loadtests.locusts.swarming import Swarm
from loadtests.servers import descriptor_limit, raise_descriptor_limit

__all__ = ["Broadcaster", "CatchUp", "Chat", "LongPollFollower", "SseFollower", "Swarm", "Writer"]


def _add_options(parser: ArgumentParser, **_: Any) -> None:
    add_options(parser)


def _begin(environment: Environment, **_: Any) -> None:
    """Check the options before anything is measured, and count the swarms."""
    raise_descriptor_limit()
    run = Run.of(environment)
    Swarm.fixed_count = swarms(run.readers, descriptor_limit())
    if not Swarm.fixed_count and Swarm in environment.user_classes:
        environment.user_classes.remove(Swarm)
    arrange(environment)


events.init_command_line_parser.add_listener(_add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(_begin)  # type: ignore[no-untyped-call]
