"""The commands for whoever keeps the data: check a folder, copy it."""

import argparse
import sys
from pathlib import Path
from typing import Final, TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_FAULTS, _USAGE = 1, 2

_CHECK: Final = """\
Reads a whole data folder and changes nothing: every checksum, the index against
the journal and its packs, append boundaries, forks, and what is counted. Each
fault is one line that names file and record. No origin may be using the folder.

exit codes:
  0    no faults
  1    faults
  2    it is no data folder, or an origin is using it"""

_BACKUP: Final = """\
Copies a data folder as of one moment, while an origin goes on writing to it. The
copy is a data folder: `headwater check TARGET` verifies it, and `headwater up
--data-dir TARGET` serves it. The log of the original grows until the copy is
done.

exit codes:
  0    TARGET holds the copy
  1    it does not, and the message says why"""


def add_maintenance_commands(subparsers: Subparsers) -> None:
    """Add the commands; each sets `run` to a function from the namespace to an exit code."""
    for name, text, more, run in (
        ("check", "verify a data folder that is not in use", _CHECK, _check),
        ("backup", "copy a data folder while it is in use", _BACKUP, _backup),
    ):
        parser = subparsers.add_parser(
            name,
            help=text,
            description=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("folder", metavar="DIR", type=Path, help="the data folder")
        if name == "backup":
            parser.add_argument("target", metavar="TARGET", type=Path, help="an empty folder")
        parser.set_defaults(run=run)


def _check(given: argparse.Namespace) -> int:
    from origin.check import NoFolder, check
    from origin.journal import JournalFailed

    faults = 0
    try:
        for fault in check(given.folder):
            faults += 1
            print(fault, flush=True)
    except (NoFolder, JournalFailed) as error:
        print(f"headwater check: {error}", file=sys.stderr)
        return _USAGE
    print(f"{given.folder}: {faults or 'no'} fault{'' if faults == 1 else 's'}")
    return _FAULTS if faults else 0


def _backup(given: argparse.Namespace) -> int:
    from origin.backup import BackupFailed, backup

    shown = sys.stderr.isatty()

    def progress(name: str, done: int, pages: int) -> None:
        if shown:
            print(f"\r{name}: {done * 100 // max(pages, 1)} %  ", end="", file=sys.stderr)

    try:
        backup(given.folder, given.target, progress)
    except BackupFailed as error:
        print(f"headwater backup: {error}", file=sys.stderr)
        return 1
    finally:
        if shown:
            print(file=sys.stderr)
    print(f"{given.target} holds a copy of {given.folder}")
    return 0
