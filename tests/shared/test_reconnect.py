"""Reconnecting: how long it pauses, when it ends, what it says."""

import asyncio
import logging

import pytest
from redis.exceptions import AuthenticationError

from shared import reconnect
from shared.reconnect import keep_connected, pause_s


@pytest.mark.parametrize(
    ("failures", "least", "most"),
    [
        (1, 0.025, 0.05),
        (2, 0.05, 0.1),
        (3, 0.1, 0.2),
        (5, 0.4, 0.8),
        (6, 0.4, 0.8),
        (10**9, 0.4, 0.8),
    ],
)
def test_pause_grows_to_a_bound_and_varies(failures: int, least: float, most: float) -> None:
    assert pause_s(failures, 0) == least
    assert pause_s(failures, 1) == most


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "pause_s", lambda failures, jitter: 0.0)


class Lives:
    """Connections that end as they are told to; the one after the last returns."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    async def live(self) -> None:
        if self._errors:
            raise self._errors.pop(0)


@pytest.mark.usefixtures("_no_pauses")
async def test_losses_are_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    lives = Lives(
        ConnectionRefusedError(111, "refused"),
        TimeoutError(),
        AuthenticationError("wrong"),
        ExceptionGroup("", [ConnectionResetError("gone"), TimeoutError()]),
    )
    with caplog.at_level(logging.INFO):
        await keep_connected("here:1", lives.live, (OSError, AuthenticationError))
    assert [record.getMessage() for record in caplog.records] == [
        "bus lost: server=here:1 error=[Errno 111] refused"
    ]


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize(
    "error",
    [KeyError("ours"), ExceptionGroup("", [OSError(), KeyError("ours")])],
    ids=["alone", "in a group"],
)
async def test_fault_of_ours_is_an_error_with_its_trace(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await keep_connected("here:1", Lives(error).live)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.usefixtures("_no_pauses")
async def test_cancelling_ends_it() -> None:
    async def live() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(keep_connected("here:1", live))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
