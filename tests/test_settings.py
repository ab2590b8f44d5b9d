"""Every setting is documented, and a bad one is refused with its name and value."""

import argparse
import dataclasses
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import config
from shared.config import ALL, EDGE, ORIGIN, UP, BadSetting, Settings, add_flags, fields_of, load

PAGE = Path(__file__).parent.parent / "deploy" / "README.md"
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
# How the processes of `headwater up` find each other; no page names them.
INTERNAL = {
    "socket",
    "upstream_socket",
    "relay_socket",
    "bus_socket",
    "admin_socket",
    "reuse_port",
    "supervised",
    "role",
}
PUBLIC = sorted(FIELDS.keys() - INTERNAL)
# Of the client commands, which read no settings of a server.
CLIENT = {"HEADWATER_URL", "HEADWATER_TOKEN"}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def command_of(name: str) -> str:
    """Return a command that takes a setting."""
    commands: tuple[str, ...] = FIELDS[name].metadata["commands"]
    return commands[0]


def parse(command: str, arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, command)
    return vars(parser.parse_args(arguments))


# --- the page -----------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    """Return the cells of every row of the page that begins with a flag."""
    found = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `--"):
            found.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_setting_stands_on_the_page_with_its_variable_and_default(name: str) -> None:
    row = [cells for cells in rows() if cells[0] == f"`{flag(name)}`"]
    assert len(row) == 1
    _, variable, default, meaning, *of = row[0]
    assert variable == f"`{config.variable(name)}`"
    assert len(meaning) > 10
    if FIELDS[name].default is None:
        assert default == "none"
    else:
        told = load(command_of(name), {name: default.strip("`")}, {})
        assert getattr(told, name) == FIELDS[name].default
    if of:
        assert tuple(of[0].split(", ")) == FIELDS[name].metadata["commands"]


def test_page_names_no_setting_that_is_not_there() -> None:
    assert {cells[0] for cells in rows()} == {f"`{flag(name)}`" for name in PUBLIC}


def test_page_names_no_variable_that_is_not_there() -> None:
    named = set(re.findall(r"HEADWATER_[A-Z_]+", PAGE.read_text()))
    assert named <= {config.variable(name) for name in PUBLIC} | CLIENT


# --- where values come from ---------------------------------------------------------------------


def test_defaults_stand_where_nothing_is_given() -> None:
    for command in ALL:
        assert load(command, {}, {}) == Settings()


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "role"])
def test_variable_is_the_flag_in_upper_case(name: str) -> None:
    assert config.variable(name) == "HEADWATER_" + flag(name)[2:].replace("-", "_").upper()


def test_environment_is_read() -> None:
    environment = {"HEADWATER_PORT": "5000", "HEADWATER_EDGES": "4", "HEADWATER_REGISTRY": "no"}
    found = load(UP, {}, environment)
    assert (found.port, found.edges, found.registry) == (5000, 4, False)


def test_flag_wins_over_the_environment() -> None:
    assert load(UP, {"port": "5001"}, {"HEADWATER_PORT": "5000"}).port == 5001
    assert load(UP, {"port": None}, {"HEADWATER_PORT": "5000"}).port == 5000


def test_flag_wins_even_over_a_bad_environment() -> None:
    assert load(UP, {"port": "5001"}, {"HEADWATER_PORT": "x"}).port == 5001


def test_setting_of_another_command_is_not_read() -> None:
    assert load(ORIGIN, {}, {"HEADWATER_UPSTREAM": "nonsense"}) == Settings()
    assert load(EDGE, {}, {"HEADWATER_DATA_DIR": "/x", "HEADWATER_EDGES": "0"}) == Settings()


def test_foreign_variables_are_none_of_ours() -> None:
    assert load(UP, {}, {"PORT": "1", "headwater_port": "1", "HEADWATER_X": "1"}) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "TRUE", "1", "yes", "on")),
        *((text, False) for text in ("false", "False", "0", "no", "OFF")),
    ],
)
def test_truth_has_many_names(text: str, value: bool) -> None:
    assert load(UP, {"registry": text}, {}).registry is value


# --- bad values ---------------------------------------------------------------------------------

BAD = [
    ("port", "abc"),
    ("port", ""),
    ("port", "-1"),
    ("port", "65536"),
    ("port", "80.0"),
    ("admin_port", "70000"),
    ("edges", "0"),
    ("edges", "257"),
    ("shield", "maybe"),
    ("shield", ""),
    ("registry", "maybe"),
    ("registry", ""),
    ("long_poll_timeout_s", "0"),
    ("long_poll_timeout_s", "301"),
    ("long_poll_timeout_s", "nan"),
    ("long_poll_timeout_s", "inf"),
    ("long_poll_timeout_s", "20s"),
    ("sse_timeout_s", "-5"),
    ("sse_heartbeat_s", "0.01"),
    ("drain_s", "-0.1"),
    ("body_bytes_max", "0"),
    ("body_bytes_max", "10MiB"),
    ("chunk_bytes", "1023"),
    ("chunk_bytes", "99999999999"),
    ("chunk_cache_bytes", "-1"),
    ("upstream_timeout_s", "0"),
    ("upstream_connections", "0"),
    ("log_level", "loud"),
    ("log_level", ""),
    ("upstream", "localhost:4437"),
    ("upstream", "http://host/path"),
    ("upstream", "ftp://host"),
    ("upstream", ""),
    ("stream_prefix", "v1/stream/"),
    ("stream_prefix", "/v1/stream"),
    ("stream_prefix", "/a b/"),
    ("stream_prefix", "/é/"),
    ("stream_prefix", ""),
    ("cache_tail", ""),
    ("cache_tail", "public\r\nX: y"),
    ("cache_live_empty", "é"),
    ("redis", "localhost:6379"),
    ("redis", ""),
    ("redis", "http://localhost"),
    ("public_url", "streams.example.com"),
    ("public_url", ""),
    ("purge_url", "cdn.example.com"),
    ("purge_method", "Post it"),
    ("public_url", "https://streams.example.com\r\nX: y"),
    ("host", ""),
    ("data_dir", ""),
]


@pytest.mark.parametrize(("name", "text"), BAD, ids=[f"{n}={t[:20]!a}" for n, t in BAD])
@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "environment"])
def test_bad_value_is_refused_with_its_name_and_itself(name: str, text: str, by_flag: bool) -> None:
    given_flags = {name: text} if by_flag else {}
    environment = {} if by_flag else {config.variable(name): text}
    with pytest.raises(BadSetting) as refused:
        load(command_of(name), given_flags, environment)
    message = str(refused.value)
    assert flag(name) in message or config.variable(name) in message
    assert repr(text) in message or (text and text in message)


def test_bad_value_of_a_flag_is_named_by_the_flag() -> None:
    with pytest.raises(BadSetting, match="--port"):
        load(UP, {"port": "x"}, {})
    with pytest.raises(BadSetting, match="--stream-prefix"):
        load(UP, {"stream_prefix": "x"}, {})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "0", 0),
        ("port", "65535", 65535),
        ("edges", "256", 256),
        ("shield", "off", "off"),
        ("drain_s", "0", 0.0),
        ("long_poll_timeout_s", "0.05", 0.05),
        ("chunk_cache_bytes", "0", 0),
        ("redis", "redis://h:6379/0", "redis://h:6379/0"),
        ("redis", "rediss://user:secret@h:6379/0", "rediss://user:secret@h:6379/0"),
        ("public_url", "https://streams.example.com", "https://streams.example.com"),
        ("stream_prefix", "/", "/"),
        ("stream_prefix", "/v2/x/", "/v2/x/"),
        ("upstream", "https://h:1/", "https://h:1/"),
        ("cache_tail", "private, no-store", "private, no-store"),
        ("log_level", "debug", "debug"),
        ("data_dir", "/x y", Path("/x y")),
    ],
)
def test_good_value_is_taken(name: str, text: str, value: object) -> None:
    assert getattr(load(command_of(name), {name: text}, {}), name) == value


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=12))
def test_any_text_is_taken_or_refused(name: str, text: str) -> None:
    with suppress(BadSetting):
        load(command_of(name), {name: text}, {})


# --- every setting ------------------------------------------------------------------------------

OTHER = Settings(
    host="::1",
    port=1,
    admin_host="0.0.0.0",
    admin_port=2,
    data_dir=Path("/data dir"),
    edges=3,
    shield="on",
    upstream="http://h:1",
    redis="redis://h:6379/1",
    stream_prefix="/x/",
    public_url="https://h",
    registry=False,
    long_poll_timeout_s=0.1 + 0.2,
    sse_timeout_s=1.5,
    sse_heartbeat_s=2,
    drain_s=0,
    body_bytes_max=7,
    chunk_bytes=2048,
    hot_streams=7,
    retention_age_s=8,
    retention_bytes=9,
    json_offsets=True,
    chunk_cache_bytes=0,
    upstream_timeout_s=1e-1,
    upstream_connections=8,
    connections=77,
    header_timeout_s=1.25,
    keepalive_timeout_s=2.5,
    cache_tail="private, max-age=0",
    cache_live_empty="no-store",
    surrogate_keys=False,
    purge_url="https://cdn/{key}",
    purge_method="PURGE",
    purge_body='{"tags":["{key}"]}',
    purge_headers_file=Path("/secret"),
    log_level="error",
    traces="http://h:4318",
    socket=Path("/s"),
    upstream_socket=Path("/u"),
    relay_socket=Path("/r"),
    bus_socket=Path("/b"),
    admin_socket=Path("/a"),
    reuse_port=True,
    supervised=True,
    role="edge 2",
)


def test_every_setting_differs_from_its_default_in_the_example() -> None:
    assert [name for name in FIELDS if getattr(OTHER, name) == FIELDS[name].default] == []


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "environment"])
def test_every_value_is_read_from_its_text(command: str, by_flag: bool) -> None:
    names = [field.name for field in fields_of(command)]
    texts = {name: str(getattr(OTHER, name)) for name in names}
    arguments = [f"{flag(name)}={text}" for name, text in texts.items()] if by_flag else []
    environment = {config.variable(name): text for name, text in texts.items()}
    found = load(command, parse(command, arguments), {} if by_flag else environment)
    assert {name: getattr(found, name) for name in names} == {
        name: getattr(OTHER, name) for name in names
    }


@pytest.mark.parametrize("command", ALL)
def test_help_tells_every_flag_and_default(command: str) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, command)
    text = parser.format_help()
    for field in fields_of(command):
        assert flag(field.name) in text


def test_unknown_command_takes_no_settings() -> None:
    assert fields_of("nonsense") == []


def test_edge_has_no_data_and_origin_no_upstream() -> None:
    assert "data_dir" not in {field.name for field in fields_of(EDGE)}
    assert "upstream" not in {field.name for field in fields_of(ORIGIN)}
    assert "edges" not in {field.name for field in fields_of(EDGE)}
