"""A reader of a load test notices what is missing, doubled, out of order or foreign."""

import pytest

from loadtests.client import BadReply
from loadtests.dialect import stamps_in, waves_in
from loadtests.ledger import Sent
from loadtests.locusts.notes import (
    NOTE_BYTES_MIN,
    Account,
    Doubled,
    Events,
    Foreign,
    Gap,
    Note,
    Wrong,
    decode,
    encode,
    settle,
)

ALICE, BOB = "a11ce000", "b0b00000"


def notes(writer: str, *numbers: int) -> list[Note]:
    return [Note(writer, number, 1_795_000_000.25 + number % 1000) for number in numbers]


def array(*found: Note, size: int = 120) -> bytes:
    return b"[" + b",".join(encode(note, size) for note in found) + b"]"


@pytest.mark.parametrize("size", [NOTE_BYTES_MIN, NOTE_BYTES_MIN + 1, 120])
def test_a_note_is_read_as_it_was_written(size: int) -> None:
    written = [*notes(ALICE, 1, 2), *notes(BOB, 9_999_999_999)]
    assert decode(array(*written, size=size)) == written
    assert {len(encode(note, size)) for note in written} == {size}


def test_a_swarm_finds_number_and_time_in_it() -> None:
    body = array(*notes(ALICE, 7, 8))
    assert waves_in(body) == (7, 8)
    assert stamps_in(body) == (1_795_000_007.25, 1_795_000_008.25)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"a": 1}', id="no-array"),
        pytest.param(array(*notes(ALICE, 1))[:-5], id="cut-off"),
        pytest.param(b"[1]", id="no-text"),
        pytest.param(array(*notes(ALICE, 1)).replace(b".", b"!", 1), id="a-byte-changed"),
        pytest.param(array(*notes(ALICE, 1)).replace(b"@", b"", 1), id="a-byte-missing"),
    ],
)
def test_what_nobody_wrote_is_foreign(body: bytes) -> None:
    with pytest.raises(Foreign):
        decode(body)


def judge(account: Account, taken: list[Note]) -> list[type[Wrong]]:
    found: list[type[Wrong]] = []
    for note in taken:
        try:
            account.take(note)
        except Wrong as wrong:
            found.append(type(wrong))
    return found


@pytest.mark.parametrize(
    ("taken", "wrong"),
    [
        pytest.param(notes(ALICE, 1, 2, 3), [], id="all-well"),
        pytest.param([*notes(ALICE, 1), *notes(BOB, 1), *notes(ALICE, 2)], [], id="two-writers"),
        pytest.param(notes(ALICE, 2, 3), [Gap], id="first-missing"),
        pytest.param(notes(ALICE, 1, 3, 4), [Gap], id="one-missing-counts-once"),
        pytest.param(notes(ALICE, 1, 1, 2), [Doubled], id="doubled"),
        pytest.param(notes(ALICE, 1, 3, 2), [Gap, Doubled], id="out-of-order"),
        pytest.param(notes(ALICE, 1, 2, 1, 2, 3), [Doubled, Doubled], id="read-again"),
    ],
)
def test_a_reader_from_the_beginning(taken: list[Note], wrong: list[type[Wrong]]) -> None:
    account = Account(from_start=True)
    assert judge(account, taken) == wrong
    assert account.seen == len(taken)


def test_a_reader_from_now_begins_anywhere_but_goes_on_in_order() -> None:
    assert judge(Account(from_start=False), notes(ALICE, 7, 8)) == []
    assert judge(Account(from_start=False), notes(ALICE, 7, 9, 9)) == [Gap, Doubled]


def test_books_of_several_writers_are_settled_together() -> None:
    sent = {ALICE: Sent(2), BOB: Sent(1, {0})}
    assert settle(sent, [*notes(ALICE, 1, 2)]).clean
    assert settle(sent, [*notes(BOB, 1), *notes(ALICE, 1, 2)]).clean
    assert settle(sent, notes(ALICE, 1)).lost == 1
    assert settle(sent, notes(ALICE, 1, 2, 2)).doubled == 1
    assert settle(sent, [*notes(ALICE, 1, 2), *notes("c0c0c0c0", 1)]).foreign == 1


def test_events_come_whole_however_they_are_cut() -> None:
    told = b'event: data\ndata:["a"]\n\n:\n\nevent: control\ndata:{"x":\ndata:1}\n\n'
    for cut in range(len(told)):
        events = Events()
        found = events.feed(told[:cut]) + events.feed(told[cut:])
        assert found == [("data", b'["a"]'), ("control", b'{"x":\n1}')]
        assert events.whole
    assert not (cut_off := Events()).feed(told[:-1])[2:]
    assert not cut_off.whole
    with pytest.raises(BadReply, match="not a line"):
        Events().feed(b"HTTP/1.1 200 OK\n\n")
