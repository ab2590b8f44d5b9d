"""Doors of an edge: who is let in, who is told to come back, and what each socket is set to."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from edge import seats
from tests.edge.served import parked, run, served, until

OPTIONS = (
    *("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_NODELAY"),
    *("TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT"),
)


def test_those_over_the_limit_are_told_to_come_back_and_those_within_it_go_on() -> None:
    async def story() -> None:
        async with served(connections=50) as here:
            tail = await here.create("s")
            await until(lambda: here.lane.connections == 0)
            waiting = [await here.connect() for _ in range(50)]
            for line in waiting:
                await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 50)

            async def knock() -> int:
                line = await here.connect()
                await line.ask("s?offset=-1")
                answer = await line.reply()
                assert (answer.status, answer.header("connection")) == (503, "close")
                await line.ended()
                line.close()
                return int(answer.header("retry-after") or "")

            pauses = await asyncio.gather(*(knock() for _ in range(200)))
            assert len(set(pauses)) > 3
            assert min(pauses) >= 1
            assert here.lane._parked.polls == 50
            waiting.pop().close()
            await parked(here, 49)
            await here.append("s", b"news")
            for line in waiting:
                assert (await line.reply()).body == b"news"
                line.close()
            await until(lambda: here.lane.connections == 0)
            line = await here.connect()
            await line.ask("s?offset=-1")
            assert (await line.reply()).status == 200
            line.close()

    run(story)


def test_writer_over_the_limit_reads_the_refusal_whatever_it_sent() -> None:
    async def story() -> None:
        async with served(connections=1) as here:
            await here.create("s")
            await until(lambda: here.lane.connections == 0)
            only = await here.connect()
            await until(lambda: here.lane.connections == 1)
            for _ in range(5):
                line = await here.connect()
                await line.ask("s", method="POST", body=bytes(100_000))
                assert (await line.reply()).status == 503
                await line.ended()
                line.close()
            only.close()

    run(story)


def test_crowd_that_says_nothing_over_the_limit_is_let_rest_and_never_spun_for() -> None:
    async def story() -> None:
        async with served(connections=10) as here:
            await here.create("s")
            await until(lambda: here.lane.connections == 0)
            # Ten within, 128 who are told, and the rest wait to be accepted.
            lines = [await here.connect() for _ in range(300)]
            await until(lambda: here.lane._doors._paused)
            turns = 0
            turn = here.lane._turn

            def count() -> None:
                nonlocal turns
                turns += 1
                turn()

            loop = asyncio.get_running_loop()
            loop.add_reader(here.lane._epoll.fileno(), count)
            await asyncio.sleep(0.5)
            assert turns < 100
            await lines[0].ask("s?offset=-1")
            assert (await lines[0].reply()).status == 200
            for line in lines:
                line.close()
            await until(lambda: here.lane.connections == 0)

    run(story)


def test_process_without_descriptors_tries_again_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, object]:
            Exhausted.tries += 1
            if Exhausted.tries < 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def story() -> None:
        async with served() as here:
            await here.create("s", b"data")
            ((number, listening),) = here.lane._doors._listening.items()
            here.lane._doors._listening[number] = Exhausted(fileno=listening.detach())
            line = await here.connect()
            await line.ask("s?offset=-1")
            turns = 0
            while Exhausted.tries < 3:
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 5  # each waits for a sweep
            assert (await line.reply()).body == b"data"
            assert Exhausted.tries <= 5  # the last finds nobody else
            line.close()

    run(story)


def test_connection_that_a_peer_left_without_a_word_is_found_out() -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s", b"data")
            line = await here.connect()
            await line.ask("s?offset=-1")
            await line.reply()
            states = here.lane._seats.state
            (fd,) = [fd for fd, state in enumerate(states) if state == seats.HEAD]
            assert not os.get_blocking(fd)
            with socket.socket(fileno=os.dup(fd)) as ours:
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                tcp = {
                    name: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                    for name in OPTIONS
                }
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * 64 * 1024
            # 90 s of silence, or 30 s without an acknowledgement.
            given_up_s = tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"]
            assert given_up_s <= 180
            # Linux counts this one, not the probes: a shorter one would let a lost probe end it.
            assert tcp["TCP_USER_TIMEOUT"] == 1000 * given_up_s
            assert tcp["TCP_NODELAY"] == 1
            assert 0 < tcp["TCP_NOTSENT_LOWAT"] <= 128 * 1024
            line.close()

    run(story)
