"""Every refusal of the protocol, with its status and headers."""

from typing import ClassVar

from shared.protocol import names


class ProtocolError(Exception):
    """The protocol refuses a request; `str()` says why, with the values."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"

    def headers(self) -> dict[str, str]:
        """Return the headers that this refusal adds to its reply."""
        return {}


class BadRequest(ProtocolError):
    """A header, parameter, path or body is malformed."""


class InvalidOffset(ProtocolError):
    """An offset is malformed, or names a position that the stream never had."""

    code = "invalid_offset"


class InvalidJson(ProtocolError):
    """The body is not what a JSON stream takes (PROTOCOL §9.1.4)."""

    code = "invalid_json"


class EpochStart(ProtocolError):
    """A new epoch must begin with sequence number 0 (PROTOCOL §5.2.1)."""

    code = "epoch_start"

    def __init__(self, received: int) -> None:
        super().__init__(f"a new producer epoch starts at sequence number 0, received {received}")


class StaleEpoch(ProtocolError):
    """A newer life of the producer has written already (PROTOCOL §5.2.1)."""

    status = 403
    code = "stale_epoch"

    def __init__(self, current: int, received: int) -> None:
        super().__init__(f"producer epoch {received} is stale, the current one is {current}")
        self.current = current

    def headers(self) -> dict[str, str]:
        return {names.PRODUCER_EPOCH: str(self.current)}


class NotFound(ProtocolError):
    """There is no such stream."""

    status = 404
    code = "not_found"

    def __init__(self, path: str) -> None:
        super().__init__(f"no stream at {path!r}")


class MethodNotAllowed(ProtocolError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"method {method} is not allowed here, only {allowed}")
        self._allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"Allow": self._allowed}


class RequestTimeout(ProtocolError):
    """A request that does not arrive."""

    status = 408
    code = "request_timeout"


class Conflict(ProtocolError):
    """The stream exists, and differs from what the request says."""

    status = 409
    code = "conflict"


class ContentTypeMismatch(Conflict):
    """Appended and forked data must have the type of the stream (PROTOCOL §5.2)."""

    code = "content_type_mismatch"

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(f"the stream's content type is {expected!r}, received {received!r}")


class StreamClosed(Conflict):
    """The stream takes no more data, ever (PROTOCOL §5.2)."""

    code = "stream_closed"

    def __init__(self, tail: str) -> None:
        super().__init__(f"the stream is closed, its final offset is {tail}")
        self._tail = tail

    def headers(self) -> dict[str, str]:
        return {names.STREAM_CLOSED: "true", names.STREAM_NEXT_OFFSET: self._tail}


class SequenceGap(Conflict):
    """A producer's batch before this one is missing (PROTOCOL §5.2.1)."""

    code = "sequence_gap"

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"expected producer sequence number {expected}, received {received}")
        self.expected = expected
        self.received = received

    def headers(self) -> dict[str, str]:
        return {
            names.PRODUCER_EXPECTED_SEQ: str(self.expected),
            names.PRODUCER_RECEIVED_SEQ: str(self.received),
        }


class SequenceRegression(Conflict):
    """Stream-Seq must grow, bytewise (PROTOCOL §5.2)."""

    code = "sequence_regression"

    def __init__(self, last: str, received: str) -> None:
        super().__init__(f"Stream-Seq must be above {last!r}, received {received!r}")


class Gone(ProtocolError):
    """The offset or the stream was there once, and never will be again."""

    status = 410
    code = "gone"


class Trimmed(Gone):
    """The offset was there once; what followed it is not kept any more (PROTOCOL §5.6)."""

    code = "trimmed"

    def __init__(self, asked: str, earliest: str) -> None:
        super().__init__(f"offset {asked} is not kept any more, the earliest one is {earliest}")
        self._earliest = earliest

    def headers(self) -> dict[str, str]:
        return {names.STREAM_EARLIEST_OFFSET: self._earliest}


class TailMoved(ProtocolError):
    """The tail is not where If-Match says (an extension; RFC 9110 §15.5.13)."""

    status = 412
    code = "tail_moved"

    def __init__(self, tail: str, tag: str) -> None:
        super().__init__(f"If-Match names another tail than {tail}")
        self._tail = tail
        self._tag = tag

    def headers(self) -> dict[str, str]:
        return {names.STREAM_NEXT_OFFSET: self._tail, "ETag": self._tag}


class BodyTooLarge(ProtocolError):
    """The body is over the server's limit (PROTOCOL §5.2)."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int, received: int | None = None) -> None:
        got = "more" if received is None else str(received)
        super().__init__(f"the body limit is {limit_bytes} bytes, received {got}")


class UnsupportedEncoding(ProtocolError):
    """Bodies are stored as they come, so a Content-Encoding would be lost."""

    status = 415
    code = "unsupported_encoding"

    def __init__(self, encoding: str) -> None:
        super().__init__(f"Content-Encoding {encoding!r} is not supported, send the plain bytes")


class Unavailable(Exception):
    """Our side cannot serve now; the same request may be sent again after a while."""

    status: ClassVar[int] = 503
    code: ClassVar[str] = "unavailable"

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """Return Retry-After, in whole seconds."""
        return {"Retry-After": str(self.retry_after_s)}
