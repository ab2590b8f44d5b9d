"""Debian: programs out of Debian's packages, where PATH has them not and they may be had."""

import fcntl
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_TOOLS: Final = Path(sys.prefix) / "tools"
# A mirror that hangs is no reason to hang as well.
_UNPACK_STEP_S: Final = 30  # 30 MB over a slow line
_INSTALL_STEP_S: Final = 60  # 60 MB
_RETRY_S: Final = 600.0  # longer than a run of all tests, whose workers try one after the other

Look = Callable[[], str | None]
Get = Callable[[str, Path], None]


def unpacked(program: str, package: str) -> str | None:
    """Return the path of a program: on PATH, unpacked before, or unpacked now beside the virtual
    environment; None where it is not to be had, which is found out once a run.

    Nothing is installed, so no service starts and nobody has to be root.
    """
    place = _TOOLS / package / "usr" / "bin" / program

    def look() -> str | None:
        return on_path(program) or (str(place) if place.exists() else None)

    return _had(look, _unpack, package, _RETRY_S)


def installed(program: str, package: str) -> str | None:
    """Return the path of a program, installed now if need be; None where it is not to be had, which
    is found out once for each environment.

    For what needs more than its own package. It is installed by root alone, and only where no init
    system would start the package's service.
    """
    if os.geteuid() != 0 or Path("/run/systemd/system").exists():
        return on_path(program)
    return _had(lambda: on_path(program), _install, package, math.inf)


def _had(look: Look, get: Get, package: str, retry_s: float) -> str | None:
    """Return what is found, got first if need be, unless that was tried lately in vain."""
    found = look()
    if found is not None:
        return found
    folder = _TOOLS / package
    folder.mkdir(parents=True, exist_ok=True)
    failed = folder / "failed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers, one gets it
        tried = failed.exists() and time.time() - failed.stat().st_mtime < retry_s
        found = look()
        if found is None and not tried:
            get(package, folder)
            found = look()
            if found is None:
                failed.touch()
        return found


def on_path(program: str) -> str | None:
    """Return the path of a program that is there already."""
    # Debian keeps servers where only root's PATH has them.
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def _unpack(package: str, folder: Path) -> None:
    with TemporaryDirectory() as work:
        os.chmod(work, 0o755)  # apt downloads as a user of its own

        def run(*command: str) -> bool:
            return _run(command, _UNPACK_STEP_S, work)

        download = ("apt-get", "download", package)
        # Lists that are missing or old make it fail, and only root may renew them.
        if not run(*download) and (os.geteuid() or not run("apt-get", "update")):
            return
        if not list(Path(work).glob("*.deb")) and not run(*download):
            return
        (archive,) = Path(work).glob("*.deb")
        run("dpkg", "-x", str(archive), str(folder))


def _install(package: str, folder: Path) -> None:
    install = ("apt-get", "install", "-y", "-q", "--no-install-recommends", package)
    # The lists of packages may be missing, or old.
    if not _run(install, _INSTALL_STEP_S) and _run(("apt-get", "update", "-q"), _INSTALL_STEP_S):
        _run(install, _INSTALL_STEP_S)


def _run(command: Sequence[str], timeout_s: int, folder: str | None = None) -> bool:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
