"""The service that the published clients talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service import Service


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Origin and one edge behind one URL, as `headwater up` runs them."""
    data = str(tmp_path_factory.mktemp("data"))
    with Service.start(["up", "--port", "0", "--admin-port", "0", "--data-dir", data]) as running:
        yield running
