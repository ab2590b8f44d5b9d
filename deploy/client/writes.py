"""The writes of the protocol, and HEAD: which headers they take, and which may be sent again."""

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.client.failures import Refused
from deploy.client.wire import Answer, Headers, Wire
from shared.protocol import names
from shared.protocol.producer import ProducerKey

CLOSES = {names.STREAM_CLOSED: "true"}


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a new stream branches off; without an offset, at the tail of its source."""

    source_path: str
    offset: str | None = None
    sub_offset: int | None = None

    def headers(self) -> Headers:
        return given(
            {
                names.STREAM_FORKED_FROM: self.source_path,
                names.STREAM_FORK_OFFSET: self.offset,
                names.STREAM_FORK_SUB_OFFSET: self.sub_offset,
            }
        )


async def create(
    wire: Wire,
    *,
    content_type: str | None = None,
    ttl_s: int | None = None,
    expires_at: str | None = None,
    closed: bool = False,
    fork: Fork | None = None,
    data: bytes = b"",
) -> Answer:
    """Create the stream: 201 when it is new, 200 when it is there just so (PROTOCOL §5.1)."""
    headers = given(
        {
            "Content-Type": content_type,
            names.STREAM_TTL: ttl_s,
            names.STREAM_EXPIRES_AT: expires_at,
        },
        close=closed,
    )
    if fork is not None:
        headers |= fork.headers()
    # A fork at "the tail, wherever it is" asks for another place when it asks again.
    repeatable = fork is None or fork.offset is not None
    return await wire.ask("PUT", headers, data, repeatable=repeatable)


async def append(
    wire: Wire,
    data: bytes,
    content_type: str,
    *,
    producer: ProducerKey | None = None,
    stream_seq: str | None = None,
    close: bool = False,
) -> Answer:
    """Append data, and close the stream with it when asked (PROTOCOL §5.2).

    Sent again only for a producer, whose numbers tell the server what it has (§5.2.1).
    """
    headers = given({"Content-Type": content_type, names.STREAM_SEQ: stream_seq}, close=close)
    if producer is not None:
        headers |= {
            names.PRODUCER_ID: producer.producer_id,
            names.PRODUCER_EPOCH: str(producer.epoch),
            names.PRODUCER_SEQ: str(producer.seq),
        }
    return await wire.ask("POST", headers, data, repeatable=producer is not None)


async def close(wire: Wire) -> Answer:
    """Close the stream; a second time changes nothing (PROTOCOL §5.3)."""
    return await wire.ask("POST", CLOSES)


async def delete(wire: Wire) -> Answer:
    """Delete the stream (PROTOCOL §5.4)."""
    try:
        return await wire.ask("DELETE", {})
    except Refused as refusal:
        if refusal.uncertain and refusal.status in (404, 410):
            # The first attempt, whose answer was lost, has done it.
            return Answer(204, {}, repeated=True)
        raise


async def head(wire: Wire) -> Answer:
    """Return what the server says about the stream, without its data (PROTOCOL §5.5)."""
    return await wire.ask("HEAD", {})


def given(values: Mapping[str, str | int | None], *, close: bool = False) -> Headers:
    """Return the headers that have a value."""
    headers = {name: str(value) for name, value in values.items() if value is not None}
    return headers | CLOSES if close else headers
