"""What watches the service: alerts fire when they should, and every figure asked for is one that
there is."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from shared import metrics
from tests.deploy.manifests import DEPLOY
from tests.tools import debian

OBSERVE = DEPLOY / "observe"
# What Prometheus adds to what it scrapes, by itself or by our configurations.
ADDED = {"component", "process", "job", "instance", "namespace", "pod", "le"}
OWN = {m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)}


def load(name: str) -> Any:
    return yaml.safe_load((OBSERVE / name).read_text())


def alerts() -> dict[str, dict[str, Any]]:
    return {
        rule["alert"]: rule for group in load("rules.yaml")["groups"] for rule in group["rules"]
    }


# --- alerts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def promtool() -> str:
    found = debian.unpacked("promtool", "prometheus")
    if found is None:
        pytest.skip("no promtool, on PATH or as Debian's prometheus: alert rules were not run")
    return found


def run(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run(command, cwd=OBSERVE, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_alerts_fire_when_they_should(promtool: str) -> None:
    code, said = run(promtool, "test", "rules", "rules_test.yaml")
    assert code == 0, said


@pytest.mark.parametrize("alert", alerts())
def test_alert_is_shown_to_fire_and_to_be_silent(alert: str) -> None:
    cases = [
        case
        for test in load("rules_test.yaml")["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert
    ]
    assert {bool(case.get("exp_alerts")) for case in cases} == {True, False}


def test_a_rule_that_says_something_else_fails(promtool: str, tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    text = (OBSERVE / "rules.yaml").read_text()
    assert "> 0.85" in text
    (tmp_path / "rules.yaml").write_text(text.replace("> 0.85", "> 0.95"))
    cases = (OBSERVE / "rules_test.yaml").read_text()
    (tmp_path / "rules_test.yaml").write_text(cases)
    code, said = run(promtool, "test", "rules", tmp_path / "rules_test.yaml")
    assert code != 0
    assert "HeadwaterEdgeFull" in said


@pytest.mark.parametrize("name", ["prometheus", "prometheus-up", "prometheus-kubernetes"])
def test_configuration_is_valid(promtool: str, name: str, tmp_path: Path) -> None:
    given = load(f"{name}.yaml")
    for job in given["scrape_configs"]:
        # Debian builds Prometheus without discovery on Kubernetes.
        if job.pop("kubernetes_sd_configs", None):
            job["static_configs"] = [{"targets": ["127.0.0.1:4438"]}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "rules.yaml").write_text((OBSERVE / "rules.yaml").read_text())
    code, said = run(promtool, "check", "config", tmp_path / "prometheus.yaml")
    assert code == 0, said
    assert re.search(r"SUCCESS: 1\d rules found", said)


def test_discovery_finds_the_pods_of_the_manifests() -> None:
    (job,) = load("prometheus-kubernetes.yaml")["scrape_configs"]
    assert job["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": ["headwater"]}}]
    targets = {rule.get("target_label") for rule in job["relabel_configs"]}
    assert {"component", "namespace", "pod"} <= targets  # what the adapter's rule asks for


def test_runbook_has_each_alert_and_no_other() -> None:
    headings = re.findall(
        r"^## (\w+) \((\w+)\)$", (OBSERVE / "RUNBOOK.md").read_text(), re.MULTILINE
    )
    assert dict(headings) == {name: rule["labels"]["severity"] for name, rule in alerts().items()}
    assert len(headings) == len(alerts())


# --- figures ------------------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    board = json.loads((OBSERVE / "grafana" / "headwater.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every query, with the name of who asks."""
    for name, rule in alerts().items():
        yield name, rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


EXPRESSIONS = dict(expressions())
_NAME = re.compile(r"\b(?:headwater|process|python)_\w+(?=\{|\[|\)| |$)")
_MATCHER = re.compile(r"\{([^}]*)\}")


def labels_of(name: str) -> set[str]:
    """Return the labels that we give a metric."""
    for metric in OWN:
        base = metric._name + ("_total" if metric._type == "counter" else "")
        if re.fullmatch(rf"{base}(_bucket|_count|_sum)?", name):
            return set(metric._labelnames)
    return set()


@pytest.mark.parametrize("asker", EXPRESSIONS)
def test_labels_are_those_of_the_metrics(asker: str) -> None:
    expression = EXPRESSIONS[asker]
    names = _NAME.findall(expression)
    known = set.union(ADDED, *(labels_of(name) for name in names))
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", " ".join(_MATCHER.findall(expression)))
    grouped = re.findall(r"\bby \(([\w, ]+)\)", expression)
    used = {*matched, *(label.strip() for group in grouped for label in group.split(","))}
    assert used <= known
    # Every role has every figure, and it is 0 where it means nothing; `up` is Prometheus' own.
    assert expression.startswith("up{") or "component" in used


def test_board_is_one_that_grafana_draws() -> None:
    board = json.loads((OBSERVE / "grafana" / "headwater.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        places |= cells
    (source,) = board["templating"]["list"]
    assert all(p["datasource"]["uid"] == f"${{{source['name']}}}" for p in panels())


def test_board_shows_every_metric_of_ours() -> None:
    shown = {
        name for panel in panels() for t in panel["targets"] for name in _NAME.findall(t["expr"])
    }
    missing = {
        metric._name for metric in OWN if not any(name.startswith(metric._name) for name in shown)
    }
    assert missing == set()
