"""Runs the published conformance suite, in Node, against a server that is already up."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from tests.node import find_node, install

FOLDER = Path(__file__).parent
TEST_TIMEOUT_MS = 30_000  # of one test in the suite
RUN_TIMEOUT_S = 240.0  # a good server needs 22 s, most of it in the suite's own pauses


class SuiteBroken(Exception):
    """The suite did not run to its end, which says nothing about the server."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed test of the suite."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}\n    {self.message}"


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What the suite found: how many tests passed, which failed, and which did not run."""

    passed: int
    failed: tuple[Failure, ...]
    skipped: tuple[str, ...]


def run_suite(base_url: str, *, subscriptions: bool = False) -> SuiteResult:
    """Run the whole suite against base_url; the server should be fresh.

    Args:
        base_url: without a path; the suite writes below /v1/stream.
        subscriptions: include the tests of PROTOCOL §6-7.

    Raises:
        SuiteBroken: there is no complete report.
    """
    install(FOLDER)
    environment = {
        **os.environ,
        "CONFORMANCE_BASE_URL": base_url,
        "CONFORMANCE_SUBSCRIPTIONS": "1" if subscriptions else "0",
        "NO_COLOR": "1",
    }
    with TemporaryDirectory(prefix="headwater-suite-") as folder:
        report = Path(folder, "report.json")
        command = [find_node().node, "node_modules/vitest/vitest.mjs", "run", "suite.spec.js"]
        # No cache: runs at the same time would write into one.
        options = ["--root", ".", "--cache=false", f"--testTimeout={TEST_TIMEOUT_MS}"]
        try:
            done = subprocess.run(
                [*command, *options, "--reporter=json", f"--outputFile={report}"],
                cwd=FOLDER,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=RUN_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as late:
            raise SuiteBroken(f"no end of the suite after {RUN_TIMEOUT_S:.0f} s") from late
        if not report.is_file():
            raise SuiteBroken(
                f"the suite made no report, exit code {done.returncode}:\n{done.stdout}"
            )
        result = parse_report(orjson.loads(report.read_bytes()))
    if (done.returncode != 0) != bool(result.failed):
        raise SuiteBroken(
            f"exit code {done.returncode} with {len(result.failed)} failures:\n{done.stdout}"
        )
    return result


def parse_report(report: dict[str, Any]) -> SuiteResult:
    """Read vitest's JSON report; a file that could not be loaded counts as a failure."""
    passed, failed, skipped = 0, list[Failure](), list[str]()
    for file in report["testResults"]:
        if file["message"]:
            failed.append(Failure(file["name"], file["message"]))
        for test in file["assertionResults"]:
            if test["status"] == "passed":
                passed += 1
            elif test["status"] == "failed":
                failed.append(Failure(test["fullName"], "\n    ".join(test["failureMessages"])))
            else:
                skipped.append(test["fullName"])
    return SuiteResult(passed, tuple(failed), tuple(skipped))
