"""Answers that are no success, and connections that fail, as failures in words."""

import contextlib
import errno
import time
from email.utils import parsedate_to_datetime

import aiohttp
import orjson

from deploy.client.failures import BadAnswer, Refused, Unavailable
from shared.protocol import media, names

ERROR_BODY_BYTES_MAX = 64 << 10
ERROR_TEXT_MAX = 300

BUSY = frozenset({408, 429, 502, 503, 504})
# 5xx that say no for good: not implemented, HTTP version not supported.
REFUSING_5XX = frozenset({501, 505})
MEANING = {
    401: "a token is needed, or this one is not accepted",
    403: "forbidden",
    404: "no such stream",
    410: "gone",
}


async def failure_of(response: aiohttp.ClientResponse) -> Refused | Unavailable | BadAnswer:
    """Read why a request was not served."""
    body = b""
    # The status has said it; a body that does not come says it less well.
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > ERROR_BODY_BYTES_MAX:
                break
    status = response.status
    fallback = MEANING.get(status) or (response.reason or "no reason given").lower()
    message = message_in(body, response.content_type) or fallback
    if status in BUSY:
        wait_s = retry_after_s(response.headers.get("Retry-After"), time.time())
        asks = f", and asks to wait {wait_s:.0f} s" if wait_s else ""
        # A 429 turns away; all others may come from a proxy whose own request went through.
        return Unavailable(
            f"{message} (HTTP {status}{asks})", uncertain=status != 429, retry_after_s=wait_s
        )
    if 300 <= status < 400:
        return Refused(status, "redirected elsewhere, which a write does not follow")
    if status >= 500 and status not in REFUSING_5XX:
        return BadAnswer(f"{message} (HTTP {status})", uncertain=True)
    if status < 400:
        return BadAnswer(f"an answer that the protocol does not know (HTTP {status})")
    current_epoch = response.headers.get(names.PRODUCER_EPOCH)
    if status == 403 and current_epoch is not None:
        message += f"; the server knows epoch {current_epoch} of this producer"
    return Refused(status, message)


def message_in(body: bytes, content_type: str) -> str:
    """Find the server's own words in an error body, made safe for one line of a terminal."""
    text = ""
    if media.is_json(content_type):
        with contextlib.suppress(orjson.JSONDecodeError):
            value = orjson.loads(body)
            error = value.get("error", value) if isinstance(value, dict) else value
            text = str(error.get("message", "")) if isinstance(error, dict) else str(error or "")
    elif media.is_text(content_type) and content_type != "text/html":
        text = body.decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= ERROR_TEXT_MAX else line[:ERROR_TEXT_MAX] + "…"


def retry_after_s(value: str | None, now: float) -> float:
    """Read a Retry-After header, in seconds or as a date; 0 when there is none to understand.

    Args:
        now: seconds since 1970, UTC.
    """
    if value is None:
        return 0.0
    if value.isascii() and value.isdigit():
        return float(value[:9])  # 30 years, and still a float that can be added to
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def failure_from(error: Exception) -> Unavailable | BadAnswer:
    """Turn an error of the connection into one that may be tried again, or not."""
    unsent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    # The answer was no HTTP, redirects went in circles, or the certificate is wrong.
    final = aiohttp.ClientResponseError | aiohttp.ClientSSLError | aiohttp.InvalidURL
    kind = BadAnswer if isinstance(error, final) else Unavailable
    return kind(reason_of(error), uncertain=not unsent)


def reason_of(error: Exception) -> str:
    """Say why a server could not be reached, or stopped answering."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return "no connection in time"
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorDNSError():
            return f"the host name {error.host} is not known"
        case aiohttp.ClientSSLError():
            return f"no secure connection ({error})"
        case aiohttp.ClientConnectorError(errno=errno.ECONNREFUSED):
            return "connection refused"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return "the connection was cut"
        case _:
            return str(error) or type(error).__name__
