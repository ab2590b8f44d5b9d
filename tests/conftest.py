"""What holds for all tests."""

import gc

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Spare the collector what lives to the end: 5,000 tests and all that they are made of, which
    it would go through each time that one of them asks for what is garbage."""
    gc.collect()
    gc.freeze()
