"""What deploy/ holds for Kubernetes, Docker and Prometheus, as a machine reads it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from edge import lane, lines, outbox, recent, writes
from origin import commit, hot, reader
from origin import lane as origin_lane
from shared import config, descriptors, plain, web
from shared.config import Settings, fields_of, load, variable
from tests.service import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = ("single-node", "production")
MIB = 1024 * 1024
CODE_BYTES = 80 * MIB
# What caches and queues may hold by bounds of the code; those that are settings come on top.
OF_EDGES = (
    2 * outbox._HELD_BYTES_MAX,
    recent._BYTES_MAX,
    lane._UPLOADS_MAX * (writes.BODY_BYTES_MAX + plain.HEAD_BYTES_MAX),
    lines._LINES * lines._BYTES_MAX,
)
OF_ORIGINS = (
    commit._QUEUE_BYTES_MAX,
    hot._BYTES_MAX,
    reader._RECENT_BYTES_MAX,
    origin_lane._LARGE_BYTES_HELD,
)
SOCKET_BYTES = 4096  # of the kernel
READER_BYTES = 200
STREAM_BYTES = 2048
LEFTOVER_S = 3  # what a role takes after its drain, at most

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """Return a program that came with the test dependencies."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found is not None, f"{name} is not installed beside {sys.executable}"
    return found


@lru_cache
def render(overlay: str) -> tuple[Manifest, ...]:
    """Return what `kubectl apply -k` would send."""
    folder = DEPLOY / "kubernetes" / "overlays" / overlay
    out = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)], check=True, capture_output=True, timeout=60
    )
    return tuple(document for document in yaml.safe_load_all(out.stdout) if document)


@lru_cache
def compose() -> Manifest:
    """Return deploy/compose.yaml as Docker's own client understands it."""
    out = subprocess.run(
        [tool("docker-compose"), "-f", DEPLOY / "compose.yaml", "config", "--format", "json"],
        env={**os.environ, "GRAFANA_PASSWORD": "chosen"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    found: Manifest = json.loads(out.stdout)
    return found


def settings_of(command: str, environment: Mapping[str, str]) -> Settings:
    """Return what a role makes of its environment; a variable that it does not know fails."""
    known = {variable(entry.name) for entry in fields_of(command)}
    ours = {name for name in environment if name.startswith(config.PREFIX)}
    assert ours <= known, f"{command} does not know {ours - known}"
    return load(command, {}, environment)


def descriptors_needed(settings: Settings) -> int:
    """Return how many descriptors an edge needs for the connections that it may have."""
    assert settings.connections is not None
    return settings.connections + descriptors._OWN + 3 * settings.upstream_connections


def memory_needed(command: str, settings: Settings) -> int:
    """Return the bytes that a role may need in all, the kernel's for its sockets included."""
    bodies = max(web._BODIES_BYTES_MAX, settings.body_bytes_max)
    if command == config.ORIGIN:
        sqlite, sockets = 64 * MIB, 2000 * SOCKET_BYTES
        streams = settings.hot_streams * STREAM_BYTES
        return CODE_BYTES + streams + bodies + sum(OF_ORIGINS) + sqlite + sockets
    assert settings.connections is not None
    readers = settings.connections * (SOCKET_BYTES + READER_BYTES)
    return CODE_BYTES + settings.chunk_cache_bytes + bodies + sum(OF_EDGES) + readers


def quantity(text: str) -> int:
    """Return bytes of a Kubernetes quantity."""
    units = {"Ki": 1024, "Mi": MIB, "Gi": 1024 * MIB}
    return int(text[:-2]) * units[text[-2:]]
