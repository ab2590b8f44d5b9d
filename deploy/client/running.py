"""Running one command: its connections, what went wrong on one line, and the exit code."""

import argparse
import asyncio
from enum import IntEnum

from deploy.client.actions import Action
from deploy.client.failures import BadInput, ClientFailure, Refused, Unavailable, Usage
from deploy.client.output import say, silence_output
from deploy.client.runner import Runner
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
        with Runner() as runner:
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
    except Exception as error:
        if _was_cancelled(error):
            return _interrupted(shown, error)  # Ctrl-C came first; this is what it broke
        return _failed(shown, error)
    except KeyboardInterrupt as interrupt:
        return _interrupted(shown, interrupt)
    return Exit.OK


def _failed(shown: str, error: Exception) -> int:
    if isinstance(error, ClientFailure):
        say(f"{shown}: " + "; ".join([str(error), *getattr(error, "__notes__", ())]))
        return exit_of(error)
    if isinstance(error, OSError):
        say(f"{shown}: {error}")
        return Exit.UNEXPECTED
    raise error


def _interrupted(shown: str, error: BaseException) -> int:
    for note in getattr(error, "__notes__", ()):
        say(f"{shown}: {note}")
    return Exit.INTERRUPTED


def _was_cancelled(error: BaseException | None) -> bool:
    """Tell whether an error was raised on the way out of a cancelled task."""
    while error is not None:
        if isinstance(error, asyncio.CancelledError):
            return True
        error = error.__cause__ or error.__context__
    return False


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
