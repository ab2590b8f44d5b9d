"""Settings: environment and flags in, frozen values out; a bad one stops the process before it
listens."""

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

PREFIX: Final = "HEADWATER_"

UP, ORIGIN, EDGE = "up", "origin", "edge"
ALL: Final = (UP, ORIGIN, EDGE)


class BadSetting(Exception):
    """A setting has a value that it cannot have; the message names both."""


def _setting(
    default: Any,
    text: str,
    commands: Sequence[str] = ALL,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    metadata = {
        "help": text,
        "commands": tuple(commands),
        "least": least,
        "most": most,
        "choices": choices,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of every role; units end a name."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(4437, "port of the protocol; 0 picks a free one", least=0, most=65535)
    admin_host: str = _setting("127.0.0.1", "address of /healthz, /readyz and /metrics")
    admin_port: int = _setting(4438, "port of those; 0 picks a free one", least=0, most=65535)
    data_dir: Path = _setting(Path("data"), "folder of the journal", (UP, ORIGIN))
    edges: int = _setting(1, "edge processes, which share the port", (UP,), least=1, most=256)
    shield: str = _setting(
        "auto",
        "one more edge, through which the others read; auto: where there are several",
        (UP,),
        choices=("auto", "on", "off"),
    )
    upstream: str = _setting(
        "http://127.0.0.1:4437", "server that an edge reads from and relays to", (EDGE,)
    )
    redis: str | None = _setting(
        None, "Redis or Valkey that carries wakes, redis://host:port/db; none: embedded, or polling"
    )
    stream_prefix: str = _setting("/v1/stream/", "URL path below which streams live")
    public_url: str | None = _setting(
        None, "what Location begins with; none: the Host that the client used", (UP, ORIGIN)
    )
    registry: bool = _setting(
        True, "list streams at __registry__, a JSON stream of inserts and deletes", (UP, ORIGIN)
    )
    long_poll_timeout_s: float = _setting(
        20.0, "how long a long-poll waits; below what proxies allow", least=0.05, most=300
    )
    sse_timeout_s: float = _setting(
        60.0, "how long an event stream lasts before its client reconnects", least=0.05, most=3600
    )
    sse_heartbeat_s: float = _setting(
        15.0, "silence after which an event stream sends a comment", least=0.05, most=300
    )
    drain_s: float = _setting(
        5.0, "how long SIGTERM lets live replies leave, spread out", least=0, most=600
    )
    body_bytes_max: int = _setting(
        10 * 1024 * 1024, "largest body of one append or create", least=1, most=256 * 1024 * 1024
    )
    chunk_bytes: int = _setting(
        1024 * 1024,
        "multiple of stream positions at which reads are cut",
        (UP, ORIGIN),
        least=1024,
        most=64 * 1024 * 1024,
    )
    hot_streams: int = _setting(
        50_000,
        "streams to keep in memory beside those in use, 2 KB each; the rest costs disk only",
        (UP, ORIGIN),
        least=1,
    )
    retention_age_s: int | None = _setting(
        None,
        "how long data is kept in streams that ask for no retention; none: for ever",
        (UP, ORIGIN),
        least=1,
    )
    retention_bytes: int | None = _setting(
        None,
        "how much is kept of streams that ask for no retention; none: everything",
        (UP, ORIGIN),
        least=1,
    )
    json_offsets: bool = _setting(
        False, "put headers.offset into State protocol messages on reads", (UP, ORIGIN)
    )
    chunk_cache_bytes: int = _setting(
        24 * 1024 * 1024, "memory for full chunks in one edge process", (UP, EDGE), least=0
    )
    upstream_timeout_s: float = _setting(
        10.0, "how long an edge waits for its upstream to answer", (UP, EDGE), least=0.05, most=300
    )
    upstream_connections: int = _setting(
        256, "connections from one edge process to its upstream", (UP, EDGE), least=1, most=10_000
    )
    connections: int | None = _setting(
        None,
        "connections of clients to one edge process; none: what its descriptors allow",
        (UP, EDGE),
        least=1,
    )
    header_timeout_s: float = _setting(
        10.0, "how long a request may take to arrive", least=0.05, most=300
    )
    keepalive_timeout_s: float = _setting(
        75.0,
        "how long an idle connection is kept; longer than proxies keep theirs",
        least=0.05,
        most=3600,
    )
    cache_tail: str = _setting(
        "public, max-age=1",
        "Cache-Control of reads that reach the tail, or name the beginning",
        (UP, ORIGIN, EDGE),
    )
    cache_live_empty: str = _setting(
        "public, max-age=1",
        "Cache-Control of a long-poll's 204; no-store makes caches serve waiters one by one",
    )
    surrogate_keys: bool = _setting(
        True, "name the stream of a read in Surrogate-Key and Cache-Tag, for CDNs to forget it by"
    )
    purge_url: str | None = _setting(
        None,
        "URL by which a CDN is asked to forget a stream that is gone; {key} is its surrogate key",
        (UP, ORIGIN),
    )
    purge_method: str = _setting("POST", "method of that request", (UP, ORIGIN))
    purge_body: str | None = _setting(
        None, "body of that request, where it needs one; {key} as above", (UP, ORIGIN)
    )
    purge_headers_file: Path | None = _setting(
        None, "file of `Name: value` lines that go with it, such as a secret", (UP, ORIGIN)
    )
    log_level: str = _setting(
        "info", "least level that is logged", choices=("debug", "info", "warning", "error")
    )
    traces: str | None = _setting(
        None, "OpenTelemetry collector that takes traces by OTLP over HTTP, http://host:4318"
    )
    # How the processes of `headwater up` find each other; of no use to people.
    socket: Path | None = _setting(
        None, "Unix socket to listen on instead of a port", (ORIGIN, EDGE)
    )
    upstream_socket: Path | None = _setting(None, "Unix socket of the upstream", (EDGE,))
    relay_socket: Path | None = _setting(
        None, "Unix socket that writes go to instead of the upstream", (EDGE,)
    )
    bus_socket: Path | None = _setting(None, "Unix socket that carries wakes", (ORIGIN, EDGE))
    admin_socket: Path | None = _setting(
        None, "Unix socket for the admin endpoints instead of a port", (ORIGIN, EDGE)
    )
    reuse_port: bool = _setting(False, "share the port with other processes", (EDGE,))
    supervised: bool = _setting(
        False, "stop when standard input ends; leave Ctrl-C to the parent", (ORIGIN, EDGE)
    )
    role: str = _setting("", "name of this process in logs and metrics", (ORIGIN, EDGE))


def fields_of(command: str) -> list[dataclasses.Field[Any]]:
    """Return the settings that a command takes."""
    return [f for f in dataclasses.fields(Settings) if command in f.metadata["commands"]]


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """Give a parser the flags of a command; they win over the environment."""
    for entry in fields_of(command):
        shown = "" if entry.default in (None, "") else f" (default {entry.default})"
        parser.add_argument(
            _flag(entry.name),
            dest=entry.name,
            default=None,
            metavar=_type_of(entry).__name__.upper(),
            help=f"{entry.metadata['help']}{shown}".replace("%", "%%"),
        )


def load(
    command: str, given: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings of a command.

    Args:
        given: flags by setting name; None counts as not given.

    Raises:
        BadSetting: a value does not parse, or is out of range.
    """
    values = {}
    for entry in fields_of(command):
        text, source = given.get(entry.name), _flag(entry.name)
        if text is None:
            text, source = environment.get(variable(entry.name)), variable(entry.name)
        if text is None:
            continue
        values[entry.name] = _parse(entry, text, source)
    return Settings(**values)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _type_of(entry: dataclasses.Field[Any]) -> type:
    kinds = [kind for kind in get_args(entry.type) or (entry.type,) if kind is not type(None)]
    kind: type = kinds[0]
    return kind


def _parse(entry: dataclasses.Field[Any], text: str, source: str) -> Any:
    kind = _type_of(entry)
    value: Any
    try:
        value = _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise BadSetting(f"{source}: {text!r} is no {kind.__name__}") from None
    least, most, choices = (entry.metadata[key] for key in ("least", "most", "choices"))
    if (least is not None and not value >= least) or (most is not None and not value <= most):
        raise BadSetting(f"{source}: {text} is not between {least} and {most}")
    if choices is not None and value not in choices:
        raise BadSetting(f"{source}: {text!r} is none of {', '.join(choices)}")
    pattern, meaning = _PATTERNS.get(entry.name, (r"(?s:.+)", "a value"))
    if re.fullmatch(pattern, text) is None:
        raise BadSetting(f"{source}: {text!r} is not {meaning}")
    return value


_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "on": True} | {
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


_PATTERNS: Final = {
    "host": (r"[!-~]+", "an address"),
    "admin_host": (r"[!-~]+", "an address"),
    "stream_prefix": (r"/([!-~]*/)?", "a path that begins and ends with /"),
    "upstream": (r"https?://[!-.0-~]+/?", "http://host:port"),
    "public_url": (r"https?://[!-~]+", "an http URL"),
    "traces": (r"https?://[!-~]+", "an http URL"),
    "purge_url": (r"https?://[!-~]+", "an http URL"),
    "purge_method": (r"[A-Z]+", "a method such as POST or PURGE"),
    "redis": (r"(rediss?|unix)://[!-~]+", "redis://host:port/db"),
    "cache_tail": (r"[ -~]+", "a Cache-Control value"),
    "cache_live_empty": (r"[ -~]+", "a Cache-Control value"),
}
