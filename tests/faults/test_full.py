"""No room, and worse: what is refused never was, what is unknown stops the process."""

import asyncio
import ctypes
import errno
import os
import random
import resource
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import apsw
import pytest

from origin.app import open_origin
from origin.journal import JournalFailed
from origin.sqlite import SqliteJournal
from shared.config import Settings
from shared.sockets import listen_tcp
from tests.fakes import Disk, failing_call, failing_disk
from tests.faults.ledger import session
from tests.faults.lives import Origin
from tests.http.api import Answer, Server


class Here:
    """An origin in this process, whose end is noted instead of carried out."""

    def __init__(self, server: Server, stopped: list[BaseException]) -> None:
        self.server = server
        self.stopped = stopped


@asynccontextmanager
async def serving(folder: Path, vfs: str | None = None) -> AsyncIterator[Here]:
    stopped: list[BaseException] = []
    settings = Settings(data_dir=folder, registry=False, long_poll_timeout_s=0.2)
    journal = SqliteJournal(folder, vfs=vfs)
    async with open_origin(settings, journal, [], on_failure=stopped.append) as origin:
        sock = listen_tcp("127.0.0.1", 0)
        port = sock.getsockname()[1]
        await origin.lane.listen(sock)
        async with session() as client:
            yield Here(Server(f"http://127.0.0.1:{port}", client), stopped)
        await asyncio.gather(origin.lane.drain(0), origin.listener.drain(0))


@pytest.fixture
def disk() -> Iterator[tuple[Disk, str]]:
    with failing_disk() as made:
        yield made


def is_full(answer: Answer) -> bool:
    """Tell whether a write was refused for want of room, as it should be refused."""
    if answer.status != 503:
        return False
    code, message = answer.refusal()
    assert code == "unavailable"
    assert "full" in message
    assert int(answer.headers["Retry-After"]) >= 1
    return True


# --- no room -------------------------------------------------------------------------------------


async def test_full_disk_refuses_every_write_and_answers_every_read(
    disk: tuple[Disk, str], tmp_path: Path
) -> None:
    failing, vfs = disk
    async with serving(tmp_path, vfs) as here:
        s, f, new = (here.server.stream(name) for name in ("s", "f", "new"))
        await s.put(b"one")
        await f.fork(s)
        await s.produce(b"two", 0)
        failing.room_bytes = 0
        for answer in [
            await s.post(b"x"),
            await s.produce(b"x", 1),
            await s.produce(b"x", 0, epoch=1),
            await s.close(),
            await s.delete(),
            await f.delete(),
            await new.put(b"x"),
            await new.fork(s),
        ]:
            assert is_full(answer), answer
        # Refusals and retries of what was accepted need no room.
        assert (await s.produce(b"two", 0)).status == 204
        assert (await s.produce(b"x", 5)).status == 409
        assert (await s.put(b"", "text/html")).status == 409
        assert await s.whole() == b"onetwo"
        assert await f.whole() == b"one"
        assert (await new.head()).status == 404
        assert not (await s.head()).closed
        assert (await s.poll((await s.head()).next)).status == 204

        failing.room_bytes = None
        assert (await s.produce(b"three", 1)).status == 200
        assert (await new.put(b"new")).status == 201
        assert (await s.delete()).status == 204  # softly: its fork is still there
        assert (await s.head()).status == 410
        assert (await f.delete()).status == 204
        assert (await s.head()).status == 404
        assert here.stopped == []
    async with serving(tmp_path) as here:
        assert (await here.server.stream("s").head()).status == 404
        assert await here.server.stream("new").whole() == b"new"


@pytest.fixture
def one_disk(disk: tuple[Disk, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Disk, str]:
    """A disk on which files of large frames take room, too."""
    failing, pwrite, no_room = disk[0], os.pwrite, failing_call(errno.ENOSPC)

    def writes(file: int, data: memoryview, at: int) -> int:
        try:
            failing.write(os.readlink(f"/proc/self/fd/{file}"), len(data))
        except apsw.FullError:
            del data  # else the error would hold on to it
            return no_room()
        return pwrite(file, data, at)

    monkeypatch.setattr(os, "pwrite", writes)
    return disk


@pytest.mark.parametrize("scale", [1, 12], ids=["small", "large"])
@pytest.mark.parametrize("seed", range(4))
async def test_room_that_comes_and_goes_leaves_what_was_acknowledged_and_nothing_else(
    one_disk: tuple[Disk, str], tmp_path: Path, seed: int, scale: int
) -> None:
    """Wherever in a commit the room ends: in its first page, or its last; in its file, or its
    row."""
    failing, vfs = one_disk
    random_ = random.Random(seed)
    kept: list[bytes] = []
    refused = 0
    async with serving(tmp_path, vfs) as here:
        stream = here.server.stream("s")
        await stream.put()
        for step in range(30):
            failing.room_bytes = random_.choice([None, random_.randrange(60_000 * scale)])
            sizes = [random_.randrange(9000 * scale) for _ in range(8)]
            bodies = [b"<%d.%d%s>" % (step, n, b"." * size) for n, size in enumerate(sizes)]
            answers = await asyncio.gather(
                *(stream.produce(body, step, producer=str(n)) for n, body in enumerate(bodies))
            )
            # Whoever was refused tries again, until there is room.
            failing.room_bytes = None
            for n, (body, answer) in enumerate(zip(bodies, answers, strict=True)):
                if is_full(answer):
                    refused += 1
                    answer = await stream.produce(body, step, producer=str(n))
                assert answer.status == 200
                kept.append(body)
        content = await stream.whole()
        assert here.stopped == []
    assert refused > 20
    assert bool(os.listdir(tmp_path / "frames")) == (scale > 1)
    assert sorted(content.replace(b">", b">\n").split(b"\n")[:-1]) == sorted(kept)
    async with serving(tmp_path) as here:
        assert await here.server.stream("s").whole() == content


async def test_index_without_room_lags_and_catches_up(
    disk: tuple[Disk, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("origin.upkeep._APPLY_EVERY_S", 0.02)
    failing, vfs = disk
    async with serving(tmp_path, vfs) as here:
        stream = here.server.stream("s")
        await stream.put()
        for ending in ("index.db-wal", "index.db", "journal.db"):  # the last: no checkpoint
            failing.on_write = {ending: errno.ENOSPC}
            for number in range(10):
                assert (await stream.post(b"<%s:%d>" % (ending.encode(), number))).status == 204
                await asyncio.sleep(0.01)
            assert len(await stream.whole()) > 0
        failing.on_write = {}
        await stream.post(b"end")
        await asyncio.sleep(0.2)
        content = await stream.whole()
        assert here.stopped == []
    assert content.count(b"<") == 30
    journal = SqliteJournal(tmp_path)
    assert journal.applied()[0] == len(list(journal.frames(0)))
    journal.close()
    async with serving(tmp_path) as here:
        assert await here.server.stream("s").whole() == content


async def test_stop_on_a_full_disk_is_in_order(disk: tuple[Disk, str], tmp_path: Path) -> None:
    failing, vfs = disk
    async with serving(tmp_path, vfs) as here:
        stream = here.server.stream("s")
        await stream.put(b"one")
        failing.room_bytes = 0
        assert is_full(await stream.post(b"two"))
    async with serving(tmp_path) as here:
        assert await here.server.stream("s").whole() == b"one"


# --- worse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS], ids=["EIO", "EROFS"])
@pytest.mark.parametrize("call", ["on_sync", "on_write"])
async def test_failed_commit_stops_and_acknowledges_nothing(
    disk: tuple[Disk, str], tmp_path: Path, call: str, number: int
) -> None:
    failing, vfs = disk
    async with serving(tmp_path, vfs) as here:
        s, new = here.server.stream("s"), here.server.stream("new")
        await s.put(b"one")
        setattr(failing, call, {"journal.db-wal": number})
        answers = await asyncio.gather(
            s.post(b"two"), s.produce(b"two", 0), s.close(), new.put(b"x"), s.post(b"three")
        )
        assert [answer.status for answer in answers] == [503] * 5
        assert all("stopping" in answer.refusal()[1] for answer in answers)
        (error,) = here.stopped
        assert isinstance(error, JournalFailed)
        assert "journal.db" in str(error)
        # The process would be gone by now. In this last moment nothing is taken in any more, and
        # an fsync that would succeed proves nothing of the one that failed.
        setattr(failing, call, {})
        assert (await s.post(b"four")).status == 503
        assert await s.whole() == b"one"
    async with serving(tmp_path) as again:
        # What was not acknowledged may be there, at most once and in its order.
        assert await again.server.stream("s").whole() in (
            b"one",
            b"onetwo",
            b"onetwotwo",
            b"onetwotwothree",
        )
        assert b"four" not in await again.server.stream("s").whole()


async def test_failed_index_stops(
    disk: tuple[Disk, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("origin.upkeep._APPLY_EVERY_S", 0.02)
    failing, vfs = disk
    async with serving(tmp_path, vfs) as here:
        failing.on_write = {"index.db-wal": errno.EIO}
        assert (await here.server.stream("s").put(b"one")).status == 201
        await asyncio.sleep(0.2)
        failing.on_write = {}
        assert here.stopped
        assert "index.db" in str(here.stopped[0])
    async with serving(tmp_path) as here:
        assert await here.server.stream("s").whole() == b"one"


async def test_every_acknowledged_append_was_synced(disk: tuple[Disk, str], tmp_path: Path) -> None:
    failing, vfs = disk
    async with serving(tmp_path, vfs) as here:
        stream = here.server.stream("s")
        await stream.put()
        for number in range(10):
            failing.syncs.clear()
            await stream.post(b"<%d>" % number)
            assert any(name.endswith("journal.db-wal") for name in failing.syncs)


# --- for real ------------------------------------------------------------------------------------

_LIBC = ctypes.CDLL(None, use_errno=True)
_PWRITE = ctypes.CFUNCTYPE(
    *(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64),
    use_errno=True,
)


@contextmanager
def failing_pwrite(fails: Callable[[str], int]) -> Iterator[None]:
    """Let SQLite's own system call fail, as the kernel would.

    Args:
        fails: says with which errno a write to a file fails, or 0.
    """
    real = _LIBC.pwrite64
    real.restype = ctypes.c_ssize_t
    real.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)

    def pwrite(fd: int, data: int, size: int, offset: int) -> int:
        number = fails(os.readlink(f"/proc/self/fd/{fd}"))
        if number:
            ctypes.set_errno(number)
            return -1
        written: int = real(fd, data, size, offset)
        return written

    vfs = apsw.VFS(f"calls-{id(fails)}", "unix")
    callback = _PWRITE(pwrite)  # must live as long as SQLite may call it
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    assert vfs.xSetSystemCall("pwrite64", address)
    try:
        yield
    finally:
        vfs.xSetSystemCall("pwrite64", 0)
        vfs.unregister()


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
async def test_each_way_in_which_the_kernel_says_that_there_is_no_room(
    tmp_path: Path, name: str
) -> None:
    number = 0

    def fails(path: str) -> int:
        return number if path.startswith(str(tmp_path)) else 0

    with failing_pwrite(fails):
        async with serving(tmp_path) as here:
            stream = here.server.stream("s")
            assert (await stream.put(b"one")).status == 201
            number = getattr(errno, name)
            for _ in range(3):
                assert is_full(await stream.produce(b"two" * 3000, 0))
            await asyncio.sleep(1.2)  # the index, too, finds no room
            assert await stream.whole() == b"one"
            number = 0
            assert (await stream.produce(b"two", 0)).status == 200
            assert await stream.whole() == b"onetwo"
            assert here.stopped == []
    async with serving(tmp_path) as here:
        assert await here.server.stream("s").whole() == b"onetwo"


def append_all(journal: SqliteJournal, lsns: Iterator[int]) -> None:
    for lsn in lsns:
        journal.append(lsn, [b"x"])


def test_commit_whose_index_finds_no_room_is_not_refused_as_if_it_were_not_there(
    tmp_path: Path,
) -> None:
    """The WAL index grows every few thousand frames, after the commit is on disk."""
    full = False

    def fails(path: str) -> int:
        return errno.ENOSPC if full and path.endswith("-shm") else 0

    with failing_pwrite(fails):
        journal = SqliteJournal(tmp_path / "live")
        full, lsns = True, iter(range(1, 10_000))
        with pytest.raises(JournalFailed, match=r"journal\.db: "):
            append_all(journal, lsns)
        lsn = next(lsns) - 1
        shutil.copytree(tmp_path / "live", tmp_path / "dead")
        full = False
        journal.close()
        # A process that stops at once leaves this.
        journal = SqliteJournal(tmp_path / "dead")
        assert [found for found, _ in journal.frames(lsn - 1)] == [lsn]
        journal.close()


async def test_process_at_its_file_size_limit_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """A real process, a real kernel: the one full disk that needs no root."""
    async with Origin(tmp_path, "--log-level", "error") as origin, session() as client:
        stream = Server(origin.url, client).stream("s")
        assert (await stream.put()).status == 201
        kept = []
        _, most = resource.prlimit(origin.pid, resource.RLIMIT_FSIZE)
        for round_ in range(3):
            resource.prlimit(origin.pid, resource.RLIMIT_FSIZE, (300_000 * (round_ + 1), most))
            for number in range(40):
                body = b"<%d.%d%s>" % (round_, number, b"." * 20_000)
                answer = await stream.post(body)
                if is_full(answer):
                    break
                assert answer.status == 204
                kept.append(body)
            else:
                raise AssertionError("the limit was never met")
            assert await stream.whole() == b"".join(kept)
            assert is_full(await stream.post(b"x" * 20_000))
        resource.prlimit(origin.pid, resource.RLIMIT_FSIZE, (most, most))
        assert (await stream.post(b"end")).status == 204
        kept.append(b"end")
        assert await stream.whole() == b"".join(kept)
        await origin.kill()
        await origin.start()
        assert await stream.whole() == b"".join(kept)
        assert await origin.stop() == 0


async def test_large_append_beyond_the_file_size_limit_is_taken_once_there_is_room(
    tmp_path: Path,
) -> None:
    """Its file meets the limit by itself: what has room meanwhile goes on."""
    async with Origin(tmp_path, "--log-level", "error") as origin, session() as client:
        stream = Server(origin.url, client).stream("s")
        assert (await stream.put()).status == 201
        large, larger = b"l" * 400_000, b"L" * 600_000
        _, most = resource.prlimit(origin.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(origin.pid, resource.RLIMIT_FSIZE, (500_000, most))
        kept = [large, b"small", large]
        for body in kept:
            assert is_full(await stream.post(larger))
            assert (await stream.post(body)).status == 204
        assert await stream.whole() == b"".join(kept)
        resource.prlimit(origin.pid, resource.RLIMIT_FSIZE, (most, most))
        assert (await stream.post(larger)).status == 204
        kept.append(larger)
        await origin.kill()
        assert len(os.listdir(origin.data / "frames")) == 3
        await origin.start()
        assert await stream.whole() == b"".join(kept)
        assert await origin.stop() == 0


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
async def test_large_commit_that_fails_stops_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with serving(tmp_path) as here:
        stream = here.server.stream("s")
        await stream.put(b"one")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing_call(errno.EIO))
            answer = await stream.post(b"x" * 400_000)
        assert answer.status == 503
        assert "stopping" in answer.refusal()[1]
        (error,) = here.stopped
        assert isinstance(error, JournalFailed)
        assert "/frames: Input/output error" in str(error)
        assert (await stream.post(b"more")).status == 503
        assert await stream.whole() == b"one"
    async with serving(tmp_path) as again:
        assert await again.server.stream("s").whole() == b"one"
