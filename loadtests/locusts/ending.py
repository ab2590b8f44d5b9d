"""Ending: lets every user look at everything once more before a run is over.

Left alone, a master leaves half a second after it has told its workers to quit, and what users find
out when they end is lost.
"""

from __future__ import annotations

from typing import Any, Final

import gevent
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadtests.locusts.people import Person

_END: Final = "end users"
_ENDED: Final = "users ended"
_MARGIN_S: Final = 30.0  # beyond the time that locust itself gives users to stop


class _Roll:
    """The workers whose users have still to end; kept by the master."""

    def __init__(self, runner: MasterRunner) -> None:
        self._runner = runner
        self._missing: set[str] = set()

    def on_ended(self, msg: Any, **_: Any) -> None:
        self._missing.discard(msg.node_id)

    def call(self, environment: Environment, **_: Any) -> None:
        """Have all users end, and wait until they have."""
        self._missing = set(self._runner.clients.keys())
        self._runner.send_message(_END)
        with gevent.Timeout((environment.stop_timeout or 0) + _MARGIN_S, False):
            while self._missing:
                gevent.sleep(0.05)


def _on_end(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    assert isinstance(runner, WorkerRunner)
    runner.stop()
    runner.send_message(_ENDED)


def _end_those_who_live_on(environment: Environment, **_: Any) -> None:
    """End what would go on for ever; all others end what they are at."""
    assert environment.runner is not None
    for greenlet in list(environment.runner.user_greenlets):
        user = greenlet.args[0]
        if isinstance(user, Person) and user.lives_on:
            # In a moment: locust wants to know all users that it ends, first.
            gevent.spawn_later(0.05, greenlet.kill, StopUser, block=False)


def arrange(environment: Environment) -> None:
    """Prepare the end of all runs to come."""
    runner = environment.runner
    stopping = environment.events.test_stopping
    if isinstance(runner, MasterRunner):
        roll = _Roll(runner)
        runner.register_message(_ENDED, roll.on_ended)
        stopping.add_listener(roll.call)  # type: ignore[no-untyped-call]
        return
    if isinstance(runner, WorkerRunner):
        runner.register_message(_END, _on_end, concurrent=True)
    stopping.add_listener(_end_those_who_live_on)  # type: ignore[no-untyped-call]
