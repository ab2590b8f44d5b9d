"""The key by which a CDN knows a stream."""

import subprocess

import pytest

from shared.protocol.surrogate import surrogate_headers, surrogate_key


@pytest.mark.parametrize("path", ["a", "notes/today", "a b,c", "\u00fc\n", "x" * 2000])
def test_key_is_what_operators_compute_and_every_cdn_takes(path: str) -> None:
    sums = subprocess.run(["b2sum", "-l", "80"], input=path.encode(), capture_output=True)
    key = surrogate_key(path)
    assert key == "hw-" + sums.stdout.split()[0].decode()
    assert len(key) == 23
    assert set(surrogate_headers(path).values()) == {key}


def test_streams_have_keys_of_their_own() -> None:
    assert len({surrogate_key(f"chats/{number}") for number in range(10_000)}) == 10_000
