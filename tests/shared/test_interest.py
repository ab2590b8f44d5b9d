"""The book of subscriptions, against a server that does commands in order."""

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import interest
from shared.interest import BATCH_PATHS_MAX, Interest


class Server:
    """A bus without a wire: the test says when commands are sent, and when they are answered."""

    def __init__(self) -> None:
        self.doubts: list[bool] = []
        self.book = Interest()
        self.book.begin(lambda: self.doubts.append(self.book.up))
        self.subscribed: set[str] = set()
        self._sent: deque[tuple[bool, str]] = deque()

    def connect(self) -> None:
        self.subscribed.clear()
        self._sent.clear()
        self.book.connected()

    async def send(self) -> tuple[list[str], list[str]]:
        """Send what is unsaid, if anything is; return it."""
        asking = asyncio.create_task(self.book.next_commands())
        for _ in range(3):
            await asyncio.sleep(0)
        if not asking.done():
            asking.cancel()
            await asyncio.wait((asking,))
            return [], []
        subscribe, unsubscribe = asking.result()
        self._sent += [(True, path) for path in subscribe]
        self._sent += [(False, path) for path in unsubscribe]
        return subscribe, unsubscribe

    def answer(self, count: int = 10**6) -> None:
        while self._sent and count:
            count -= 1
            on, path = self._sent.popleft()
            (self.subscribed.add if on else self.subscribed.discard)(path)
            self.book.answered(path)


@pytest.fixture
def server() -> Server:
    return Server()


async def wanting(server: Server, path: str) -> "asyncio.Task[bool]":
    task = asyncio.create_task(server.book.want(path))
    await asyncio.sleep(0)
    return task


async def test_want_returns_once_the_server_has_answered(server: Server) -> None:
    server.connect()
    task = await wanting(server, "/a")
    assert await server.send() == (["/a"], [])
    await asyncio.sleep(0)
    assert not task.done()
    server.answer()
    assert await task is True


async def test_wanting_what_is_confirmed_asks_nothing(server: Server) -> None:
    server.connect()
    task = await wanting(server, "/a")
    await server.send()
    server.answer()
    assert await task
    assert await server.book.want("/a") is True
    assert await server.send() == ([], [])


async def test_wanting_without_a_connection_is_refused_and_made_good(server: Server) -> None:
    assert await server.book.want("/a") is False
    server.connect()
    assert not server.book.up
    assert await server.send() == (["/a"], [])
    assert server.doubts == []
    server.answer()
    assert server.doubts == [True]


async def test_first_connection_with_nothing_wanted_is_up_at_once(server: Server) -> None:
    server.connect()
    assert server.book.up
    assert server.doubts == [True]


async def test_loss_is_doubted_at_once_and_refuses_who_waits(server: Server) -> None:
    server.connect()
    task = await wanting(server, "/a")
    await server.send()
    server.book.lost()
    assert server.doubts == [True, False]
    assert await task is False
    assert not server.book.up


async def test_attempt_that_never_connected_raises_no_doubt(server: Server) -> None:
    server.book.lost()
    assert server.doubts == []
    await server.book.tried()


async def test_doubt_after_a_loss_comes_once_when_all_is_there(server: Server) -> None:
    paths = [f"/{n}" for n in range(BATCH_PATHS_MAX + 1)]
    for path in paths:
        await server.book.want(path)
    server.connect()
    first, _ = await server.send()
    assert len(first) == BATCH_PATHS_MAX
    second, _ = await server.send()
    assert {*first, *second} == {*paths}
    server.answer(BATCH_PATHS_MAX)
    assert server.doubts == []
    assert not server.book.up
    server.answer(1)
    assert server.doubts == [True]
    assert server.book.up


async def test_last_missing_stream_that_nobody_wants_any_more_ends_the_wait(
    server: Server,
) -> None:
    await server.book.want("/a")
    await server.book.want("/b")
    server.connect()
    await server.send()
    server.answer(1)
    missing = {"/a", "/b"} - server.subscribed
    server.book.unwant(missing.pop())
    assert server.doubts == [True]


async def test_stream_taken_back_before_it_was_said_is_never_said(server: Server) -> None:
    server.connect()
    task = await wanting(server, "/a")
    server.book.unwant("/a")
    assert await task is False
    assert await server.send() == ([], [])


async def test_stream_wanted_again_before_it_was_said_stays(server: Server) -> None:
    server.connect()
    task = await wanting(server, "/a")
    await server.send()
    server.answer()
    assert await task
    server.book.unwant("/a")
    assert await server.book.want("/a") is True
    assert await server.send() == ([], [])


async def test_answer_to_an_older_command_confirms_nothing(server: Server) -> None:
    server.connect()
    first = await wanting(server, "/a")
    await server.send()
    server.book.unwant("/a")
    await server.send()
    second = await wanting(server, "/a")
    await server.send()
    assert await first is False
    server.answer(1)  # of the first subscribe: an unsubscribe is still on its way
    await asyncio.sleep(0)
    assert not second.done()
    server.answer()
    assert await second is True
    assert server.subscribed == {"/a"}


async def test_one_who_leaves_takes_nothing_from_the_others_who_wait(server: Server) -> None:
    server.connect()
    leaves, stays = await wanting(server, "/a"), await wanting(server, "/a")
    await server.send()
    leaves.cancel()
    await asyncio.wait((leaves,))
    server.answer()
    assert await stays is True


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interest, "SUBSCRIBE_TIMEOUT_S", 0.001)


@pytest.mark.usefixtures("_impatient")
async def test_late_answer_is_made_good_by_doubt(server: Server) -> None:
    server.connect()
    server.doubts.clear()
    late = [await wanting(server, path) for path in ("/a", "/b")]
    await server.send()
    assert await asyncio.gather(*late) == [False, False]
    assert not server.book.up
    server.answer(1)
    assert server.doubts == []
    server.answer(1)
    assert server.doubts == [True]


async def test_answer_to_what_was_never_asked_changes_nothing(server: Server) -> None:
    server.connect()
    server.book.answered("/foreign")
    assert server.doubts == [True]
    assert await server.send() == ([], [])


OPERATION = st.tuples(
    st.sampled_from(["want", "unwant", "send", "answer", "lose"]), st.sampled_from(["/a", "/b"])
)


@given(st.lists(OPERATION, max_size=40))
def test_server_ends_up_with_what_is_wanted(operations: list[tuple[str, str]]) -> None:
    asyncio.run(_replay(operations))


async def _replay(operations: list[tuple[str, str]]) -> None:
    server, wanted, tasks = Server(), set[str](), list[asyncio.Task[bool]]()
    server.connect()
    for operation, path in operations:
        match operation:
            case "want":
                wanted.add(path)
                tasks.append(await wanting(server, path))
            case "unwant":
                wanted.discard(path)
                server.book.unwant(path)
            case "send":
                await server.send()
            case "answer":
                server.answer(1)
            case "lose":
                server.book.lost()
                server.connect()
    while await server.send() != ([], []):
        server.answer()
    server.answer()
    assert server.subscribed == wanted
    assert server.book.up
    for path in wanted:
        assert await server.book.want(path) is True
    await asyncio.gather(*tasks)  # nobody waits on
