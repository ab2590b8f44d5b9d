"""Turns: real threads of which one runs at a time, and a loop whose time is not real.

The product keeps its threads: the commit thread, the readers, the one that applies the index, each
running its real code. They share nothing but queues, the loop's `call_soon_threadsafe` and the
files; so where a thread may be overtaken matters at three places only: when it waits, when a job
begins or ends, and at each call of the file system. Those are the points at which it gives up its
turn here, and a seed says to whom. Between them the loop's thread runs as ever, and nothing else
does. What really runs at the same time, this orders in one of the ways in which it could have gone.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from types import SimpleNamespace
from typing import Any, Final, Generic, TypeVar
from unittest.mock import patch

T = TypeVar("T")

_YIELDS: Final = 0.08  # of the calls of the file system
_LOOP_GOES_ON: Final = 0.5  # share of its steps before which no other thread has a turn
_SLOW: Final = 0.05  # share of waits in which time passes while a thread could run


class Stuck(Exception):
    """Everybody waits, for nobody."""


class Turns:
    """Who runs, and what time it is."""

    def __init__(self, random_: random.Random, now_s: float) -> None:
        self._random = random_
        self.now_s = now_s
        self._threads: list[Thread] = []
        self._here = threading.local()
        self.loop_turn = threading.Lock()
        self.loop_turn.acquire()
        self.news = False  # for the loop, from another thread

    # --- in the place of what the product takes from the standard library -------------------------

    def thread(self, target: Callable[[], None], name: str = "", daemon: bool = True) -> Thread:
        return Thread(self, target)

    def queue(self) -> Queue[Any]:
        return Queue(self)

    def lock(self) -> Lock:
        return Lock(self)

    def pool(self, threads: int, name: str = "") -> Pool:
        return Pool(self, threads)

    # --- giving up the turn ----------------------------------------------------------------------

    def maybe_switch(self) -> None:
        """Let somebody else run, if the seed says so."""
        if self._random.random() >= _YIELDS:
            return
        thread = self._current()
        if thread is not None:
            thread.pause()
        else:
            self._run_one()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Let others run until something holds."""
        thread = self._current()
        while not ready():
            if thread is not None:
                thread.pause(ready)
            elif not self._run_one():
                self._advance(None)

    def sleep(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        thread = self._current()
        if thread is None:
            while self.now_s < until_s:
                if not self._run_one():
                    self._advance(until_s)
            return
        thread.wakes_s = until_s
        thread.pause(lambda: self.now_s >= until_s)
        thread.wakes_s = None

    def give_way(self) -> None:
        """Let the loop look up at once."""
        self.news = True
        thread = self._current()
        if thread is not None:
            thread.pause()

    def begin(self, thread: Thread) -> None:
        self._threads.append(thread)

    def end(self, thread: Thread) -> None:
        self._threads.remove(thread)

    def enter(self, thread: Thread) -> None:
        self._here.thread = thread

    # --- what the loop does between two steps ----------------------------------------------------

    def between_steps(self, timeout_s: float | None) -> None:
        """Let others run, or time pass.

        Args:
            timeout_s: when the loop's next timer is due; 0: it has something to do.
        """
        self.news = False
        if timeout_s is not None and timeout_s <= 0:
            while self._random.random() >= _LOOP_GOES_ON and self._run_one():
                pass
            return
        until_s = None if timeout_s is None else self.now_s + timeout_s
        while not self.news and (until_s is None or self.now_s < until_s):
            if until_s is not None and self._random.random() < _SLOW:
                self.now_s = min(until_s, self.now_s + self._random.choice([0.001, 0.1, 2.0]))
            elif not self._run_one():
                self._advance(until_s)

    def _run_one(self) -> bool:
        """Give one thread that can run a turn; return whether there was one."""
        able = [thread for thread in self._threads if thread.ready()]
        if not able:
            return False
        self._random.choice(able).have_a_turn()
        return True

    def _advance(self, until_s: float | None) -> None:
        """Let time pass until somebody has something to do."""
        moments = [thread.wakes_s for thread in self._threads if thread.wakes_s is not None]
        if until_s is not None:
            moments.append(until_s)
        if not moments:
            raise Stuck(f"{len(self._threads)} threads and the loop wait for each other")
        self.now_s = max(self.now_s, min(moments))

    def _current(self) -> Thread | None:
        thread: Thread | None = getattr(self._here, "thread", None)
        return thread


class Thread:
    """A real thread that runs when it is its turn."""

    def __init__(self, turns: Turns, target: Callable[[], None]) -> None:
        self._turns = turns
        self._target = target
        self._turn = threading.Lock()
        self._turn.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._done = False
        self.ready: Callable[[], bool] = _always
        self.wakes_s: float | None = None  # when it sleeps

    def start(self) -> None:
        self._turns.begin(self)
        self._thread.start()

    def join(self) -> None:
        self._turns.wait(lambda: self._done)

    def have_a_turn(self) -> None:
        """Let it run until it gives up its turn; called by the loop's thread."""
        self._turn.release()
        self._turns.loop_turn.acquire()
        if self._done:
            self._thread.join()

    def pause(self, ready: Callable[[], bool] | None = None) -> None:
        """Give the turn back; called by the thread itself."""
        self.ready = ready or _always
        self._turns.loop_turn.release()
        self._turn.acquire()

    def _run(self) -> None:
        self._turn.acquire()
        self._turns.enter(self)
        try:
            self._target()
        finally:
            self._done = True
            self._turns.end(self)
            self._turns.loop_turn.release()


def _always() -> bool:
    return True


class Queue(Generic[T]):
    """In the place of queue.SimpleQueue."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._items: deque[T] = deque()

    def put(self, item: T) -> None:
        self._items.append(item)

    def get(self) -> T:
        self._turns.wait(lambda: bool(self._items))
        return self._items.popleft()


class Lock:
    """In the place of a threading.Lock: whoever waits for it lets others run."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._held = False

    def __enter__(self) -> None:
        self._turns.wait(lambda: not self._held)
        self._held = True

    def __exit__(self, *error: object) -> None:
        self._held = False


class Pool:
    """In the place of a ThreadPoolExecutor that only a loop uses."""

    def __init__(self, turns: Turns, threads: int) -> None:
        self._turns = turns
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads_max = threads
        self._threads: list[Thread] = []
        self._idle = 0
        self._closed = False

    def run(self, loop: Loop, call: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = loop.create_future()

        def answer(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            try:
                result = call()
            except BaseException as error:
                loop.call_soon_threadsafe(answer, None, error)
            else:
                loop.call_soon_threadsafe(answer, result, None)

        self._jobs.append(job)
        if len(self._jobs) > self._idle and len(self._threads) < self._threads_max:
            thread = Thread(self._turns, self._work)
            self._threads.append(thread)
            self._idle += 1
            thread.start()
        return future

    def shutdown(self, wait: bool = True) -> None:
        self._closed = True
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            self._turns.wait(lambda: bool(self._jobs) or self._closed)
            if not self._jobs:
                return
            self._idle -= 1
            self._jobs.popleft()()
            self._idle += 1


class _Selector(selectors.SelectSelector):
    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._turns.between_steps(timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time and whose other threads are simulated."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        super().__init__(_Selector(turns))
        self._pool = turns.pool(8)

    def time(self) -> float:
        return self._turns.now_s

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._turns.news = True
        return super().call_soon_threadsafe(callback, *args, context=context)

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector that this would wake."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        pool = self._pool if executor is None else executor
        assert isinstance(pool, Pool)
        return pool.run(self, lambda: func(*args))

    def end(self) -> None:
        """Let the last threads end, and close."""
        self._pool.shutdown()
        self.close()


def instead_of_threads(turns: Turns) -> Any:
    """Return a context in which the product's threads take turns.

    A name that the product no longer uses is an error here: then this must learn the new one.
    """
    return _Patches(
        patch("origin.commit.threading", SimpleNamespace(Thread=turns.thread)),
        patch("origin.commit.SimpleQueue", turns.queue),
        patch("origin.reader.ThreadPoolExecutor", turns.pool),
        patch("origin.sqlite.Lock", turns.lock),
        patch("origin.index.Lock", turns.lock),
    )


class _Patches:
    def __init__(self, *patches: Any) -> None:
        self._patches = patches

    def __enter__(self) -> None:
        for one in self._patches:
            one.start()

    def __exit__(self, *error: object) -> None:
        for one in self._patches:
            one.stop()
