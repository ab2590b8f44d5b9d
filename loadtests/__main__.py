"""python -m loadtests SCENARIO: measure Headwater beside other servers, in one run."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from loadtests import append, catchup, fanout, forget, reads, storm, streams, wakes
from loadtests.launch import FOREIGN, KNOWN, REDIS, CannotStart
from loadtests.report import show
from loadtests.servers import raise_descriptor_limit

SCENARIOS = {
    "append": append,
    "fanout": fanout,
    "streams": streams,
    "reads": reads,
    "storm": storm,
    "catchup": catchup,
    "forget": forget,
    "wakes": wakes,
}


_CROWDS = {"fanout", "streams", "storm"}


def _names(scenario: str) -> list[str]:
    if scenario == "wakes":
        return [REDIS]
    return [
        name for name in KNOWN if name != REDIS and (scenario in _CROWDS or name not in FOREIGN)
    ]


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return Path(text)


def _servers(text: str, known: list[str]) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in known or chosen.count(name) > 1:
            raise argparse.ArgumentTypeError(f"expected once each of {', '.join(known)}: {name!r}")
    return chosen


def main(argv: list[str]) -> int:
    """Run one scenario. Exits 1 if a server broke a promise, 2 if the run could not begin."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    scenarios = parser.add_subparsers(dest="scenario", required=True)
    for name, scenario in SCENARIOS.items():
        one = scenarios.add_parser(
            name,
            help=scenario.__doc__,
            description=scenario.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        one.add_argument(
            "--against",
            type=partial(_servers, known=_names(name)),
            default=scenario.AGAINST,
            metavar="NAMES",
            help=f"the last is the reference of the ratios; of {', '.join(_names(name))}",
        )
        one.add_argument(
            "--folder",
            type=_folder,
            default=Path(tempfile.gettempdir()),
            help="where the servers' data folders are made; its disk is the one that is measured",
        )
        one.add_argument("--json", type=Path, metavar="FILE", help="instead of stdout")
        scenario.add_arguments(one)
    args = parser.parse_args(argv)
    raise_descriptor_limit()
    try:
        result = SCENARIOS[args.scenario].run(args, argv)
    except (CannotStart, ValueError) as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 2
    show(result, args.json)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
