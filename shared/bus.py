"""Bus contract: carries wakes from an origin to the edges that asked for them."""

from collections.abc import Callable
from typing import Final, Protocol

from shared.wake import Wake

# How long a subscriber waits for its confirmation before it goes on without wakes.
SUBSCRIBE_TIMEOUT_S: Final = 2.0

OnWake = Callable[[str, Wake], None]
OnDoubt = Callable[[], None]


class Publisher(Protocol):
    """The origin's end."""

    async def start(self) -> None:
        """Begin to connect; returns whether or not anybody is there."""
        ...

    def publish(self, path: str, wake: Wake) -> None:
        """Send a wake to whoever subscribed to the stream. Never waits, may lose it, never
        raises."""
        ...

    async def close(self) -> None:
        """Send what is queued and take leave, briefly, and disconnect."""
        ...


class Subscriber(Protocol):
    """An edge's end."""

    async def start(self, on_wake: OnWake, on_doubt: OnDoubt) -> None:
        """Begin to connect; returns whether or not anybody is there.

        Args:
            on_wake: called with (path, wake) for every wake that arrives; those of one stream in
                the order in which they were published.
            on_doubt: called when wakes may have been lost: the connection broke, or is new. Whoever
                relies on wakes must look for itself once.
        """
        ...

    async def subscribe(self, path: str) -> bool:
        """Ask for the wakes of a stream.

        Returns:
            True once every wake published from now on will arrive or `on_doubt` will be called;
            False if that can't be had now. It is asked for again by itself when the bus is back,
            and `on_doubt` is called then.
        """
        ...

    def unsubscribe(self, path: str) -> None:
        """Ask for no more of them."""
        ...

    @property
    def up(self) -> bool:
        """Whether wakes arrive, as far as is known: the connection is in order, all that was asked
        for is confirmed, and somebody publishes.

        An origin that can't publish any more, or never could, is noticed within 1.6 s of the last
        time that it could; one that took its leave is waited for. `on_doubt` is called whenever
        this ceases, and when it holds again, so whoever polls meanwhile learns of both.
        """
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...
