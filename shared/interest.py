"""Interest: what a subscriber wants, what its connection has confirmed, and who waits for that."""

import asyncio
from itertools import islice
from typing import Final

from shared import metrics
from shared.bus import SUBSCRIBE_TIMEOUT_S, OnDoubt

# Paths in one command: a crowd that comes back stalls neither the server nor our own loop for long.
BATCH_PATHS_MAX: Final = 1000
# Paths that were sent and not yet answered: enough that nobody idles, and a few 100 KB at most of
# ours in the server's buffers, which cut off who lets 8 MB wait there.
UNANSWERED_PATHS_MAX: Final = 2 * BATCH_PATHS_MAX


class Interest:
    """The book that every bus keeps of its subscriptions; it sends nothing itself.

    A bus tells it `connected` and `lost`, sends what `next_commands` returns, and calls `answered`
    or `refused` for each path of a command, in the order in which the commands were sent.

    A path costs two places in sets while it is confirmed. All else is about what is under way, and
    is made anew once it is empty, as sets and dicts keep the room that they once had.
    """

    def __init__(self, *, heard: bool = True) -> None:
        """
        Args:
            heard: whether all who publish are heard as long as we are connected; a bus that has to
                find that out calls `hears`.
        """
        self._on_doubt: OnDoubt = lambda: None
        self._wanted: set[str] = set()
        self._connected = False
        self._heard = heard
        self._relied_on = False  # when doubt was told last, the bus was up
        self._tried = asyncio.Event()
        # Of the present connection:
        self._asked: set[str] = set()  # the last command sent for it was to subscribe
        self._unanswered: dict[str, int] = {}  # commands
        self._unsaid: dict[str, None] = {}  # wanted and asked may differ; a set that keeps order
        self._backlog: list[str] = []  # what was wanted before; said after all that is unsaid
        self._news = asyncio.Event()  # something may be said
        self._waiters: dict[str, asyncio.Future[bool]] = {}
        self._owed: set[str] = set()  # wanted, but whoever wants it was told that it isn't there

    # --- for whoever wants wakes -----------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether all that is wanted is confirmed, but for what was asked for just now, and all
        who publish are heard."""
        return self._connected and self._heard and not self._owed

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
        self._owe(path)
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
        # Copies of a whole set or list take a millisecond where a loop over it takes twenty.
        self._owed = self._wanted.copy()
        self._backlog = list(self._owed)
        self._tell_news()
        self._tried.set()
        self._show()
        if self.up:
            self._doubt()

    def lost(self) -> None:
        """Forget what the connection was asked, if there was one, and tell everyone at once."""
        was_connected, self._connected = self._connected, False
        for path in list(self._waiters):
            self._release(path, confirmed=False)
        self._asked = set()
        self._unanswered = {}
        self._unsaid = {}
        self._backlog = []
        self._owed = set()
        self._tell_news()
        self._tried.set()
        self._show()
        if was_connected:
            self._doubt()

    def hears(self, heard: bool, *, doubt: bool = False) -> None:
        """Take in whether all who publish are heard, and whether one of them lost wakes."""
        was_up, changed = self.up, heard != self._heard
        self._heard = heard
        if changed:
            self._show()
        if was_up != self.up or (doubt and self._relied_on):
            self._doubt()

    async def next_commands(self) -> tuple[list[str], list[str]]:
        """Wait until something must be said; return paths to subscribe, and to unsubscribe.

        Both are marked as asked: the bus sends them, or loses its connection.
        """
        while True:
            await self._news.wait()
            subscribe, unsubscribe = self._say_next()
            self._tell_news()
            if subscribe or unsubscribe:
                return subscribe, unsubscribe
            await asyncio.sleep(0)  # all of a batch was taken back before it was said

    def answered(self, path: str) -> None:
        """Take in that the server has done the oldest unanswered command for a path."""
        if self._is_last_answer(path) and path in self._asked and path in self._wanted:
            self._release(path, confirmed=True)
            self._settle(path)

    def refused(self, path: str) -> None:
        """Take in that the server did not do the oldest unanswered command for a path, as others
        are to be asked for it."""
        if self._is_last_answer(path):
            self._ask_again(path)

    def withdrawn(self, path: str) -> None:
        """Take in that the server ended a subscription by itself."""
        if path in self._asked and path not in self._unanswered:
            self._ask_again(path)

    # ---------------------------------------------------------------------------------------------

    def _say_next(self) -> tuple[list[str], list[str]]:
        subscribe: list[str] = []
        unsubscribe: list[str] = []
        paths = list(islice(self._unsaid, BATCH_PATHS_MAX))
        for path in paths:
            del self._unsaid[path]
        while self._backlog and len(paths) < BATCH_PATHS_MAX:
            paths.append(self._backlog.pop())
        for path in paths:
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
            self._unsaid = {}
        return subscribe, unsubscribe

    def _is_last_answer(self, path: str) -> bool:
        """Count an answer; return whether no more are due for the path."""
        unanswered = self._unanswered.pop(path, 0)
        if unanswered > 1:
            self._unanswered[path] = unanswered - 1
        elif not self._unanswered:
            self._unanswered = {}
        self._tell_news()
        return unanswered == 1

    def _ask_again(self, path: str) -> None:
        self._asked.discard(path)
        if path in self._wanted:
            self._owe(path)
            self._say(path)

    def _say(self, path: str) -> None:
        self._unsaid[path] = None
        self._tell_news()

    def _tell_news(self) -> None:
        # With room for a whole batch: where answers come one by one, commands would shrink to one.
        room = UNANSWERED_PATHS_MAX - len(self._unanswered)
        if (self._unsaid or self._backlog) and room >= BATCH_PATHS_MAX:
            self._news.set()
        else:
            self._news.clear()

    def _release(self, path: str, *, confirmed: bool) -> None:
        waiter = self._waiters.pop(path, None)
        if waiter is not None:
            waiter.set_result(confirmed)
        if not self._waiters:
            self._waiters = {}

    def _owe(self, path: str) -> None:
        self._owed.add(path)
        self._show()

    def _settle(self, path: str) -> None:
        """Tell of doubt once, when the last path is there of those that were said to be missing."""
        if path in self._owed:
            self._owed.discard(path)
            if self._owed:
                return
            self._owed = set()
            self._show()
            if self._heard:
                self._doubt()

    def _doubt(self) -> None:
        self._relied_on = self.up
        self._on_doubt()

    def _show(self) -> None:
        metrics.BUS_UP.set(self.up)
