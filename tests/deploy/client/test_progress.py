"""Progress of long reads."""

import io

import pytest

from deploy.client.progress import Progress, amount
from tests.deploy.client.script import FakeTime


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_of_a_short_read_is_not_shown() -> None:
    time, out = FakeTime(), Terminal()
    with Progress(out, wanted=True, clock=lambda: time.now) as progress:
        time.now = 0.9
        progress.add(1_000_000)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        pytest.param(
            Terminal(),
            "\r3.0 MB, 1.5 MB/s\x1b[K\r6.0 MB, 2.0 MB/s\x1b[K\r6.0 MB, 1.5 MB/s\x1b[K\n",
            id="in place",
        ),
        pytest.param(
            io.StringIO(), "3.0 MB, 1.5 MB/s\n6.0 MB, 2.0 MB/s\n6.0 MB, 1.5 MB/s\n", id="log"
        ),
    ],
)
def test_progress_of_a_long_read_tells_bytes_and_rate(out: io.StringIO, expected: str) -> None:
    time = FakeTime()
    with Progress(out, wanted=True, clock=lambda: time.now) as progress:
        for now, count in ((0.5, 1_000_000), (2.0, 2_000_000), (2.1, 1_000_000), (3.0, 2_000_000)):
            time.now = now
            progress.add(count)
        time.now = 4.0
    assert out.getvalue() == expected


def test_progress_nobody_wants_is_not_shown() -> None:
    time, out = FakeTime(), Terminal()
    with Progress(out, wanted=False, clock=lambda: time.now) as progress:
        time.now = 5.0
        progress.add(1_000_000)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (5e15, "5000.0 TB")],
)
def test_amounts_are_for_people(count: float, expected: str) -> None:
    assert amount(count) == expected
