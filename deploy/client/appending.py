"""The append command: one append after another, and what is known when one of them fails."""

import argparse
import uuid
from collections.abc import Iterator

from deploy.client import writes
from deploy.client.actions import close, explained, say_offset
from deploy.client.batches import Portion, arguments, lines
from deploy.client.failures import ClientFailure, Usage
from deploy.client.output import say
from deploy.client.runner import Runner
from deploy.client.wire import Wire
from shared.protocol.media import is_json
from shared.protocol.producer import ProducerKey


def append(args: argparse.Namespace, runner: Runner, wire: Wire) -> None:
    check(args)
    if args.data is None and not args.lines:
        close(args, runner, wire)
        return
    content_type = args.content_type or runner.run(writes.head(wire)).content_type
    producer_id = str(uuid.uuid4()) if args.exactly_once else args.producer_id
    retries = "" if producer_id else ", and was not sent again; --exactly-once makes retries safe"
    unit = "line" if args.lines else "append"
    sent, stored, repeats, answer = 0, 0, 0, None
    try:
        for portion in portions(args, json=is_json(content_type)):
            producer = ProducerKey(producer_id, args.epoch or 0, sent) if producer_id else None
            which = counted(unit, stored + 1, stored + portion.count)
            with explained(f"{which} may or may not have been stored{retries}"):
                answer = runner.run(
                    writes.append(
                        wire,
                        portion.body,
                        content_type,
                        producer=producer,
                        stream_seq=args.seq,
                        close=args.close and portion.last,
                    )
                )
            sent += 1
            stored += portion.count
            # 204 says that this number of the producer is known (PROTOCOL §5.2.1).
            repeats += producer is not None and answer.status == 204 and not answer.repeated
        if args.close and not (answer and answer.closed):
            answer = runner.run(writes.close(wire))
    except (ClientFailure, KeyboardInterrupt) as failure:
        if answer is not None:
            stored_text = counted(unit, 1, stored)
            failure.add_note(f"stored before: {stored_text}, next offset {answer.next_offset}")
        raise
    if repeats:
        say(
            f"{repeats} of {sent} appends had been stored before under these producer numbers, "
            "and were not stored again; new data needs a larger --epoch"
        )
    say_offset(args, answer.next_offset if answer else None)


def check(args: argparse.Namespace) -> None:
    """Refuse what argparse can't tell.

    Raises:
        Usage: the options don't go together.
    """
    data = args.data or []
    if args.lines and data not in ([], ["-"]):
        raise Usage("--lines reads standard input, and goes without DATA")
    if "-" in data and len(data) > 1:
        raise Usage("- is all of standard input, and goes without other DATA")
    if not data and not args.lines and not args.close:
        raise Usage("nothing to append: give DATA, or - for standard input")
    if args.epoch is not None and args.producer_id is None:
        raise Usage("--epoch needs --producer-id")
    if args.seq is not None and (args.lines or len(data) > 1):
        raise Usage("--seq is of one append: give one DATA")


def portions(args: argparse.Namespace, *, json: bool) -> Iterator[Portion]:
    """Yield what to append, as it arrives."""
    if not args.lines:
        return arguments(args.data)
    # Of a named producer, the server tells portions by their number, and would take another cut of
    # the same input, on the next run, for what it has.
    return lines(json=json, eager=args.producer_id is None)


def counted(unit: str, first: int, last: int) -> str:
    return f"{unit} {first}" if first == last else f"{unit}s {first} to {last}"
