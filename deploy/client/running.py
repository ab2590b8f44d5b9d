"""Running one command: its connections, what went wrong on one line, and the exit code."""

import argparse
import asyncio
from enum import IntEnum

from deploy.client.actions import Action
from deploy.client.failures import BadInput, ClientFailure, Refused, Unavailable, Usage
from deploy.client.output import say, silence_output
from deploy.client.targets import base_url, bearer, redacted, stream_url
from deploy.client.wire import Wire


class Exit(IntEnum):
    """What a script learns from a command; the help says it to people."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    GONE = 5
    UNAVAILABLE = 6
    REFUSED = 7
    INTERRUPTED = 130


STATUS_EXIT = {
    404: Exit.NOT_FOUND,
    403: Exit.CONFLICT,
    409: Exit.CONFLICT,
    412: Exit.CONFLICT,
    410: Exit.GONE,
}


def run(name: str, action: Action, args: argparse.Namespace) -> int:
    """Run one command, say on one line what went wrong, and return the exit code."""
    shown = redacted(args.url)
    try:
        url = stream_url(args.url, base_url())
        shown = redacted(str(url))
        token = bearer(args.token, url)
        with asyncio.Runner() as runner:
            wire = Wire(
                url,
                token=token,
                retry_for_s=args.retry_for,
                notice=lambda text: say(f"{shown}: {text}"),
            )
            runner.run(wire.__aenter__())
            try:
                action(args, runner, wire)
            finally:
                runner.run(wire.__aexit__(None, None, None))
    except Usage as error:
        say(f"{name}: {error}")
        return Exit.USAGE
    except BrokenPipeError:
        # Whoever read our output has what they wanted.
        silence_output()
    except ClientFailure as failure:
        say(f"{shown}: " + "; ".join([str(failure), *getattr(failure, "__notes__", ())]))
        return exit_of(failure)
    except OSError as error:
        say(f"{shown}: {error}")
        return Exit.UNEXPECTED
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            say(f"{shown}: {note}")
        return Exit.INTERRUPTED
    return Exit.OK


def exit_of(failure: ClientFailure) -> Exit:
    """Return the exit code for a failure."""
    match failure:
        case Refused():
            return STATUS_EXIT.get(failure.status, Exit.REFUSED)
        case Unavailable():
            return Exit.UNAVAILABLE
        case BadInput():
            return Exit.REFUSED
        case _:
            return Exit.UNEXPECTED
