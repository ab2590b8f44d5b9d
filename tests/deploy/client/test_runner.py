"""A Ctrl-C, at every moment of a run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.client.runner import Runner


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


async def nothing() -> str:
    return "done"


@contextmanager
def interrupted() -> Iterator[Runner]:
    """Expect the block to be interrupted, once, and everything to work after it."""
    before = signal.getsignal(signal.SIGINT)
    with Runner() as runner:
        with pytest.raises(KeyboardInterrupt):
            yield runner
        assert runner.run(nothing()) == "done"
    assert signal.getsignal(signal.SIGINT) is before


def test_waiting_coroutine_is_cancelled() -> None:
    ended: list[str] = []

    async def wait() -> None:
        asyncio.get_running_loop().call_later(0.05, interrupt)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with interrupted() as runner:
        runner.run(wait())
    assert ended == ["cancelled"]


def test_interrupt_that_comes_as_it_ends_is_not_lost() -> None:
    async def end() -> str:
        interrupt()
        return "done"

    with interrupted() as runner:
        runner.run(end())


def test_interrupt_in_a_callback_that_swallows_what_is_raised_is_not_lost() -> None:
    class Swallows:
        def __del__(self) -> None:
            interrupt()

    async def wait() -> None:
        held = [Swallows()]
        held.clear()
        await asyncio.Event().wait()

    with interrupted() as runner:
        runner.run(wait())


def test_interrupt_between_two_runs_is_raised_where_it_comes() -> None:
    with interrupted() as runner:
        assert runner.run(nothing()) == "done"
        interrupt()


def test_failure_on_the_way_out_is_what_is_told() -> None:
    async def wait() -> None:
        interrupt()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("cannot write")

    with Runner() as runner, pytest.raises(OSError, match="cannot write") as raised:
        runner.run(wait())
    assert isinstance(raised.value.__context__, asyncio.CancelledError)


def test_second_interrupt_cancels_what_cleans_up() -> None:
    async def clean_up() -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await asyncio.Event().wait()

    with Runner() as runner:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                runner.run(clean_up())
