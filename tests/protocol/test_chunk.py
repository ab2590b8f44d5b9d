"""Where chunks end, so that all readers meet on the same ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.chunk import chunk_limit


@pytest.mark.parametrize(
    ("position", "limit"), [(0, 1024), (1, 1024), (1023, 1024), (1024, 2048), (1025, 2048)]
)
def test_chunk_is_full_at_the_next_multiple(position: int, limit: int) -> None:
    assert chunk_limit(position, 1024) == limit


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(0, 500), st.data())
def test_readers_from_anywhere_meet_after_one_chunk(
    sizes: list[int], start: int, data: st.DataObject
) -> None:
    boundaries = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    chunk_bytes = data.draw(st.integers(1, 64))

    def ends(position: int) -> list[int]:
        found = []
        while position < boundaries[-1]:
            limit = chunk_limit(position, chunk_bytes)
            position = next((b for b in boundaries if b >= limit), boundaries[-1])
            found.append(position)
        return found

    whole = ends(0)
    late = ends(next((b for b in boundaries if b >= start), boundaries[-1]))
    assert late == whole[len(whole) - len(late) :]
