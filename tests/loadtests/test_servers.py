"""Starting, stopping and asking the servers that are measured."""

import os
import sys
from pathlib import Path

import pytest

from loadtests import launch, servers
from loadtests.launch import CannotStart, Launch, Options
from loadtests.servers import running

READY = "print('ready at http://127.0.0.1:4437, try: curl http://127.0.0.1:4437', flush=True)\n"


def _use(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    script_launch = Launch([sys.executable, "-c", script])
    monkeypatch.setitem(launch.KNOWN, "script", lambda folder, options: script_launch)


def test_server_is_stopped_and_its_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, READY + "import time\ntime.sleep(600)")
    with running("script", tmp_path, Options()) as server:
        assert server.url == "http://127.0.0.1:4437"
        assert server.counter("any") is None
        os.kill(server.pid, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_server_that_ignores_the_request_to_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignore = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    _use(monkeypatch, ignore + READY + "time.sleep(600)")
    monkeypatch.setattr(servers, "STOP_S", 0.1)
    with running("script", tmp_path, Options()) as server:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_server_that_does_not_start_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, "import sys\nsys.exit('no such disk')")
    with (
        pytest.raises(CannotStart, match=r"(?s)script ended with 1.*no such disk"),
        running("script", tmp_path, Options()),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_server_that_never_gets_ready_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(
        monkeypatch, "import time\nprint('http://127.0.0.1:1', end='', flush=True)\ntime.sleep(600)"
    )
    monkeypatch.setattr(servers, "READY_S", 0.5)
    with (
        pytest.raises(CannotStart, match="was not ready"),
        running("script", tmp_path, Options()),
    ):
        pass
