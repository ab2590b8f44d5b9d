"""What each command does, but for append: call, then show.

Commands are not coroutines: while one waits for standard input, Ctrl-C must end it at once, which
a running event loop would put off until the next line.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager

import orjson

from deploy.client import writes
from deploy.client.batches import argument
from deploy.client.failures import ClientFailure, Usage
from deploy.client.follow import Chunks
from deploy.client.follow import read as chunks_from
from deploy.client.messages import shown
from deploy.client.output import Output, say, until_nobody_reads
from deploy.client.progress import Progress
from deploy.client.runner import Runner
from deploy.client.targets import fork_path
from deploy.client.wire import Answer, Wire
from shared.protocol.request import Live

Action = Callable[[argparse.Namespace, Runner, Wire], None]


def create(args: argparse.Namespace, runner: Runner, wire: Wire) -> None:
    fork = None
    if args.fork_from is not None:
        source = fork_path(args.fork_from, wire.url)
        fork = writes.Fork(source, args.fork_offset, args.fork_sub_offset)
    elif args.fork_offset is not None or args.fork_sub_offset is not None:
        raise Usage("--fork-offset and --fork-sub-offset need --fork-from")
    data = b"" if args.data is None else argument(args.data)
    with explained("the stream may or may not have been created"):
        answer = runner.run(
            writes.create(
                wire,
                content_type=args.content_type,
                ttl_s=args.ttl,
                expires_at=args.expires_at,
                closed=args.closed,
                fork=fork,
                data=data,
            )
        )
    say_offset(args, answer.next_offset)


def close(args: argparse.Namespace, runner: Runner, wire: Wire) -> None:
    with explained("the stream may or may not be closed now"):
        answer = runner.run(writes.close(wire))
    say_offset(args, answer.next_offset)


def delete(args: argparse.Namespace, runner: Runner, wire: Wire) -> None:
    with explained("the stream may or may not be deleted now"):
        runner.run(writes.delete(wire))


def head(args: argparse.Namespace, runner: Runner, wire: Wire) -> None:
    facts = facts_of(runner.run(writes.head(wire)))
    if args.json:
        data = orjson.dumps(facts) + b"\n"
    else:
        data = "".join(
            f"{key}: {str(value).lower() if isinstance(value, bool) else value}\n"
            for key, value in facts.items()
        ).encode()
    with Output() as output:
        output.write(data)


def facts_of(answer: Answer) -> dict[str, str | int | bool]:
    """Name what the server says about a stream, whatever Stream-* headers it knows."""
    facts: dict[str, str | int | bool] = {"content_type": answer.content_type, "closed": False}
    for name, raw in answer.headers.items():
        value = raw.encode("utf-8", "replace").decode()
        key = name.lower().replace("-", "_")
        if key == "stream_closed":
            facts["closed"] = answer.closed
        elif key == "stream_ttl":
            facts["ttl_s"] = int(value) if value.isdigit() else value
        elif key.startswith("stream_"):
            facts[key.removeprefix("stream_")] = value
    return facts


def read(args: argparse.Namespace, runner: Runner, wire: Wire) -> None:
    # Where data go to the terminal, they are the progress.
    apart = args.output not in (None, "-") or not sys.stdout.isatty()
    wanted = args.progress or (sys.stderr.isatty() and apart)
    with Output(args.output) as output, Progress(sys.stderr, wanted=wanted) as progress:
        runner.run(copy(args, chunks_from(wire, args.offset, received=progress.add), output))


def tail(args: argparse.Namespace, runner: Runner, wire: Wire) -> None:
    async def follow(output: Output) -> None:
        with until_nobody_reads():
            live = Live.SSE if args.sse else Live.LONG_POLL
            await copy(args, chunks_from(wire, args.offset, live), output)

    with Output() as output:
        runner.run(follow(output))


async def copy(args: argparse.Namespace, chunks: Chunks, output: Output) -> None:
    """Write chunks out as they come; what stops it is told where to go on."""
    offset = None
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                output.write(shown(chunk, raw=args.raw))
                offset = chunk.next_offset
    except ClientFailure as failure:
        if offset is not None:
            failure.add_note(f"to go on from there: --offset {offset}")
        raise
    except asyncio.CancelledError:
        say_offset(args, offset)
        raise
    say_offset(args, offset)


def say_offset(args: argparse.Namespace, offset: str | None) -> None:
    """Say where the stream goes on, to those who want to know."""
    if args.verbose and offset is not None:
        say(f"next offset: {offset}")


@contextmanager
def explained(doubt: str) -> Iterator[None]:
    """Say of a write without an answer that it may have been done all the same."""
    try:
        yield
    except ClientFailure as failure:
        if failure.uncertain:
            failure.add_note(doubt)
        raise
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"interrupted: {doubt}")
        raise
