"""Imports point one way: rules below seams, seams below services, deploy above all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("shared", "origin", "edge", "deploy", "loadtests", "tests")
# What each may import of ours.
ALLOWED = {
    "shared.protocol": {"shared.protocol"},
    "shared": {"shared"},
    "origin": {"origin", "shared"},
    "edge": {"edge", "shared"},
    "deploy": {"deploy", "origin", "edge", "shared", "loadtests"},
    "loadtests": {"loadtests", "deploy", "origin", "edge", "shared"},
    "tests": set(PACKAGES),
}
# Rules take time, chance and bytes as arguments.
IMPURE = {
    "asyncio",
    "concurrent",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
CLOCKS = {"now", "utcnow", "today"}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of ours, by name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "node_modules" not in parts:
                yield ".".join(parts), path


def imports(name: str, source: str) -> Iterator[str]:
    """Yield what a module imports, at any depth, by absolute name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                base = ".".join(name.split(".")[:-level]) if level else ""
                target = ".".join(part for part in (base, module) if part)
                # `from shared import protocol` imports a module as well.
                yield from (f"{target}.{alias.name}" for alias in aliases)
            case (
                ast.Call(func=ast.Name(id="__import__" | "import_module"))
                | ast.Call(func=ast.Attribute(attr="import_module"))
            ):
                argument = node.args[0] if node.args else None
                assert isinstance(argument, ast.Constant), f"{name}: import of a computed name"
                yield str(argument.value)


def layer(name: str) -> str:
    """Return whose rules hold for a module."""
    if name == "shared.protocol" or name.startswith("shared.protocol."):
        return "shared.protocol"
    return name.split(".")[0]


def faults(name: str, source: str) -> list[str]:
    """Return the imports of a module that point the wrong way."""
    own = layer(name)
    found = []
    for target in imports(name, source):
        top = target.split(".")[0]
        if top in PACKAGES:
            if not {layer(target), top} & ALLOWED[own]:
                found.append(target)
        elif own == "shared.protocol":
            allowed = top == "orjson" or top in sys.stdlib_module_names
            if not allowed or top in IMPURE:
                found.append(target)
    return found


ALL = dict(modules())


@pytest.mark.parametrize("name", ALL)
def test_imports_point_one_way(name: str) -> None:
    assert faults(name, ALL[name].read_text()) == []


@pytest.mark.parametrize("name", [name for name in ALL if layer(name) == "shared.protocol"])
def test_rules_read_no_clock_and_await_nothing(name: str) -> None:
    for node in ast.walk(ast.parse(ALL[name].read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await)
        if isinstance(node, ast.Call):
            called = node.func
            assert not (isinstance(called, ast.Attribute) and called.attr in CLOCKS)
            assert not (isinstance(called, ast.Name) and called.id in ("open", "input", "print"))


def test_service_without_redis_does_not_load_its_client() -> None:
    """It is a quarter of a start, and 10 MB of each process."""
    code = "import sys, deploy.cli, deploy.standalone; print('redis' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"


def test_every_package_is_looked_at() -> None:
    assert {layer(name) for name in ALL} == set(ALLOWED)
    assert len(ALL) > 50


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("edge.app", "import origin"),
        ("edge.app", "import origin.frame as shared"),
        ("edge.app", "from origin.frame import decode_frame"),
        ("edge.app", "def f():\n    from origin import frame"),
        ("edge.app", "if TYPE_CHECKING:\n    import origin.frame"),
        ("edge.app", "from importlib import import_module\nimport_module('origin.frame')"),
        ("edge.app", "__import__('origin')"),
        ("edge.app", "from ..origin import frame"),
        ("origin.app", "from edge import tails"),
        ("shared.web", "import origin.stream"),
        ("shared.web", "from edge.chunks import Chunks"),
        ("origin.app", "from deploy.cli import main"),
        ("shared.web", "import loadtests"),
        ("edge.app", "import tests.service"),
        ("deploy.cli", "from tests import service"),
        ("loadtests.client", "import tests"),
        ("shared.protocol.sse", "from shared.config import Settings"),
        ("shared.protocol.sse", "from shared import config"),
        ("shared.protocol.sse", "from ..config import Settings"),
        ("shared.protocol.sse", "import aiohttp"),
        ("shared.protocol.sse", "import time"),
        ("shared.protocol.sse", "from random import random"),
        ("shared.protocol.sse", "import asyncio.subprocess"),
        ("shared.protocol", "import origin"),
    ],
)
def test_import_that_points_the_wrong_way_is_found(name: str, source: str) -> None:
    assert faults(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("edge.app", "from shared.protocol import names\nimport aiohttp\nfrom edge import tails"),
        ("origin.app", "from . import frame"),
        ("shared.web", "from shared.protocol.reply import Reply"),
        ("shared.protocol.sse", "import orjson\nfrom shared.protocol import media\nimport re"),
        ("shared.protocol.sse", "from . import media\nfrom .names import JSON"),
        ("deploy.cli", "from edge import app\nfrom origin import app as origin"),
        ("loadtests.servers", "import deploy.client\nimport origin"),
        ("tests.service", "import deploy\nimport loadtests.client"),
    ],
)
def test_import_that_points_the_right_way_is_fine(name: str, source: str) -> None:
    assert faults(name, source) == []
