"""Orders to client processes, and their reports."""

import os

import pytest

from loadtests.crew import Crew, CrewFailed, CrewSilent, Pipe


def answer(pipe: Pipe, order: int) -> None:
    """Add the order to each number told, until something else is."""
    while isinstance(number := pipe.recv(), int):
        pipe.send(number + order)
    raise ValueError("no number")


def test_reports_come_in_the_order_of_orders() -> None:
    with Crew(answer, [10, 20, 30]) as crew:
        assert crew.size == 3
        crew.tell(1)
        assert crew.hear(int, 30) == [11, 21, 31]


def test_all_are_told_however_few_at_once() -> None:
    with Crew(answer, [10, 20, 30]) as crew:
        assert sorted(crew.tell_in_turn(1, int, at_once=2, timeout_s=30)) == [11, 21, 31]
        assert crew.tell_in_turn(2, int, at_once=1, timeout_s=30) == [12, 22, 32]


def test_who_listens_hears_what_is_there() -> None:
    with Crew(answer, [10, 20]) as crew:
        assert crew.listen(int, 0.0) == []
        crew.tell(1)
        heard: list[int] = []
        while len(heard) < 2:
            heard += crew.listen(int, 30)
        assert sorted(heard) == [11, 21]


def test_silence_and_failure_are_told() -> None:
    with Crew(answer, [10]) as crew:
        with pytest.raises(CrewSilent):
            crew.tell_in_turn(1, str, at_once=1, timeout_s=0.1)
        crew.tell(None)
        with pytest.raises(CrewFailed, match="no number"):
            crew.hear(int, 30)


def test_nobody_is_left_behind() -> None:
    with Crew(answer, [1]) as crew:
        (pid,) = [process.pid for process in crew._processes]
        assert pid is not None
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
