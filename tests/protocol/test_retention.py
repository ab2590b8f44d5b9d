"""What is kept: at least what was asked for, from an append boundary on."""

import pytest

from shared.protocol.errors import BadRequest
from shared.protocol.retention import Retention, Stretch, is_over, low_after, parse_retention

# Ten bytes each, appended at 0, 10, 20 and 30 s.
STRETCHES = [Stretch(n * 10 + 10, n * 10_000) for n in range(4)]


@pytest.mark.parametrize(
    ("retention", "now_ms", "low"),
    [
        (Retention(), 10**12, 0),
        (Retention(age_s=5), 4999, 0),
        (Retention(age_s=5), 5000, 10),
        (Retention(age_s=5), 26_000, 30),
        (Retention(age_s=5), 10**12, 40),
        (Retention(bytes=40), 0, 0),
        (Retention(bytes=31), 0, 0),
        (Retention(bytes=30), 0, 10),
        (Retention(bytes=11), 0, 20),
        (Retention(bytes=1), 0, 30),
        (Retention(age_s=5, bytes=25), 5000, 10),
        (Retention(age_s=5, bytes=1), 5000, 30),
        (Retention(age_s=5, bytes=1), 10**12, 40),
    ],
)
def test_old_and_many_bytes_go(retention: Retention, now_ms: int, low: int) -> None:
    assert low_after(retention, 40, 0, STRETCHES, now_ms) == low


def test_what_is_gone_does_not_come_back() -> None:
    assert low_after(Retention(bytes=30), 40, 25, STRETCHES, 0) == 25


@pytest.mark.parametrize(
    ("limit", "size", "over"),
    [(None, 10**9, False), (100, 124, False), (100, 125, True), (1, 1, False), (1, 2, True)],
)
def test_look_is_worth_it_a_quarter_over(limit: int | None, size: int, over: bool) -> None:
    assert is_over(Retention(bytes=limit), size) == over


def test_headers_are_whole_numbers_from_one_on() -> None:
    assert parse_retention(None, None) == Retention()
    assert parse_retention("60", "1048576") == Retention(60, 1_048_576)
    for wrong in ("", "0", "-1", "1.5", "01", "+1", " 1", "1e3", "9" * 16, "x", "\u0661"):
        for given in ((wrong, None), (None, wrong)):
            with pytest.raises(BadRequest, match="Stream-Retention"):
                parse_retention(*given)
