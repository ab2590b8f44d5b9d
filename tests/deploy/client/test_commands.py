"""The command line: its help, wrong usage, and exit codes."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.client.commands import EXIT_CODES
from deploy.client.running import Exit
from tests.deploy.client.running import run, run_beside
from tests.deploy.client.script import Serve, refusal

PAGE = Path(__file__).parents[3] / "deploy" / "README.md"
COMMANDS = ("create", "append", "read", "tail", "head", "close", "delete")
COMMON = {"--help", "--token", "--retry-for", "--verbose"}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Exit.REFUSED),
        (401, Exit.REFUSED),
        (403, Exit.CONFLICT),
        (404, Exit.NOT_FOUND),
        (405, Exit.REFUSED),
        (409, Exit.CONFLICT),
        (410, Exit.GONE),
        (412, Exit.CONFLICT),
        (413, Exit.REFUSED),
        (414, Exit.REFUSED),
        (429, Exit.UNAVAILABLE),
        (500, Exit.UNEXPECTED),
        (501, Exit.REFUSED),
        (503, Exit.UNAVAILABLE),
    ],
)
async def test_status_becomes_an_exit_code_and_one_line(
    serve: Serve, status: int, code: Exit
) -> None:
    script = await serve(refusal(status, "the server's own words"))
    done = await run_beside("read", script.url, "--retry-for", "0")
    assert done.code == code
    assert done.out == b""
    assert done.err.startswith(f"headwater: {script.url}: the server's own words (HTTP {status}")
    assert done.err.count("\n") == 1


def test_help_of_every_command_tells_every_exit_code() -> None:
    for command in COMMANDS:
        done = run(command, "--help")
        assert done.code == Exit.OK
        assert EXIT_CODES.encode() in done.out
    listed = {int(line.split()[0]) for line in EXIT_CODES.splitlines() if line[2:3].isdigit()}
    assert listed == {int(code) for code in Exit}


@pytest.mark.parametrize("command", COMMANDS)
def test_page_lists_every_option_of(command: str) -> None:
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{command} "))
    options = run(command, "--help").out.decode().partition("\noptions:")[2]
    taken = set(re.findall(r"^  (?:-., )?(--[a-z-]+)", options, re.MULTILINE))
    assert taken >= COMMON
    assert set(re.findall(r"--[a-z-]+", row)) == taken - COMMON


def test_page_lists_every_exit_code() -> None:
    section = PAGE.read_text().partition("| exit code |")[2].partition("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) ", section, re.MULTILINE)] == list(Exit)


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["read"], id="no URL"),
        pytest.param(["read", "ftp://host/s"], id="not http"),
        pytest.param(["read", "http://"], id="no host"),
        pytest.param(["read", "http://host:port/s"], id="bad port"),
        pytest.param(["read", "http://host/a#b"], id="fragment"),
        pytest.param(["read", "http://host/a/../b"], id="dot segments"),
        pytest.param(["delete", "a/.."], id="dot segments in a path"),
        pytest.param(["read", ""], id="empty path"),
        pytest.param(["read", "http://host/a?offset=5"], id="offset in the URL"),
        pytest.param(["tail", "http://host/a?live=sse"], id="live in the URL"),
        pytest.param(["append", "s"], id="nothing to append"),
        pytest.param(["append", "s", "a", "-"], id="stdin among others"),
        pytest.param(["append", "s", "a", "--lines"], id="lines and data"),
        pytest.param(["append", "s", "a", "--epoch", "1"], id="epoch alone"),
        pytest.param(["append", "s", "a", "--producer-id", "p", "--epoch", "-1"], id="epoch < 0"),
        pytest.param(["append", "s", "a", "--producer-id", ""], id="empty producer"),
        pytest.param(["append", "s", "a", "--producer-id", "p", "--exactly-once"], id="two ids"),
        pytest.param(["append", "s", "a", "b", "--seq", "1"], id="one seq for two"),
        pytest.param(["append", "s", "a", "--seq", "a\r\nb: c"], id="header injection"),
        pytest.param(["create", "s", "--ttl", "1.5"], id="ttl of a fraction"),
        pytest.param(["create", "s", "--ttl", "5", "--expires-at", "x"], id="two expiries"),
        pytest.param(["create", "s", "--fork-offset", "5"], id="fork offset alone"),
        pytest.param(["create", "s", "--fork-from", "http://other/s"], id="fork from elsewhere"),
        pytest.param(["read", "s", "--retry-for", "nan"], id="no time"),
        pytest.param(["read", "s", "--token", "sécret"], id="token beyond ASCII"),
        pytest.param(["read", "http://u:p@host/s", "--token", "secret"], id="user and token"),
    ],
)
def test_wrong_usage_sends_nothing(argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever is sent after all is refused with another exit code.
    monkeypatch.setenv("HEADWATER_URL", "http://127.0.0.1:9/v1/stream/")
    done = run(*argv)
    assert (done.code, done.out) == (Exit.USAGE, b"")
    assert done.err
