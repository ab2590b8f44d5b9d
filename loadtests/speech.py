"""How a server is spoken to: what makes a stream, what appends to it, how readers wait on it."""

from __future__ import annotations

from typing import Final, Protocol

from loadtests.client import STREAMS, Connection, Target
from loadtests.dialect import CONTENT_TYPE, DIALECTS, Dialects, Place

_TYPE: Final = f"Content-Type: {CONTENT_TYPE}"


class Speech(Protocol):
    """One protocol, as far as scenarios with live readers need it."""

    @property
    def dialects(self) -> Dialects:
        """Return how its readers wait, by mode."""

    def path(self, name: str) -> str:
        """Return the path that readers ask for."""

    @property
    def beginning(self) -> Place:
        """Return where a reader begins that was told nothing."""

    def create(self, connection: Connection, name: str) -> Place:
        """Make a stream, and return where readers begin that want all that is appended."""

    def create_request(self, target: Target, name: str) -> bytes | None:
        """Return the request that makes a stream; None if there is nothing to make."""

    def append_request(self, target: Target, name: str, body: bytes) -> bytes:
        """Return the request of one append; any 2xx acknowledges it."""


class DurableStreams:
    """The protocol that Headwater speaks."""

    dialects = DIALECTS
    beginning = Place("-1")

    def path(self, name: str) -> str:
        """Return the path of a stream."""
        return STREAMS + name

    def create(self, connection: Connection, name: str) -> Place:
        """Create a stream of text."""
        path = self.path(name)
        place = Place(connection.create(path, CONTENT_TYPE))
        # What a server sets up at its first read, is there before memory is looked at.
        connection.ask("GET", f"{path}?offset=-1")
        return place

    def create_request(self, target: Target, name: str) -> bytes:
        """Return a PUT."""
        return target.request("PUT", self.path(name), _TYPE, body=b"")

    def append_request(self, target: Target, name: str, body: bytes) -> bytes:
        """Return a POST."""
        return target.request("POST", self.path(name), _TYPE, body=body)


DURABLE_STREAMS: Final[Speech] = DurableStreams()
