"""The image and compose.yaml, without an engine: the same commands, and every name in them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from shared.config import ALL, EDGE, ORIGIN, UP
from tests.deploy.manifests import (
    DEPLOY,
    LEFTOVER_S,
    Manifest,
    compose,
    descriptors_needed,
    memory_needed,
    settings_of,
    tool,
)
from tests.service import ROOT, Service, _free_port

DOCKERFILE = DEPLOY / "Dockerfile"
# What pip says where no registry can be reached.
OFFLINE = ("NewConnectionError", "Temporary failure in name resolution", "NameResolutionError")


# --- the Dockerfile -----------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, joined over their lines."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)
    ]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def only(stage: list[tuple[str, str]], word: str) -> str:
    (rest,) = (rest for one, rest in stage if one == word)
    return rest


def environment() -> dict[str, str]:
    """Return what the image sets."""
    return dict(pair.split("=", 1) for pair in shlex.split(only(stages()[-1], "ENV")))


def copied() -> list[str]:
    """Return the sources that the build stage takes out of the tree."""
    return [source for word, rest in stages()[0] if word == "COPY" for source in rest.split()[:-1]]


def test_linter_has_nothing_to_say() -> None:
    done = subprocess.run(
        [tool("hadolint"), "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_both_stages_have_the_same_pinned_base() -> None:
    bases = {only(stage, "FROM").split()[0] for stage in stages()}
    assert len(stages()) == 2
    (base,) = bases
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)


def test_every_variable_is_one_that_each_role_knows_or_ignores() -> None:
    ours = {k: v for k, v in environment().items() if k.startswith("HEADWATER_")}
    # `up` and the origin have all of them; an edge keeps no data.
    for command in ALL:
        given = {k: v for k, v in ours.items() if (command, k) != (EDGE, "HEADWATER_DATA_DIR")}
        settings = settings_of(command, given)
        ports = {str(settings.port), str(settings.admin_port)}
        assert ports == set(only(stages()[-1], "EXPOSE").split())
    assert ours["HEADWATER_DATA_DIR"] == only(stages()[-1], "VOLUME")


def test_image_runs_as_nobody_in_particular() -> None:
    user = only(stages()[-1], "USER")
    assert user == "65532:65532"
    assert [word for word, _ in stages()[-1]].index("USER") < len(stages()[-1]) - 4
    assert json.loads(only(stages()[-1], "ENTRYPOINT")) == ["headwater"]
    assert json.loads(only(stages()[-1], "CMD")) == [UP]


def test_builder_gets_what_is_copied_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {p.rstrip("*") for p in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(copied())
    assert all((ROOT / source).exists() for source in copied())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())


def test_everything_that_is_installed_has_a_hash() -> None:
    installs = [
        command
        for word, rest in stages()[0]
        if word == "RUN"
        for command in rest.split("&&")
        if " install " in command
    ]
    assert len(installs) == 3
    assert all("--require-hashes" in i or "--no-deps --no-index" in i for i in installs)
    assert "dev.lock" not in DOCKERFILE.read_text()
    assert only(stages()[0], "ARG") == "LOCK=runtime.lock"


def test_image_with_traces_has_the_same_and_more() -> None:
    def pinned(name: str) -> set[str]:
        return set(re.findall(r"^[\w-]+==\S+", (ROOT / "requirements" / name).read_text(), re.M))

    more = pinned("otel.lock") - pinned("runtime.lock")
    assert pinned("runtime.lock") < pinned("otel.lock") <= pinned("dev.lock")
    assert any(name.startswith("opentelemetry-sdk==") for name in more)


# --- the same commands --------------------------------------------------------------------------


class Built:
    """What the build stage makes, below a folder instead of /."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def here(self, text: str) -> str:
        """Return a command of the image as one for this folder."""
        return re.sub(r"(?<![\w.])/(?=(?:build|opt|wheels|src)\b)", f"{self.root}/", text)

    def build(self) -> None:
        source = self.root / "src"
        for name in copied():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.egg-info")
                shutil.copytree(ROOT / name, target, ignore=ignored)
            else:
                shutil.copy(ROOT / name, target)
        for word, rest in stages()[0]:
            if word == "RUN":
                self.run(rest, source)

    def run(self, command: str, folder: Path) -> None:
        done = subprocess.run(
            ["bash", "-euc", self.here(command)],
            cwd=folder,
            # This Python stands for the base image's; pip may use what it has downloaded before.
            env={
                **{
                    k: v
                    for k, v in os.environ.items()
                    if not k.startswith(("HEADWATER_", "PYTHON"))
                },
                **dict([only(stages()[0], "ARG").split("=")]),
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            },
            capture_output=True,
            text=True,
            timeout=110,
        )
        said = done.stdout + done.stderr
        if done.returncode and any(sign in said for sign in OFFLINE):
            pytest.skip("no package registry: the image's commands were not run")
        assert done.returncode == 0, said

    @property
    def bin(self) -> Path:
        return self.root / "opt" / "headwater" / "bin"

    def environment(self, **more: str) -> dict[str, str]:
        """Return what a container would start with, on ports that are free here."""
        own = {**environment(), **more}
        own["PATH"] = self.here(own["PATH"].replace("$PATH", "/usr/bin:/bin"))
        own["HEADWATER_HOST"] = own["HEADWATER_ADMIN_HOST"] = "127.0.0.1"
        own["HEADWATER_PORT"], own["HEADWATER_ADMIN_PORT"] = "0", str(_free_port())
        return own

    def start(self, command: str, env: Mapping[str, str]) -> Service:
        """Run a role as a container would: in an empty folder, and nothing of ours on any path."""
        clean = ["env", "-i", *(f"{name}={value}" for name, value in env.items())]
        empty = self.root / "empty"
        empty.mkdir(exist_ok=True)
        return Service.start(
            [command], command=[*clean, "sh", "-c", f'cd {empty} && exec headwater "$@"', "sh"]
        )

    def is_healthy(self, env: Mapping[str, str]) -> bool:
        """Run the image's health check."""
        _, _, check = only(stages()[-1], "HEALTHCHECK").partition("CMD ")
        words = json.loads(check)
        return not subprocess.run(words, env=env, capture_output=True, timeout=20).returncode


# One test of all that is built: each worker would build its own.
def test_commands_of_the_image_make_one_whose_roles_start_are_healthy_and_stop(
    tmp_path: Path,
) -> None:
    built = Built(tmp_path)
    built.build()
    assert_wheel_holds_every_module(built)
    assert_image_has_what_runs_and_no_more(built)
    assert_every_role_starts_is_healthy_and_stops(built)
    shutil.rmtree(tmp_path)


def assert_wheel_holds_every_module(built: Built) -> None:
    (wheel,) = (built.root / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.endswith(".py")}
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    expected = {name for name in listed if not name.startswith("tests/")}
    assert expected <= held
    assert not any(name.startswith("tests/") for name in held)


def assert_image_has_what_runs_and_no_more(built: Built) -> None:
    done = subprocess.run(
        [built.bin / "headwater", "--version"], capture_output=True, text=True, timeout=30
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout.split() == ["headwater", project["version"]]
    site = next((built.root / "opt" / "headwater" / "lib").glob("python3*")) / "site-packages"
    there = {path.name.lower() for path in site.iterdir()}
    assert {"shared", "origin", "edge", "deploy", "aiohttp", "apsw"} <= there
    assert not there & {"pip", "setuptools", "pytest", "tests", "mypy", "hypothesis"}


def assert_every_role_starts_is_healthy_and_stops(built: Built) -> None:
    data = {"HEADWATER_DATA_DIR": str(built.root / "one"), "HEADWATER_DRAIN_S": "0.2"}
    of_origin = built.environment(**data)
    assert not built.is_healthy(of_origin)  # nobody is there yet
    with built.start(ORIGIN, of_origin) as origin:
        of_edge = built.environment(HEADWATER_UPSTREAM=origin.url, HEADWATER_DRAIN_S="0.2")
        with built.start(EDGE, of_edge) as edge:
            assert built.is_healthy(of_origin)
            assert built.is_healthy(of_edge)
            url = f"{edge.url}/v1/stream/image"
            headers = {"Content-Type": "text/plain"}
            create = urllib.request.Request(url, b"from an image", headers, method="PUT")
            urllib.request.urlopen(create, timeout=10).close()
            with urllib.request.urlopen(f"{url}?offset=-1", timeout=10) as answer:
                assert answer.read() == b"from an image"
    # Leaving has sent SIGTERM to each, and has seen them end with 0.
    of_up = built.environment(**data | {"HEADWATER_DATA_DIR": str(built.root / "two")})
    with built.start(UP, of_up):
        assert built.is_healthy(of_up)
    assert not built.is_healthy(of_up)


# --- compose ------------------------------------------------------------------------------------


def ours() -> dict[str, Manifest]:
    services = compose()["services"]
    return {k: one for k, one in services.items() if one["image"].startswith("headwater:")}


def test_compose_has_all_parts_and_pins_them() -> None:
    services = compose()["services"]
    expected = {"origin", "edge-1", "edge-2", "redis", "varnish", "prometheus", "grafana"}
    assert services.keys() == expected
    for service in services.values():
        assert re.fullmatch(r"[\w/.-]+:v?\d+\.\d+\.\d+[\w.-]*", service["image"])
        assert "mem_limit" in service
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"


def test_roles_of_compose_take_their_settings() -> None:
    for name, service in ours().items():
        (command,) = service["command"]
        given = {k: v for k, v in environment().items() if k.startswith("HEADWATER_")}
        if command == EDGE:
            del given["HEADWATER_DATA_DIR"]
        settings = settings_of(command, {**given, **service["environment"]})
        assert settings.redis == "redis://redis:6379/0"
        assert int(service["stop_grace_period"].rstrip("s")) >= settings.drain_s + LEFTOVER_S + 5
        assert int(service["mem_limit"]) >= memory_needed(command, settings)
        assert service["read_only"] is True
        if command == EDGE:
            assert settings.upstream == f"http://origin:{settings.port}"
            assert service["ulimits"]["nofile"]["hard"] >= descriptors_needed(settings)
        else:
            assert name == "origin"
            assert service["volumes"][0]["target"] == str(settings.data_dir)
        build = service["build"]
        assert Path(build["context"]) / build["dockerfile"] == DOCKERFILE


def test_files_that_compose_mounts_are_there() -> None:
    mounts = {
        Path(volume["source"])
        for service in compose()["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    }
    assert len(mounts) == 6
    assert {path for path in mounts if not path.is_file()} == set()


def test_cache_of_compose_asks_the_edges() -> None:
    text = (DEPLOY / "cdn" / "varnish" / "default.vcl").read_text()
    hosts = re.findall(r'\.host = "([^"]+)";\s*\.port = "(\d+)"', text)
    port = environment()["HEADWATER_PORT"]
    edges = {(name, port) for name, one in ours().items() if one["command"] == [EDGE]}
    assert set(hosts) == edges
    assert f"{DEPLOY}/cdn/varnish/default.vcl" in str(compose()["services"]["varnish"]["volumes"])


def test_prometheus_of_compose_asks_each_process() -> None:
    given = yaml.safe_load((DEPLOY / "observe" / "prometheus.yaml").read_text())
    (job,) = given["scrape_configs"]
    port = environment()["HEADWATER_ADMIN_PORT"]
    asked = {
        target: group["labels"]["component"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    assert asked == {f"{name}:{port}": one["command"][0] for name, one in ours().items()}
