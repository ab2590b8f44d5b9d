"""Connections of an edge: kept, closed, handed to and fro, and never the worse for each other."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import pytest

from edge import lane as lane_module
from edge.app import drain
from shared.plain import Plain, Refusal, parse_plain
from tests.edge.served import asking, parked, run, served, until

# --- leaving -------------------------------------------------------------------------------------


def test_reader_that_waits_and_has_sent_its_last_has_left() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            line.sock.shutdown(socket.SHUT_WR)
            await line.ended()
            await parked(here, 0)
            line.close()

    run(story)


def test_connection_whose_request_makes_us_fail_is_closed_and_others_are_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def parse(received: bytes, prefix: str) -> Plain | Refusal | None:
        assert b"/bad" not in received
        return parse_plain(received, prefix)

    async def story() -> None:
        async with served() as here:
            tail = await here.create("s", b"data")
            monkeypatch.setattr(lane_module, "parse_plain", parse)
            lines = [await here.connect() for _ in range(60)]
            for number, line in enumerate(lines):
                # The last ones have it waiting behind a long-poll.
                if number >= 40:
                    await line.ask(f"s?offset={tail}&live=long-poll")
                elif number % 2:
                    await line.ask("bad")
                else:
                    await line.ask("s?offset=-1")
            await parked(here, 20)
            for line in lines[40::2]:
                await line.ask("bad")
            await asyncio.sleep(0.05)
            await here.append("s", b"news")
            for number, line in enumerate(lines):
                if number >= 40:
                    assert (await line.reply()).body == b"news"
                if number % 2 == (number < 40):
                    await line.ended()
                elif number < 40:
                    assert (await line.reply()).body == b"data"
                else:
                    await line.ask("s?offset=-1")
                    assert (await line.reply()).body == b"datanews"
                line.close()
            await until(lambda: here.lane._seats.taken == 0)

    with caplog.at_level(logging.ERROR):
        run(story)
    assert {record.message for record in caplog.records} == {"unexpected error"}
    assert len(caplog.records) == 30


def test_crowd_that_breaks_off_at_once_comes_back_and_is_served() -> None:
    count = 1500

    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            for _ in range(2):
                lines = [await here.connect() for _ in range(count)]
                for number, line in enumerate(lines):
                    await line.ask(f"s?offset={tail}&live={('sse', 'long-poll')[number % 2]}")
                await parked(here, count)
                for line in lines:
                    line.reset()
                await parked(here, 0)
                await until(lambda: here.lane.connections == 0)
            assert here.lane._parked._groups._crowds == {}
            assert not here.lane._received
            assert not here.lane._replies.catching_up
            assert len(here.lane._outbox) == 0

    run(story)


def test_request_that_was_sent_before_the_goodbye_came_does_not_cost_the_reply() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            # More than is taken in while it waits: some of it is unread when the reply is sent.
            await line.send(asking("s", method="POST", body=bytes(60_000)))
            draining = asyncio.create_task(drain(here.edge, 0.1, margin_s=5.0))
            await asyncio.sleep(0.3)
            answer = await line.reply()
            assert (answer.status, answer.header("connection")) == (204, "close")
            await line.ended()
            line.close()
            await draining

    run(story)


# --- to aiohttp and back -------------------------------------------------------------------------


def test_connection_goes_to_aiohttp_for_a_write_and_waits_in_the_lane_again() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line, listener = await here.connect(), here.edge.handlers.listener
            for turn in range(3):
                body = b"<%d>" % turn
                await line.ask("s", "Keep-Alive: 5", method="POST", body=body)  # not plain
                written = await line.reply()
                assert (written.status, here.lane._seats.taken) == (204, 0)
                assert listener.connections == 1
                await line.ask(f"s?offset={written.next}&live=long-poll")
                await parked(here, 1)
                # No transport, parser or handler is left of it.
                assert (listener.connections, listener.active) == (0, 0)
                await here.append("s", b"more")
                assert (await line.reply()).body == b"more"
                await line.ask(f"s?offset={tail}")
                assert (await line.reply()).body.endswith(body + b"more")
            line.close()
            await until(lambda: here.lane.connections == 0)

    run(story)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_other_methods_leave_the_connection_fit_for_the_next_read(method: str) -> None:
    async def story() -> None:
        async with served() as here:
            await here.create("s", b"data")
            line = await here.connect()
            for _ in range(3):
                await line.ask("s?offset=-1", method=method)
                assert (await line.reply("HEAD")).status in (200, 204)
                await line.ask("s?offset=-1")
                assert (await line.reply()).body == b"data"
            line.close()

    run(story)


def test_connection_that_is_reset_while_it_is_handed_over_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        async with served() as here:
            for _ in range(30):
                line = await here.connect()
                await line.ask("s", method="PATCH")
                line.reset()
            await until(lambda: here.lane.connections == 0)

    with caplog.at_level(logging.WARNING):
        run(story)
    assert caplog.records == []


# --- what comes before its turn ------------------------------------------------------------------


def test_requests_that_come_during_a_long_poll_are_answered_after_it_and_in_order() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            for n in range(3):
                await line.ask(f"nobody-{n}")
                await asyncio.sleep(0.01)
            await line.ask("s", method="POST", body=b"more")
            await asyncio.sleep(0.01)
            await here.append("s", b"news")
            assert (await line.reply()).body == b"news"
            for n in range(3):
                answer = await line.reply()
                assert answer.status == 404
                assert b"nobody-%d" % n in answer.body
            assert (await line.reply()).status == 204
            line.close()

    run(story)


def test_what_comes_during_a_long_poll_is_bounded_and_arrives_whole() -> None:
    async def story() -> None:
        async with served() as here:
            tail = await here.create("s")
            line = await here.connect()
            await line.ask(f"s?offset={tail}&live=long-poll")
            await parked(here, 1)
            body = os.urandom(1_000_000)
            sending = asyncio.create_task(line.ask("s", method="POST", body=body))
            await asyncio.sleep(0.05)
            assert sum(map(len, here.lane._received.values())) < 20_000
            await here.append("s", b"news")
            assert (await line.reply()).body == b"news"
            assert (await line.reply()).status == 204
            await sending
            await line.ask("s?offset=-1")
            assert (await line.reply()).body == b"news" + body
            line.close()

    run(story)
