"""The command line of the client: which commands there are, and what they take."""

import argparse
import contextlib
from typing import TypeAlias

from deploy.client.actions import Action, close, create, delete, head, read, tail
from deploy.client.appending import append
from deploy.client.running import run
from deploy.client.targets import BASE_URL
from shared.protocol import names

# A tail is left running, and outlives a restart of the server; the rest is waited for.
RETRY_FOR_S = 10.0
RETRY_TAIL_FOR_S = 300.0

EXIT_CODES = f"""\
URL is the http URL of a stream, or a path such as foo/bar, which is taken
relative to $HEADWATER_URL (default: {BASE_URL}).

exit codes:
  0    done; for tail, the stream was closed
  1    something unexpected, such as an error of the server or a full disk
  2    wrong usage
  3    there is no such stream (404)
  4    a conflict, or the stream is closed (403, 409, 412)
  5    gone: the stream, or this part of it, is not kept any more (410)
  6    unavailable: no server, too busy, or no answer in time; an append whose
       answer was lost is not sent again blindly, and the message says so
  7    refused as bad (400, 413, any other 4xx), or input that can't be appended
  130  interrupted
"""

APPEND = """\
Each DATA is one append, in order. DATA - is all of standard input, as one
append. With --lines, standard input is appended as it arrives.

An append whose answer was lost may have been stored, so it is not sent again:
the exit code is 6, and the next offset shows what was stored. To have lost
answers retried without storing anything twice, give --exactly-once; to be
able to run the whole command again too, with the same input, give
--producer-id, and another --epoch, a larger one, when the input is new."""

READ = """\
Data goes to standard output: the messages of a JSON stream one a line, with
their bytes as they came; other streams as they are. Progress of long reads is
shown on standard error when that is a terminal."""

TAIL = """\
Data goes to standard output as it is appended, in the form of `read`. When the
connection is lost, tail goes on where it was: nothing is missing or double."""

# argparse has no public name for it, and it takes no parameter at run time.
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_client_commands(subparsers: Subparsers) -> None:
    """Add the commands; each sets `run` to a function from the namespace to an exit code."""
    _add_create(subparsers)
    _add_append(subparsers)
    _add_read(subparsers)
    _add_tail(subparsers)
    parser = _command(subparsers, "head", head, "show what a stream is, as `key: value` lines")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    _command(subparsers, "close", close, "close a stream: no appends any more, ever")
    _command(subparsers, "delete", delete, "delete a stream and its data")


def _add_create(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "create", create, "create a stream, or make sure it exists")
    parser.add_argument("--content-type", metavar="T", type=header_text, help="its media type")
    expiry = parser.add_mutually_exclusive_group()
    expiry.add_argument(
        "--ttl", metavar="S", type=whole, help="expire after S seconds without a read or write"
    )
    expiry.add_argument(
        "--expires-at", metavar="TS", type=header_text, help="expire at this RFC 3339 time"
    )
    parser.add_argument("--closed", action="store_true", help="complete: no appends, ever")
    parser.add_argument(
        "--data", metavar="STR", help="the first data; - reads it from standard input"
    )
    parser.add_argument(
        "--fork-from", metavar="PATH", help="begin with the data of this stream, on the same server"
    )
    parser.add_argument(
        "--fork-offset", metavar="O", type=header_text, help="up to this offset (default: its tail)"
    )
    parser.add_argument(
        "--fork-sub-offset",
        metavar="N",
        type=whole,
        help="and N bytes more; N messages more of a JSON stream",
    )


def _add_append(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "append", append, "append to a stream", APPEND)
    data = parser.add_argument("data", metavar="DATA", nargs="+", help="what to append")
    # Optional all the same: with "*", argparse takes DATA for absent when an option stands first.
    data.required = False
    parser.usage = "%(prog)s [options] URL [DATA ...]"
    parser.add_argument(
        "--lines",
        action="store_true",
        help="append the lines of standard input: in a JSON stream each is a message, "
        "in others no line is ever split over two appends",
    )
    parser.add_argument(
        "--content-type", metavar="T", type=header_text, help="default: ask the server first"
    )
    producer = parser.add_mutually_exclusive_group()
    producer.add_argument(
        "--exactly-once",
        action="store_true",
        help="as a producer made up for this run, so that lost answers can be retried",
    )
    producer.add_argument(
        "--producer-id", metavar="ID", type=header_text, help="as this producer, from number 0 on"
    )
    parser.add_argument(
        "--epoch", metavar="N", type=whole, help="which life of the producer this is (default: 0)"
    )
    parser.add_argument(
        "--seq", metavar="SEQ", type=header_text, help="Stream-Seq: refuse what is not after it"
    )
    parser.add_argument("--close", action="store_true", help="close the stream with the last one")


def _add_read(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "read", read, "read a stream to its tail", READ)
    parser.add_argument(
        "--offset", metavar="O", default=names.BEGINNING, help="start here (default: -1)"
    )
    parser.add_argument("--output", metavar="FILE", help="write to FILE")
    parser.add_argument("--raw", action="store_true", help="JSON bodies as they come: arrays")
    parser.add_argument("--progress", action="store_true", help="show progress in any case")


def _add_tail(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "tail", tail, "follow a stream until it is closed", TAIL)
    parser.set_defaults(retry_for=RETRY_TAIL_FOR_S)
    parser.add_argument(
        "--offset", metavar="O", default=names.NOW, help="start here (default: now; -1: all of it)"
    )
    parser.add_argument(
        "--sse",
        action="store_true",
        help="by server-sent events, which make every line end of text a newline",
    )
    parser.add_argument("--raw", action="store_true", help="JSON bodies as they come: arrays")


def _command(
    subparsers: Subparsers, name: str, action: Action, about: str, details: str = ""
) -> argparse.ArgumentParser:
    """Add one command with what all of them have."""
    parser = subparsers.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.\n\n{details}".rstrip(),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="the stream")
    parser.add_argument(
        "--token", help="sent as a Bearer token (default: $HEADWATER_TOKEN, which ps does not show)"
    )
    parser.add_argument(
        "--retry-for",
        metavar="S",
        type=seconds,
        default=RETRY_FOR_S,
        help="how long to try again when it is unavailable (default: %(default)g)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say the next offset on standard error"
    )
    parser.set_defaults(run=lambda args: run(name, action, args))
    return parser


def whole(text: str) -> int:
    """Parse a number of at least 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number, received {text!r}")
    return int(text[:20])  # what does not fit is for the server to refuse


def seconds(text: str) -> float:
    """Parse a time to wait."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"expected seconds, received {text!r}")


def header_text(text: str) -> str:
    """Parse what can stand in a header."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected printable text, received {text!r}")
    return text
