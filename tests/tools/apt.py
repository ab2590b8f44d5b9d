"""Apt: a program out of a Debian package, unpacked beside the virtual environment: nothing of it is
installed, so no service starts and nobody has to be root."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_TOOLS: Final = Path(sys.prefix) / "tools"
_STEP_S: Final = 30  # 30 MB over a slow line; a mirror that hangs is no reason to hang as well
_RETRY_S: Final = 600.0  # longer than a run of all tests, whose workers try one after the other


def find(program: str, package: str) -> str | None:
    """Return the path of a program: on PATH, unpacked before, or unpacked now; None where it is not
    to be had, which is found out once a run."""
    on_path = shutil.which(program)
    if on_path is not None:
        return on_path
    folder = _TOOLS / package
    folder.mkdir(parents=True, exist_ok=True)
    unpacked, failed = folder / "usr" / "bin" / program, folder / "failed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers, one unpacks
        tried = failed.exists() and time.time() - failed.stat().st_mtime < _RETRY_S
        if not unpacked.exists() and not tried:
            _unpack(package, folder)
        if unpacked.exists():
            return str(unpacked)
        if not tried:
            failed.touch()
        return None


def _unpack(package: str, folder: Path) -> None:
    with TemporaryDirectory() as work:
        os.chmod(work, 0o755)  # apt downloads as a user of its own
        download = ("apt-get", "download", package)
        # Lists that are missing or old make it fail, and only root may renew them.
        if not _run(download, work) and (os.geteuid() or not _run(("apt-get", "update"), work)):
            return
        if not list(Path(work).glob("*.deb")) and not _run(download, work):
            return
        (archive,) = Path(work).glob("*.deb")
        _run(("dpkg", "-x", str(archive), str(folder)), work)


def _run(command: Sequence[str], folder: str) -> bool:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_STEP_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
