"""A short real run of locust: everybody looks at what they get, and all of it is right."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from loadtests.launch import ROOT
from tests.service import Service

READERS = 1000
USERS = 24
SECONDS = 10
PEOPLE = ("Broadcaster", "CatchUp", "Chat", "LongPollFollower", "SseFollower", "Swarm", "Writer")


@pytest.mark.timeout(90)
def test_a_run_of_everybody_finds_nothing_wrong(tmp_path: Path) -> None:
    flags = ["up", "--port", "0", "--admin-port", "0", "--data-dir", str(tmp_path / "data")]
    with Service.start([*flags, "--drain-s", "0.1"]) as service:
        found = run(
            service.url, tmp_path, "--readers", READERS, "--reader-mode", "lp",
            "--users", USERS, "--spawn-rate", USERS, "--run-time", f"{SECONDS}s", "--rate", 2,
            "--lost-replies", 0.1, "--processes", 2,
        )  # fmt: skip
    count = Counter({key: entry["num_requests"] for key, entry in found.items()})
    # Everyone has looked at everything once more at the end.
    assert sum(count["AUDIT", who] for who in PEOPLE) == USERS
    for who in PEOPLE:
        assert count["AUDIT", who] > 0
    # Replies were lost on purpose, and nothing was doubled by it.
    assert count["POST", "writer again"] + count["POST", "chat again"] > 0
    for reader in ("broadcast long-poll", "broadcast sse", "chat long-poll", "chat sse"):
        assert count["DELIVERY", reader] > 0
    # All of the crowd are given what any of them is.
    assert count["DELIVERY", "broadcast swarm lp"] >= READERS * SECONDS
    assert count["DELIVERY", "broadcast swarm lp"] % READERS == 0
    assert count["GET", "broadcast catch-up"] > 0


def run(url: str, folder: Path, *arguments: object) -> dict[tuple[str, str], dict[str, Any]]:
    """Run locust, in which nothing may fail; return its statistics by method and name."""
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless"]
    command += ["--host", url, "--json-file", str(folder / "run"), "--only-summary"]
    command += ["--stop-timeout", "30", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, said
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in orjson.loads((folder / "run.json").read_bytes()):
        assert entry["num_failures"] == 0, said
        entries[entry["method"], entry["name"]] = entry
    return entries
