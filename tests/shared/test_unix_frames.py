"""Frames of the Unix-socket bus, in any pieces and from anybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.interest import BATCH_PATHS_MAX
from shared.protocol.names import PATH_BYTES_MAX
from shared.protocol.offset import Offset
from shared.unix_frames import (
    FRAME_BYTES_MAX,
    BrokenFrame,
    Frames,
    Kind,
    decode_paths,
    decode_wake_body,
    encode_frame,
    encode_paths,
    encode_wake_frame,
)
from shared.wake import ForeignWake, Wake

WAKE = Wake(3, Offset(3, 10).token(), Offset(3, 12).token(), payload=b"ab")
PATHS = st.text(max_size=50).filter(lambda text: text.isprintable() or text.isspace())


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40))), st.data())
def test_frames_come_out_whole_however_they_were_cut(
    frames: list[tuple[Kind, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(kind, body) for kind, body in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    reader = Frames()
    assert [frame for piece in pieces for frame in reader.feed(piece)] == frames


def test_frame_is_not_told_twice_when_its_reader_stops_early() -> None:
    reader = Frames()
    data = encode_frame(Kind.DONE, b"1") + encode_frame(Kind.DONE, b"2")
    feed = reader.feed(data)
    assert next(feed) == (Kind.DONE, b"1")
    feed.close()  # type: ignore[attr-defined]
    assert list(reader.feed(b"")) == [(Kind.DONE, b"2")]


@pytest.mark.parametrize(
    "data",
    [b"\x00\x00\x00\x00?", b"\xff\xff\xff\xff+", b"GET / HTTP/1.1\r\n"],
    ids=["kind", "length", "http"],
)
def test_broken_frame_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenFrame):
        list(Frames().feed(data))


@given(PATHS)
def test_wake_frame_holds_path_and_wake(path: str) -> None:
    [(kind, body)] = Frames().feed(encode_wake_frame(path, WAKE))
    assert kind is Kind.WAKE
    assert decode_wake_body(body) == (path, WAKE)


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00", b"\x00\x02/a", b"\xff\xff/a", b"\x00\x02\xff\xffHW1 ", b"\x00\x02/a{}"],
    ids=["empty", "half a length", "no wake", "length too long", "no utf-8", "foreign"],
)
def test_body_without_a_wake_is_foreign(body: bytes) -> None:
    with pytest.raises(ForeignWake):
        decode_wake_body(body)


@given(st.lists(PATHS))
def test_paths_come_out_as_they_went_in(paths: list[str]) -> None:
    assert decode_paths(encode_paths(paths)) == paths


@pytest.mark.parametrize("body", [b"", b"[", b"{}", b'"/a"', b"[1]", b'["/a",null]'])
def test_body_without_paths_is_broken(body: bytes) -> None:
    with pytest.raises(BrokenFrame):
        decode_paths(body)


def test_fullest_batch_of_longest_paths_fits_a_frame() -> None:
    body = encode_paths(["\x01" * PATH_BYTES_MAX] * BATCH_PATHS_MAX)
    assert len(body) < FRAME_BYTES_MAX
    assert list(Frames().feed(encode_frame(Kind.SUBSCRIBE, body))) == [(Kind.SUBSCRIBE, body)]
