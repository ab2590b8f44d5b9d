"""Streams with a window are read again in time, however many there are, and no other is."""

import pytest

from edge.recent import Recent
from edge.tail import Tail
from edge.windows import _LEFT_MAX, Windows, renewal_s


@pytest.mark.parametrize(
    ("ttl_s", "expected_s"),
    [(0, 0.1), (1, 1 / 3), (3, 1.0), (6, 1.0), (10, 1.0), (60, 6.0), (3600, 360.0)],
)
def test_renewal_leaves_time_for_another_try(ttl_s: int, expected_s: float) -> None:
    assert renewal_s(ttl_s) == pytest.approx(expected_s)


def tail(name: str, ttl_s: int = 60, *, heard_s: float = 0.0, users: int = 1) -> Tail:
    made = Tail(name, Recent())
    made.ttl_s, made.heard_s, made.users = ttl_s, heard_s, users
    return made


def due(windows: Windows, now_s: float) -> list[str]:
    return [found.path for found in windows.due(now_s)]


def test_each_is_due_once_a_renewal() -> None:
    windows = Windows()
    for made in (tail("long", 3600), tail("short", 30), tail("later", 30, heard_s=2.0)):
        windows.add(made)
        windows.add(made)  # which is known already
    assert due(windows, 2.9) == []
    assert due(windows, 3.1) == ["short"]
    assert due(windows, 3.2) == []
    assert due(windows, 6.2) == ["later", "short"]
    assert due(windows, 361.0) == ["later", "short", "long"]


def test_what_was_heard_of_meanwhile_puts_it_off() -> None:
    """A write counts as a read does."""
    windows, written = Windows(), tail("written")
    windows.add(written)
    written.heard_s = 5.0
    assert due(windows, 7.0) == []
    assert due(windows, 11.1) == ["written"]


def test_stream_without_readers_is_left_to_expire() -> None:
    windows, left = Windows(), tail("left", users=0)
    windows.add(left)
    assert due(windows, 7.0) == []
    left.users = 1
    assert due(windows, 14.0) == ["left"]


def test_stream_that_was_let_go_is_never_due_and_may_come_back() -> None:
    windows, gone = Windows(), tail("gone")
    windows.discard(gone)  # it was not known
    windows.add(gone)
    windows.discard(gone)
    assert due(windows, 100.0) == []
    gone.heard_s = 100.0
    windows.add(gone)
    assert due(windows, 106.5) == ["gone"]
    assert due(windows, 106.6) == []


def test_places_of_those_that_left_do_not_grow_without_end() -> None:
    windows = Windows()
    stays = [tail(f"stays-{number}") for number in range(10)]
    for made in stays:
        windows.add(made)
    for number in range(5 * _LEFT_MAX):
        passing = tail(f"passing-{number}", 3600)
        windows.add(passing)
        windows.discard(passing)
        assert len(windows._heap) <= _LEFT_MAX + 2 * len(stays) + 1
    assert len(windows) == len(stays)
    assert due(windows, 6.5) == [made.path for made in stays]
