"""How a server is spoken to: what makes a stream, what appends to it, how readers wait on it."""

from __future__ import annotations

from typing import Final, Protocol

from loadtests.client import STREAMS, Connection
from loadtests.dialect import CONTENT_TYPE, DIALECTS, Dialects, Place


class Speech(Protocol):
    """One protocol, as far as scenarios with live readers need it."""

    @property
    def dialects(self) -> Dialects:
        """Return how its readers wait, by mode."""

    def path(self, name: str) -> str:
        """Return the path that readers ask for."""

    def create(self, connection: Connection, name: str) -> Place:
        """Make a stream, and return where readers begin that want all that is appended."""

    def append_request(self, connection: Connection, name: str, body: bytes) -> bytes:
        """Return the request of one append; any 2xx acknowledges it."""


class DurableStreams:
    """The protocol that Headwater speaks."""

    dialects = DIALECTS

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

    def append_request(self, connection: Connection, name: str, body: bytes) -> bytes:
        """Return a POST."""
        field = f"Content-Type: {CONTENT_TYPE}"
        return connection.target.request("POST", self.path(name), field, body=body)


DURABLE_STREAMS: Final[Speech] = DurableStreams()
