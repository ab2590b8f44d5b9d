"""Layout: which processes make up the service, and by which sockets they find each other."""

from dataclasses import dataclass, replace
from pathlib import Path

from shared.config import EDGE, ORIGIN, Settings


@dataclass(frozen=True, slots=True)
class Process:
    """One process to be."""

    command: str
    settings: Settings


def lay_out(settings: Settings, folder: Path, port: int) -> list[list[Process]]:
    """Decide what `headwater up` starts.

    Several edges read through one more, the shield, so that a node costs the origin what one edge
    costs it. They hear wakes from the origin itself, not a process later: most wakes carry the
    bytes. And they relay writes to the origin itself: a shield that is busy or has died stands in
    nobody's way, and a body is not held once more.

    Args:
        folder: where the sockets are.
        port: what the edges share.

    Returns:
        Tiers: a process reads from one in the tier before its own.
    """

    def process(command: str, role: str, own: Settings) -> Process:
        admin_socket = folder / f"{role}.admin"
        own = replace(own, role=role, admin_socket=admin_socket, supervised=True)
        return Process(command, own)

    origin_socket, shield_socket = folder / "origin", folder / "shield"
    common = replace(settings, bus_socket=folder / "bus")
    origin = process(ORIGIN, "origin", replace(common, socket=origin_socket))
    # Redis is for edges elsewhere: here the socket is nearer, and never away.
    reader = replace(common, redis=None, upstream_socket=origin_socket)
    tiers = [[origin]]
    if settings.shield == "on" or (settings.shield == "auto" and settings.edges > 1):
        # Bounds on what clients may do are none on our own edges.
        shield = replace(reader, socket=shield_socket, connections=None, keepalive_timeout_s=75.0)
        tiers.append([process(EDGE, "shield", shield)])
        reader = replace(reader, upstream_socket=shield_socket, relay_socket=origin_socket)
    edge = replace(reader, port=port, reuse_port=True)
    tiers.append([process(EDGE, f"edge-{number}", edge) for number in range(settings.edges)])
    return tiers
