"""Installed: a program on PATH, brought there as a Debian package where that may be done."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_STEP_S: Final = 60  # 60 MB over a slow line; a mirror that hangs is no reason to hang as well


def find(program: str, package: str) -> str | None:
    """Return the path of a program, installed now if need be; None where it is not to be had, which
    is found out once for each environment.

    It is installed by root alone, and only where no init system would start the package's service.
    """
    found = _on_path(program)
    if found is not None or os.geteuid() != 0 or Path("/run/systemd/system").exists():
        return found
    folder = Path(sys.prefix) / "tools"
    folder.mkdir(exist_ok=True)
    failed = folder / f"{package}.failed"
    with (folder / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers, one installs
        if _on_path(program) is None and not failed.exists():
            _install(package)
        found = _on_path(program)
        if found is None:
            failed.touch()
        return found


def _on_path(program: str) -> str | None:
    # Debian keeps servers where only root's PATH has them.
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def _install(package: str) -> None:
    install = ("apt-get", "install", "-y", "-q", "--no-install-recommends", package)
    # The lists of packages may be missing, or old.
    if not _run(install) and _run(("apt-get", "update", "-q")):
        _run(install)


def _run(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_STEP_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
