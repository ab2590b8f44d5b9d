"""Forks of forks, against a model that remembers the owner of every byte (PROTOCOL §4.2, §8)."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.errors import BadRequest, Gone, InvalidOffset
from shared.protocol.expiry import NEVER
from shared.protocol.fork import Range, lineage_of, ranges, sub_offset_bytes
from shared.protocol.stream import Ancestor, StreamState


@dataclass
class Modelled:
    """A stream, and who owns each of its bytes."""

    state: StreamState
    owners: list[int]
    tokens: dict[str, int] = field(default_factory=dict)  # minted by it, with their positions

    def __post_init__(self) -> None:
        self.mint()

    def mint(self) -> None:
        """Remember the tail as an offset that clients hold."""
        self.tokens[self.state.tail_offset().token()] = self.state.tail

    def append(self, size: int) -> None:
        self.owners += [self.state.incarnation] * size
        self.state = replace(self.state, tail=self.state.tail + size)
        self.mint()

    def fork(self, incarnation: int, point: int) -> "Modelled":
        state = StreamState(
            f"s{incarnation}",
            incarnation,
            "text/plain",
            NEVER,
            created_ms=0,
            lineage=lineage_of(self.state, point),
            tail=point,
        )
        inherited = {token: at for token, at in self.tokens.items() if at <= point}
        return Modelled(state, self.owners[:point], inherited)


@st.composite
def families(draw: st.DrawFn) -> list[Modelled]:
    """Return streams that were appended to and forked from one another in any order."""
    made: list[Modelled] = []
    for _ in range(draw(st.integers(1, 14))):
        step = draw(st.sampled_from(["root", "append", "append", "fork", "fork", "fork"]))
        if step == "root" or not made:
            state = StreamState(f"s{len(made)}", len(made) + 1, "text/plain", NEVER, created_ms=0)
            made.append(Modelled(state, []))
        elif step == "append":
            draw(st.sampled_from(made)).append(draw(st.integers(1, 5)))
        else:
            source = draw(st.sampled_from(made))
            made.append(source.fork(len(made) + 1, draw(st.integers(0, source.state.tail))))
    return made


@given(families(), st.data())
def test_every_position_is_read_from_its_owner(family: list[Modelled], data: st.DataObject) -> None:
    for stream in family:
        tail = stream.state.tail
        start = data.draw(st.integers(0, tail))
        end = data.draw(st.integers(start, tail))
        found = ranges(stream.state, start, end)
        assert all(one.start < one.end for one in found)
        assert [one.incarnation for one in found for _ in range(one.start, one.end)] == (
            stream.owners[start:end]
        )
        assert [at for one in found for at in range(one.start, one.end)] == list(range(start, end))


@given(families())
def test_every_position_has_one_offset_and_offsets_go_up(family: list[Modelled]) -> None:
    for stream in family:
        state = stream.state
        offsets = [state.offset_at(position) for position in range(state.tail + 1)]
        assert [state.position_of(offset) for offset in offsets] == list(range(state.tail + 1))
        tokens = [offset.token() for offset in offsets]
        assert tokens == sorted(set(tokens))
        assert state.tail_offset() == offsets[-1]


@given(families(), st.data())
def test_fork_has_the_offsets_of_its_source_up_to_the_fork_point(
    family: list[Modelled], data: st.DataObject
) -> None:
    source = data.draw(st.sampled_from(family))
    point = data.draw(st.integers(0, source.state.tail))
    fork = source.fork(100, point)
    fork.append(3)
    for position in range(point + 1):
        assert fork.state.offset_at(position) == source.state.offset_at(position)
    for position in range(point + 1, point + 4):
        assert fork.state.offset_at(position).incarnation == 100


@given(families())
def test_offset_means_the_same_bytes_wherever_it_is_accepted(family: list[Modelled]) -> None:
    for minter in family:
        for token, position in minter.tokens.items():
            offset = minter.state.offset_at(position)
            assert offset.token() == token
            for reader in family:
                shared = reader.owners[:position] == minter.owners[:position]
                try:
                    found = reader.state.position_of(offset)
                except (InvalidOffset, Gone):
                    # An empty prefix is the same everywhere and still belongs to one stream.
                    assert not shared or position == 0
                else:
                    if reader.state.offset_at(found) == offset:
                        assert found == position
                        assert shared
                    else:
                        # Not an offset of the reader's own, but one step past one.
                        before = reader.state.offset_at(position - 1)
                        assert before == replace(offset, position=position - 1)


@given(families())
def test_inherited_stretches_never_go_back(family: list[Modelled]) -> None:
    for stream in family:
        lineage = stream.state.lineage
        untils = [ancestor.until for ancestor in lineage]
        incarnations = [ancestor.incarnation for ancestor in lineage]
        assert untils == sorted(untils)
        assert incarnations == sorted(set(incarnations))
        assert all(incarnation < stream.state.incarnation for incarnation in incarnations)


ROOT = StreamState("a", 1, "text/plain", NEVER, created_ms=0, tail=10)
CHILD = replace(ROOT, path="b", incarnation=2, lineage=(Ancestor(1, 6),), tail=9)
GRANDCHILD = replace(
    ROOT, path="c", incarnation=3, lineage=(Ancestor(1, 6), Ancestor(2, 8)), tail=12
)


@pytest.mark.parametrize(
    ("source", "point", "lineage"),
    [
        pytest.param(ROOT, 0, (Ancestor(1, 0),), id="at-the-start"),
        pytest.param(ROOT, 10, (Ancestor(1, 10),), id="at-the-tail"),
        pytest.param(CHILD, 8, (Ancestor(1, 6), Ancestor(2, 8)), id="in-its-own-data"),
        pytest.param(CHILD, 6, (Ancestor(1, 6),), id="where-the-source-began"),
        pytest.param(CHILD, 3, (Ancestor(1, 3),), id="in-what-the-source-inherits"),
        pytest.param(CHILD, 0, (Ancestor(1, 0),), id="at-the-start-of-a-fork"),
        pytest.param(GRANDCHILD, 7, (Ancestor(1, 6), Ancestor(2, 7)), id="two-up"),
        pytest.param(GRANDCHILD, 6, (Ancestor(1, 6),), id="three-up"),
    ],
)
def test_lineage_of_a_fork(source: StreamState, point: int, lineage: tuple[Ancestor, ...]) -> None:
    assert lineage_of(source, point) == lineage


@pytest.mark.parametrize(
    ("state", "start", "end", "expected"),
    [
        pytest.param(ROOT, 0, 10, [Range(1, 0, 10)], id="no-fork"),
        pytest.param(ROOT, 4, 4, [], id="nothing"),
        pytest.param(ROOT, 10, 10, [], id="nothing-at-the-tail"),
        pytest.param(
            GRANDCHILD, 0, 12, [Range(1, 0, 6), Range(2, 6, 8), Range(3, 8, 12)], id="all"
        ),
        pytest.param(GRANDCHILD, 5, 9, [Range(1, 5, 6), Range(2, 6, 8), Range(3, 8, 9)], id="mid"),
        pytest.param(GRANDCHILD, 6, 8, [Range(2, 6, 8)], id="exactly-one"),
        pytest.param(GRANDCHILD, 8, 8, [], id="nothing-at-a-seam"),
    ],
)
def test_ranges_of_a_read(state: StreamState, start: int, end: int, expected: list[Range]) -> None:
    assert ranges(state, start, end) == expected


@pytest.mark.parametrize(
    ("following", "sub_offset", "size"),
    [(b"", 0, 0), (b"hello", 0, 0), (b"hello", 3, 3), (b"hello", 5, 5), (b"\xff\x00", 1, 1)],
)
def test_sub_offset_counts_bytes(following: bytes, sub_offset: int, size: int) -> None:
    assert sub_offset_bytes("text/plain", following, sub_offset) == size


@pytest.mark.parametrize(
    ("following", "sub_offset", "stored"),
    [
        (b"1,2,3,", 0, b""),
        (b"1,2,3,", 2, b"1,2,"),
        (b"1,2,3,", 3, b"1,2,3,"),
        (b'[1,2],{"a":[3,4]},', 1, b"[1,2],"),
        (b'"a,\\",b",2,', 1, b'"a,\\",b",'),
        (b"1 ,\n 2,", 1, b"1 ,"),
    ],
)
def test_sub_offset_counts_messages_in_json_mode(
    following: bytes, sub_offset: int, stored: bytes
) -> None:
    size = sub_offset_bytes("application/json; charset=utf-8", following, sub_offset)
    assert following[:size] == stored


@pytest.mark.parametrize(
    ("content_type", "following", "sub_offset"),
    [
        ("text/plain", b"hi", 5),
        ("text/plain", b"hi", 3),
        ("text/plain", b"", 1),
        ("text/plain", b"hi", 2**53 - 1),
        ("application/json", b"1,2,3,", 4),
        ("application/json", b"", 1),
        ("application/json", b'"abcdef",', 2),
        ("application/json", b"1,", 2**53 - 1),
    ],
)
def test_sub_offset_past_the_next_boundary_is_refused(
    content_type: str, following: bytes, sub_offset: int
) -> None:
    with pytest.raises(BadRequest, match=f"Sub-Offset {sub_offset} "):
        sub_offset_bytes(content_type, following, sub_offset)
