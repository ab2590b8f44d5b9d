"""Interest: what a subscriber wants, what its connection has confirmed, and who waits for that."""

import asyncio
from itertools import islice
from typing import Final

from shared import metrics
from shared.bus import SUBSCRIBE_TIMEOUT_S, OnDoubt

# Paths in one command: a crowd that comes back stalls neither the server nor our own loop for long.
BATCH_PATHS_MAX: Final = 1000


class Interest:
    """The book that every bus keeps of its subscriptions; it sends nothing itself.

    A bus tells it `connected` and `lost`, sends what `next_commands` returns, and calls `answered`
    for each path of a command, in the order in which the commands were sent.
    """

    def __init__(self) -> None:
        self._on_doubt: OnDoubt = lambda: None
        self._wanted: set[str] = set()
        self._connected = False
        self._tried = asyncio.Event()
        # Of the present connection:
        self._asked: set[str] = set()  # the last command sent for it was to subscribe
        self._unanswered: dict[str, int] = {}  # commands
        self._unsaid: dict[str, None] = {}  # wanted and asked may differ; a set that keeps order
        self._news = asyncio.Event()  # something is unsaid
        self._waiters: dict[str, asyncio.Future[bool]] = {}
        self._owed: set[str] = set()  # wanted, but whoever wants it was told that it isn't there

    # --- for whoever wants wakes -----------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether all that is wanted is confirmed, but for what was asked for just now."""
        return self._connected and not self._owed

    def __contains__(self, path: str) -> bool:
        return path in self._wanted

    async def want(self, path: str) -> bool:
        """Do what Subscriber.subscribe promises."""
        self._wanted.add(path)
        if not self._connected:
            return False
        if path in self._asked and path not in self._unanswered:
            return True
        self._say(path)
        waiter = self._waiters.get(path)
        if waiter is None:
            waiter = self._waiters[path] = asyncio.get_running_loop().create_future()
        # Others may wait for the same answer, so neither our time-out nor our end cancels it.
        await asyncio.wait((waiter,), timeout=SUBSCRIBE_TIMEOUT_S)
        if waiter.done():
            return waiter.result()
        self._owed.add(path)
        self._show()
        return False

    def unwant(self, path: str) -> None:
        """Do what Subscriber.unsubscribe promises."""
        self._wanted.discard(path)
        self._release(path, confirmed=False)
        if path in self._asked:
            self._say(path)
        self._settle(path)

    # --- for the bus -----------------------------------------------------------------------------

    def begin(self, on_doubt: OnDoubt) -> None:
        """Call on_doubt whenever wakes may have been lost."""
        self._on_doubt = on_doubt

    async def tried(self) -> None:
        """Return once the first attempt to connect has ended, well or not."""
        await self._tried.wait()

    def connected(self) -> None:
        """Begin to ask a new connection for all that is wanted."""
        assert not self._connected
        self._connected = True
        self._owed = set(self._wanted)
        for path in self._wanted:
            self._say(path)
        self._tried.set()
        self._show()
        if not self._owed:
            self._on_doubt()

    def lost(self) -> None:
        """Forget what the connection was asked, if there was one, and tell everyone at once."""
        was_connected, self._connected = self._connected, False
        for path in list(self._waiters):
            self._release(path, confirmed=False)
        self._asked.clear()
        self._unanswered.clear()
        self._unsaid.clear()
        self._news.clear()
        self._owed.clear()
        self._tried.set()
        self._show()
        if was_connected:
            self._on_doubt()

    def doubt(self) -> None:
        """Wakes may have been lost on their way to a connection that is in order."""
        self._on_doubt()

    async def next_commands(self) -> tuple[list[str], list[str]]:
        """Wait until something must be said; return paths to subscribe, and to unsubscribe.

        Both are marked as asked: the bus sends them, or loses its connection.
        """
        subscribe: list[str] = []
        unsubscribe: list[str] = []
        while not subscribe and not unsubscribe:
            await self._news.wait()
            for path in list(islice(self._unsaid, BATCH_PATHS_MAX)):
                del self._unsaid[path]
                if (path in self._wanted) == (path in self._asked):
                    continue  # it was taken back before it was said
                if path in self._wanted:
                    subscribe.append(path)
                    self._asked.add(path)
                else:
                    unsubscribe.append(path)
                    self._asked.discard(path)
                self._unanswered[path] = self._unanswered.get(path, 0) + 1
            if not self._unsaid:
                self._news.clear()
        return subscribe, unsubscribe

    def answered(self, path: str) -> None:
        """Take in that the server has done the oldest unanswered command for a path."""
        unanswered = self._unanswered.pop(path, 0)
        if unanswered > 1:
            self._unanswered[path] = unanswered - 1
        elif unanswered == 1 and path in self._asked and path in self._wanted:
            self._release(path, confirmed=True)
            self._settle(path)

    # ---------------------------------------------------------------------------------------------

    def _say(self, path: str) -> None:
        self._unsaid[path] = None
        self._news.set()

    def _release(self, path: str, *, confirmed: bool) -> None:
        waiter = self._waiters.pop(path, None)
        if waiter is not None:
            waiter.set_result(confirmed)

    def _settle(self, path: str) -> None:
        """Tell of doubt once, when the last path is there of those that were said to be missing."""
        if path in self._owed:
            self._owed.discard(path)
            self._show()
            if not self._owed:
                self._on_doubt()

    def _show(self) -> None:
        metrics.BUS_UP.set(self.up)
