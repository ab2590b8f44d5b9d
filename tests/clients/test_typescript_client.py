"""The published TypeScript client writes a stream and follows it through the edge."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.node import find_node, install
from tests.service import Service

FOLDER = Path(__file__).parent
RUN_TIMEOUT_S = 60.0  # it takes about 0.5 s


def follow(url: str, content_type: str, live: str) -> Any:
    """Run follow.js and return its report."""
    install(FOLDER)
    done = subprocess.run(
        [find_node().node, "follow.js", url, content_type, live],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout)


@pytest.mark.timeout(400)  # an install, if none was made yet, and a run; each has its own bound
@pytest.mark.parametrize("live", ["long-poll", "sse"])
@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param("application/json", id="json"),
        pytest.param("text/plain", id="text"),
        pytest.param("application/octet-stream", id="binary"),  # base64 where it comes by SSE
    ],
)
def test_typescript_client_sees_each_message_once_in_order_and_the_close(
    service: Service, content_type: str, live: str
) -> None:
    url = f"{service.url}/v1/stream/clients/typescript/{live}/{content_type}"
    report = follow(url, content_type, live)
    assert report["errors"] == []
    assert report["seen"] == list(range(91))
    assert report["sawClose"]
    assert report["headSaysClosed"]
    assert report["refusal"] == 409
    assert len(set(report["tails"])) == 1, report["tails"]
