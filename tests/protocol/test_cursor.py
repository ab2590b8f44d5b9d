"""Cursors go up, whatever the clock and the client say (PROTOCOL §10.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.cursor import INTERVAL_S, next_cursor

EPOCH_MS = 1_728_432_000_000  # 2024-10-09T00:00:00Z
NOW_MS = EPOCH_MS + 1000 * INTERVAL_S * 1000  # interval 1000


@pytest.mark.parametrize(
    ("now_ms", "expected"),
    [
        pytest.param(EPOCH_MS, "0", id="epoch"),
        pytest.param(EPOCH_MS + 19_999, "0", id="end-of-the-first-interval"),
        pytest.param(EPOCH_MS + 20_000, "1", id="second-interval"),
        pytest.param(NOW_MS, "1000", id="later"),
        pytest.param(EPOCH_MS - 1, "0", id="clock-before-the-epoch"),
        pytest.param(0, "0", id="clock-never-set"),
    ],
)
def test_cursor_counts_intervals_from_the_epoch(now_ms: int, expected: str) -> None:
    assert next_cursor(now_ms, None) == expected


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param("0", "1000", id="old"),
        pytest.param("999", "1000", id="last-interval"),
        pytest.param("1000", "1001", id="this-interval"),
        pytest.param("1001", "1002", id="ahead"),
        pytest.param("0001000", "1001", id="leading-zeros"),
    ],
)
def test_cursor_is_above_the_one_that_was_sent(sent: str, expected: str) -> None:
    assert next_cursor(NOW_MS, sent) == expected


@pytest.mark.parametrize(
    "sent", ["", "abc", "-5", "+5", "1.5", "1e9", " 1000", "1000 ", "١٢٣٤٥", "²", "0x10", "1_000"]
)
def test_what_is_no_number_counts_as_no_cursor(sent: str) -> None:
    assert next_cursor(NOW_MS, sent) == "1000"


@given(st.integers(0, 4_000_000_000_000), st.integers(0, 10**15 - 1))
def test_cursor_is_a_number_strictly_above_any_sent(now_ms: int, sent: int) -> None:
    cursor = next_cursor(now_ms, str(sent))
    assert cursor.isascii()
    assert cursor.isdigit()
    assert int(cursor) > sent


@pytest.mark.parametrize("sent", ["999999999999998", "9007199254740990"])
def test_cursor_never_goes_backwards_for_who_echoes_it(sent: str) -> None:
    seen = [int(sent)]
    for _ in range(3):
        seen.append(int(next_cursor(NOW_MS, str(seen[-1]))))
    assert seen == sorted(set(seen))


@given(
    st.integers(EPOCH_MS, EPOCH_MS * 2), st.integers(0, 19_999), st.none() | st.integers(0, 10**9)
)
def test_every_edge_gives_the_same_cursor_within_an_interval(
    now_ms: int, later_ms: int, sent: int | None
) -> None:
    start_ms = now_ms - (now_ms - EPOCH_MS) % 20_000
    text = None if sent is None else str(sent)
    assert next_cursor(start_ms, text) == next_cursor(start_ms + later_ms, text)


def test_huge_cursor_costs_nothing() -> None:
    assert next_cursor(NOW_MS, "9" * 100_000).isdigit()
