"""The commands, against the service."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from deploy.client.running import Exit
from tests.deploy.client.running import Done, run
from tests.service import HEADWATER, ROOT, Service

COMMAND_TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = str(tmp_path_factory.mktemp("data"))
    with Service.start(["up", "--port", "0", "--admin-port", "0", "--data-dir", data]) as running:
        yield running


@dataclass(frozen=True)
class Headwater:
    """The commands, with the service as their base URL."""

    base: str

    def __call__(self, *argv: str, stdin: bytes = b"") -> Done:
        return run(*argv, stdin=stdin)

    def ok(self, *argv: str, stdin: bytes = b"") -> bytes:
        done = self(*argv, stdin=stdin)
        assert (done.code, done.err) == (Exit.OK, "")
        return done.out

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a command as a process of its own, with pipes."""
        return subprocess.Popen(
            [*HEADWATER, *argv],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def headwater(service: Service, monkeypatch: pytest.MonkeyPatch) -> Headwater:
    base = f"{service.url}/v1/stream/"
    monkeypatch.setenv("HEADWATER_URL", base)
    return Headwater(base)


def test_stream_lives_by_the_commands(headwater: Headwater) -> None:
    headwater.ok("create", "life", "--content-type", "text/plain", "--data", "one\n")
    headwater.ok("append", "life", "two\n")
    assert headwater.ok("append", "life", "--lines", stdin=b"three\nfour\n") == b""
    assert headwater.ok("read", "life") == b"one\ntwo\nthree\nfour\n"
    facts = json.loads(headwater.ok("head", "life", "--json"))
    assert facts["content_type"] == "text/plain"
    assert facts["closed"] is False
    headwater.ok("close", "life")
    assert "closed: true\n" in headwater.ok("head", "life").decode()
    assert headwater("append", "life", "five").code == Exit.CONFLICT
    assert headwater.ok("tail", "life", "--offset", "-1") == b"one\ntwo\nthree\nfour\n"
    headwater.ok("delete", "life")
    assert headwater("read", "life").code == Exit.NOT_FOUND


def test_json_messages_come_back_with_numbers_and_keys_as_they_were(headwater: Headwater) -> None:
    sent = b'{"z":1.0,"a":12345678901234567890}\n[1,2]\n"\\u00e9"\n'
    headwater.ok("create", "json", "--content-type", "application/json")
    headwater.ok("append", "json", "--lines", stdin=sent)
    assert headwater.ok("read", "json") == sent


def test_stream_of_many_chunks_is_read_whole(headwater: Headwater) -> None:
    body = os.urandom(5 << 20)
    headwater.ok("create", "large")
    headwater.ok("append", "large", "--lines", stdin=body)
    assert headwater.ok("read", "large") == body


def test_next_offset_is_where_the_next_read_begins(headwater: Headwater) -> None:
    headwater.ok("create", "steps", "--content-type", "text/plain", "--data", "one")
    offset = headwater("read", "steps", "-v").err.split()[-1]
    assert headwater("append", "steps", "two", "-v").err.split()[-1] > offset
    assert headwater.ok("read", "steps", "--offset", offset) == b"two"


def test_fork_begins_with_its_source(headwater: Headwater) -> None:
    headwater.ok("create", "source", "--content-type", "text/plain", "--data", "shared")
    offset = headwater("read", "source", "-v").err.split()[-1]
    headwater.ok("append", "source", " not")
    headwater.ok("create", "fork", "--fork-from", "source", "--fork-offset", offset)
    headwater.ok("append", "fork", " own")
    assert headwater.ok("read", "fork") == b"shared own"
    within = ["--fork-from", "/v1/stream/source", "--fork-offset", offset, "--fork-sub-offset", "2"]
    headwater.ok("create", "part", *within)
    assert headwater.ok("read", "part") == b"shared n"
    assert headwater("create", "none", "--fork-from", "nothing").code == Exit.NOT_FOUND


def test_producer_that_runs_again_stores_nothing_twice(
    headwater: Headwater, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.client.batches.BATCH_LINES", 2)
    headwater.ok("create", "once", "--content-type", "application/json")
    argv = ["append", "once", "--lines", "--producer-id", "p", "--epoch", "1"]
    sent = b"1\n2\n3\n4\n5\n"
    headwater.ok(*argv, stdin=sent)
    again = headwater(*argv, stdin=sent)
    assert again.code == Exit.OK
    assert "3 of 3 appends had been stored before" in again.err
    assert headwater.ok("read", "once") == sent
    stale = headwater("append", "once", "6", "--producer-id", "p", "--epoch", "0")
    assert stale.code == Exit.CONFLICT
    assert "epoch 1" in stale.err


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        pytest.param(["create", "there", "--content-type", "a/b"], Exit.CONFLICT, id="other type"),
        pytest.param(["append", "there", "x", "--content-type", "a/b"], Exit.CONFLICT, id="type"),
        pytest.param(["append", "there", "x", "--seq", "1"], Exit.CONFLICT, id="seq not after"),
        pytest.param(["append", "there", ""], Exit.REFUSED, id="empty"),
        pytest.param(["read", "there", "--offset", "a,b"], Exit.REFUSED, id="offset"),
        pytest.param(["create", "new", "--ttl", "18446744073709551615"], Exit.REFUSED, id="ttl"),
        pytest.param(["create", "new", "--expires-at", "soon"], Exit.REFUSED, id="expires-at"),
        pytest.param(["head", "nowhere"], Exit.NOT_FOUND, id="head"),
        pytest.param(["tail", "nowhere"], Exit.NOT_FOUND, id="tail"),
        pytest.param(["append", "nowhere", "x"], Exit.NOT_FOUND, id="append"),
        pytest.param(["close", "nowhere"], Exit.NOT_FOUND, id="close"),
        pytest.param(["delete", "nowhere"], Exit.NOT_FOUND, id="delete"),
    ],
)
def test_refusal_of_the_service_is_an_exit_code(
    headwater: Headwater, argv: Sequence[str], code: Exit
) -> None:
    headwater("create", "there", "--content-type", "text/plain")
    headwater("append", "there", "x", "--seq", "1")
    done = headwater(*argv)
    assert done.code == code
    assert done.err.startswith(f"headwater: {headwater.base}")
    assert done.err.count("\n") == 1


def test_append_larger_than_the_service_takes_is_refused(headwater: Headwater) -> None:
    headwater.ok("create", "bounded")
    done = headwater("append", "bounded", "-", stdin=bytes(11 << 20))
    assert done.code == Exit.REFUSED
    assert "413" in done.err


@pytest.mark.parametrize("how", [[], ["--sse"]], ids=["long-poll", "sse"])
@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "a/binary"])
def test_tail_shows_what_is_appended_until_the_close(
    headwater: Headwater, how: list[str], content_type: str
) -> None:
    path = f"followed/{content_type}/{len(how)}"
    headwater.ok("create", path, "--content-type", content_type, "--data", "1")
    first = b"1\n" if content_type == "application/json" else b"1"
    with headwater.start("tail", path, "--offset", "-1", *how) as tail:
        assert tail.stdout is not None
        assert tail.stdout.read(len(first)) == first
        for number in (2, 3):
            headwater.ok("append", path, str(number))
            expected = first.replace(b"1", b"%d" % number)
            assert tail.stdout.read(len(first)) == expected
        headwater.ok("append", path, "4", "--close")
        out, err = tail.communicate(timeout=COMMAND_TIMEOUT_S)
    assert out == first.replace(b"1", b"4")
    assert (tail.returncode, err) == (Exit.OK, b"")


def test_interrupted_tail_says_where_it_was(headwater: Headwater) -> None:
    headwater.ok("create", "interrupted", "--content-type", "text/plain", "--data", "1")
    offset = headwater("read", "interrupted", "-v").err
    with headwater.start("tail", "interrupted", "--offset", "-1", "-v") as tail:
        assert tail.stdout is not None
        assert tail.stdout.read(1) == b"1"
        tail.send_signal(signal.SIGINT)
        _, err = tail.communicate(timeout=COMMAND_TIMEOUT_S)
    assert (tail.returncode, err.decode()) == (Exit.INTERRUPTED, offset)


def test_interrupted_append_of_lines_ends_at_once(headwater: Headwater) -> None:
    headwater.ok("create", "typed", "--content-type", "text/plain")
    with (
        headwater.start("tail", "typed", "--offset", "-1") as tail,
        headwater.start("append", "typed", "--lines") as typing,
    ):
        assert tail.stdout is not None
        assert typing.stdin is not None
        for line in (b"one\n", b"two\n"):
            typing.stdin.write(line)
            typing.stdin.flush()
            # Each line is there while the next one is not typed yet.
            assert tail.stdout.readline() == line
        typing.send_signal(signal.SIGINT)
        assert typing.wait(COMMAND_TIMEOUT_S) == Exit.INTERRUPTED
        tail.kill()


def test_read_ends_in_silence_when_nobody_reads_it(headwater: Headwater) -> None:
    headwater.ok("create", "unread")
    headwater.ok("append", "unread", "-", stdin=bytes(3 << 20))
    with headwater.start("read", "unread") as read:
        assert read.stdout is not None
        assert read.stdout.read(1) == b"\0"
        read.stdout.close()
        assert read.stderr is not None
        assert read.stderr.read() == b""
    assert read.returncode == Exit.OK


def test_tail_ends_in_silence_when_nobody_reads_it_though_it_is_idle(headwater: Headwater) -> None:
    headwater.ok("create", "idle", "--content-type", "text/plain", "--data", "1")
    with headwater.start("tail", "idle", "--offset", "-1") as tail:
        assert tail.stdout is not None
        assert tail.stdout.read(1) == b"1"
        tail.stdout.close()
        assert tail.stderr is not None
        assert tail.stderr.read() == b""
        assert tail.wait(COMMAND_TIMEOUT_S) == Exit.OK
