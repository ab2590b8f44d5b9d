"""What of a chunk is shown: its body, or its JSON messages one a line."""

from collections.abc import Iterator

from deploy.client.failures import BadAnswer
from deploy.client.follow import Chunk
from shared.protocol import jsonmode
from shared.protocol.media import is_json


def shown(chunk: Chunk, *, raw: bool) -> bytes:
    """Return the bytes to write for a chunk."""
    if raw or not is_json(chunk.content_type):
        return chunk.body
    return b"".join(lines_of_array(chunk.body))


def lines_of_array(array: bytes) -> Iterator[bytes]:
    """Yield the elements of a JSON array, one a line.

    Nothing is parsed and written again, so numbers, escapes and the order of keys stay as they
    are. Line breaks between the tokens of an element go, since they'd make two lines of it.

    Raises:
        BadAnswer: this is no JSON array.
    """
    text = array.strip()
    if not (text.startswith(b"[") and text.endswith(b"]")):
        raise BadAnswer("the server sent a body that is not a JSON array")
    stored = text[1:-1].strip()
    if not stored:
        return
    stored += b","
    start = 0
    for end in jsonmode.message_ends(stored):
        message = stored[start : end - 1].strip()
        if not message:
            break
        yield message.translate(None, b"\r\n") + b"\n"  # no JSON string holds one as it is
        start = end
    if start != len(stored):
        raise BadAnswer("the server sent a body that is not a JSON array")
