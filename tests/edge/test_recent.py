"""The newest data of all streams, within one bound."""

from edge.recent import PIECE_BYTES_MAX, Piece, Recent


def test_piece_is_found_by_its_keeper_alone() -> None:
    recent = Recent()
    one, other = recent.keeper(), recent.keeper()
    piece = Piece("5", b"12345")
    recent.keep(one, "0", piece)
    assert recent.get(one, "0") is piece
    assert recent.get(other, "0") is None
    assert recent.get(one, "5") is None


def test_oldest_pieces_leave_where_there_are_too_many_bytes() -> None:
    recent = Recent(bytes_max=10_000)
    keeper = recent.keeper()
    for number in range(100):
        recent.keep(keeper, str(number), Piece(str(number + 1), bytes(100)))
    kept = [number for number in range(100) if recent.get(keeper, str(number)) is not None]
    assert kept == list(range(100 - len(kept), 100))
    assert 1000 < sum(100 for _ in kept) <= 10_000


def test_tiny_pieces_are_not_free() -> None:
    recent = Recent(bytes_max=10_000)
    for number in range(1000):
        recent.keep(0, str(number), Piece(str(number + 1), b""))
    assert len(recent._kept) < 100


def test_large_piece_is_not_kept() -> None:
    recent = Recent()
    recent.keep(0, "0", Piece("1", bytes(PIECE_BYTES_MAX + 1)))
    assert recent.get(0, "0") is None


def test_piece_that_comes_twice_counts_once() -> None:
    recent = Recent(bytes_max=1000)
    for _ in range(10):
        recent.keep(0, "0", Piece("1", bytes(100)))
    recent.keep(0, "1", Piece("2", bytes(100)))
    assert recent.get(0, "0") is not None
