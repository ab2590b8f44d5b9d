"""Which connection writes to which stream."""

from collections import Counter

import pytest

from loadtests.message import Shape
from loadtests.writers import WriteOrder


@pytest.mark.parametrize(("connections", "streams"), [(64, 1), (8, 3), (3, 8), (5, 5), (1, 4)])
def test_every_stream_is_written_and_no_connection_idles(connections: int, streams: int) -> None:
    numbers = tuple(range(connections))
    order = WriteOrder("http://h:1", ("/p",) * streams, numbers, connections, Shape(), 1.0)
    written = Counter(stream for number in numbers for stream in order.streams_of(number))
    assert set(written) == set(range(streams))
    assert all(order.streams_of(number) for number in numbers)
    assert max(written.values()) - min(written.values()) <= 1
