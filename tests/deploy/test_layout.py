"""Which processes a service has, and who reads from whom."""

from pathlib import Path

import pytest

from deploy.layout import lay_out
from shared.config import EDGE, ORIGIN, Settings

FOLDER = Path("/run/x")


def laid_out(settings: Settings) -> list[list[str]]:
    tiers = lay_out(settings, FOLDER, 4437)
    return [[process.settings.role for process in tier] for tier in tiers]


@pytest.mark.parametrize(
    ("edges", "shield", "expected"),
    [
        (1, "auto", [["origin"], ["edge-0"]]),
        (1, "on", [["origin"], ["shield"], ["edge-0"]]),
        (2, "auto", [["origin"], ["shield"], ["edge-0", "edge-1"]]),
        (2, "on", [["origin"], ["shield"], ["edge-0", "edge-1"]]),
        (2, "off", [["origin"], ["edge-0", "edge-1"]]),
    ],
)
def test_several_edges_have_a_shield_unless_told_otherwise(
    edges: int, shield: str, expected: list[list[str]]
) -> None:
    assert laid_out(Settings(edges=edges, shield=shield)) == expected


def test_edges_read_through_the_shield_and_write_past_it() -> None:
    (origin,), (shield,), edges = lay_out(Settings(edges=2), FOLDER, 4437)
    assert (origin.command, shield.command) == (ORIGIN, EDGE)
    assert shield.settings.upstream_socket == origin.settings.socket
    for edge in edges:
        assert edge.command == EDGE
        assert edge.settings.upstream_socket == shield.settings.socket
        assert edge.settings.relay_socket == origin.settings.socket
        assert edge.settings.socket is None
        assert (edge.settings.port, edge.settings.reuse_port) == (4437, True)


def test_every_process_hears_the_origin_and_can_be_asked() -> None:
    settings = Settings(edges=3, redis="redis://h:1")
    processes = [process.settings for tier in lay_out(settings, FOLDER, 1) for process in tier]
    assert len({process.bus_socket for process in processes}) == 1
    assert len({process.admin_socket for process in processes}) == len(processes)
    assert all(process.supervised for process in processes)
    # To Redis only the origin speaks: for edges on other machines.
    assert [process.role for process in processes if process.redis is not None] == ["origin"]


def test_bounds_on_clients_are_none_on_the_node_itself() -> None:
    settings = Settings(edges=2, connections=10, keepalive_timeout_s=1.0)
    _, (shield,), edges = lay_out(settings, FOLDER, 1)
    assert shield.settings.connections is None
    assert shield.settings.keepalive_timeout_s > 15  # after which an edge closes by itself
    assert {edge.settings.connections for edge in edges} == {10}
