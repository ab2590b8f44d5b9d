"""SIGKILL at any moment: what was acknowledged is there once, in order, and nobody saw more.

By hand: `python -m tests.faults kill --times 200`.
"""

from pathlib import Path

import pytest

from tests.faults.kills import kill_at_any_moment

KILLS = 17


@pytest.mark.timeout(120)
async def test_kill_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    print(await kill_at_any_moment(tmp_path, KILLS))
