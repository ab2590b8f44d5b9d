"""The manifests: strictly valid, and every name in them is one that the code knows."""

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml
from aiohttp.test_utils import make_mocked_request

from shared import metrics
from shared.config import EDGE, ORIGIN, Settings
from shared.web import Health
from tests.deploy.manifests import (
    DEPLOY,
    LEFTOVER_S,
    MIB,
    OVERLAYS,
    Manifest,
    descriptors_needed,
    memory_needed,
    quantity,
    render,
    settings_of,
)
from tests.service import _free_port, _needed_valkey_binary

KUBERNETES = DEPLOY / "kubernetes"
NAME = "app.kubernetes.io/component"


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def rendered(overlay: str) -> tuple[Manifest, ...]:
    return render(overlay)


def of_kind(rendered: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    return [document for document in rendered if document["kind"] in kinds]


def pods(rendered: tuple[Manifest, ...]) -> dict[str, Manifest]:
    """Return pod templates by component."""
    templates = [one["spec"]["template"] for one in of_kind(rendered, "Deployment", "StatefulSet")]
    return {template["metadata"]["labels"][NAME]: template for template in templates}


def container(pod: Manifest) -> Manifest:
    (one,) = pod["spec"]["containers"]
    found: Manifest = one
    return found


def environment(pod: Manifest) -> dict[str, str]:
    """Return it, with a value in place of each Secret's."""
    return {
        entry["name"]: entry.get("value", "redis://:secret@h:6379/0")
        for entry in container(pod)["env"]
    }


def roles(rendered: tuple[Manifest, ...]) -> dict[str, tuple[Manifest, Settings]]:
    """Return our own pods, and the settings that each starts with."""
    found = {}
    for command in (ORIGIN, EDGE):
        pod = pods(rendered)[command]
        assert container(pod)["args"] == [command]
        assert "command" not in container(pod)  # the image's entry point
        found[command] = pod, settings_of(command, environment(pod))
    return found


# --- schemas ------------------------------------------------------------------------------------


def test_every_document_is_strictly_valid(rendered: tuple[Manifest, ...]) -> None:
    assert len(rendered) > 10
    for document in rendered:
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_validation_finds_a_misspelt_field() -> None:
    """Else the test above would prove nothing."""
    document = yaml.safe_load(yaml.safe_dump(render("production")[0]))
    document["spec"]["prots"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_parts_are_those_that_are_promised() -> None:
    def names(overlay: str) -> set[tuple[str, str]]:
        return {(one["kind"], one["metadata"]["name"]) for one in render(overlay)}

    common = {
        ("StatefulSet", "headwater-origin"),
        ("Deployment", "headwater-edge"),
        ("Deployment", "headwater-redis"),
    }
    scaling = {
        ("HorizontalPodAutoscaler", "headwater-edge"),
        ("PodDisruptionBudget", "headwater-edge"),
        ("PodDisruptionBudget", "headwater-origin"),
    }
    assert common <= names("single-node")
    assert names("production") - names("single-node") == scaling


# --- the code's names ---------------------------------------------------------------------------


def test_ports_are_those_that_the_settings_say(rendered: tuple[Manifest, ...]) -> None:
    for pod, settings in roles(rendered).values():
        ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
        assert ports == {"http": settings.port, "admin": settings.admin_port}
        assert settings.host == settings.admin_host == "0.0.0.0"


async def test_probes_ask_what_the_admin_port_answers(rendered: tuple[Manifest, ...]) -> None:
    for pod, _ in roles(rendered).values():
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container(pod)[probe]["httpGet"]
            assert asked["port"] == "admin"
            request = make_mocked_request("GET", asked["path"])
            assert (await Health(ready=True).handle(request)).status == 200
            # While it drains only readiness fails: a process that drains is not to be killed.
            drains = await Health(ready=False).handle(request)
            assert drains.status == (503 if probe == "readinessProbe" else 200)


def test_services_reach_ports_of_pods_that_there_are(rendered: tuple[Manifest, ...]) -> None:
    services = of_kind(rendered, "Service")
    assert len(services) == 3
    for service in services:
        selected = [p for p in pods(rendered).values() if matches(service["spec"], p)]
        assert len(selected) == 1, service["metadata"]["name"]
        ports = {port["name"] for port in container(selected[0])["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_upstream_of_edges_is_the_service_of_the_origin(rendered: tuple[Manifest, ...]) -> None:
    _, settings = roles(rendered)[EDGE]
    (service,) = (
        one for one in of_kind(rendered, "Service") if one["spec"]["selector"][NAME] == ORIGIN
    )
    name, (port,) = service["metadata"]["name"], service["spec"]["ports"]
    # Headless: the name leads to the pod itself, so the port has to be the pod's.
    assert service["spec"]["clusterIP"] == "None"
    assert settings.upstream == f"http://{name}:{port['port']}"
    assert port["port"] == roles(rendered)[ORIGIN][1].port
    assert of_kind(rendered, "StatefulSet")[0]["spec"]["serviceName"] == name


def test_grace_is_longer_than_the_drain(rendered: tuple[Manifest, ...]) -> None:
    for pod, settings in roles(rendered).values():
        before = container(pod).get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        after_s = before.get("seconds", 0) + settings.drain_s + LEFTOVER_S
        assert pod["spec"]["terminationGracePeriodSeconds"] >= after_s + 5
    edge, _ = roles(rendered)[EDGE]
    sleep_s = container(edge)["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = container(edge)["readinessProbe"]
    assert sleep_s > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_origin_writes_to_its_volume(rendered: tuple[Manifest, ...]) -> None:
    pod, settings = roles(rendered)[ORIGIN]
    (stateful,) = of_kind(rendered, "StatefulSet")
    (mount,) = container(pod)["volumeMounts"]
    assert Path(mount["mountPath"]) == settings.data_dir
    assert [c["metadata"]["name"] for c in stateful["spec"]["volumeClaimTemplates"]] == [
        mount["name"]
    ]
    # Nothing routes over several: more would be as many services without a word to each other.
    assert stateful["spec"]["replicas"] == 1


# --- memory, descriptors ------------------------------------------------------------------------

SOURCES = {
    ("single-node", EDGE): "base/edge.yaml",
    ("single-node", ORIGIN): "base/origin.yaml",
    ("production", EDGE): "overlays/production/edge.yaml",
    ("production", ORIGIN): "base/origin.yaml",
}


@pytest.mark.parametrize(("where", "command"), SOURCES)
def test_memory_is_what_its_parts_add_up_to(where: str, command: str) -> None:
    pod, settings = roles(render(where))[command]
    needed = memory_needed(command, settings)
    resources = container(pod)["resources"]
    assert needed <= quantity(resources["limits"]["memory"])
    assert quantity(resources["requests"]["memory"]) <= quantity(resources["limits"]["memory"])
    assert "cpu" not in resources["limits"]
    # The sum in the manifest is of parts that are rounded one by one.
    told = re.search(r"# = (\d+) MiB", (KUBERNETES / SOURCES[where, command]).read_text())
    assert told is not None
    assert abs(int(told[1]) - needed / MIB) < 3


@pytest.mark.parametrize(
    ("where", "source"),
    [("single-node", "base/edge.yaml"), ("production", "overlays/production/edge.yaml")],
)
def test_descriptors_are_those_that_the_manifest_tells(where: str, source: str) -> None:
    _, settings = roles(render(where))[EDGE]
    told = re.search(r"# Needs ([\d,]+) descriptors", (KUBERNETES / source).read_text())
    assert told is not None
    assert int(told[1].replace(",", "")) == descriptors_needed(settings)


# --- security -----------------------------------------------------------------------------------


def test_every_pod_is_confined(rendered: tuple[Manifest, ...]) -> None:
    for pod in pods(rendered).values():
        spec, one = pod["spec"], container(pod)
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False  # would set HEADWATER_PORT to tcp://...
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 10_000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()


def test_secrets_are_named_and_never_written(rendered: tuple[Manifest, ...]) -> None:
    assert of_kind(rendered, "Secret") == []
    text = yaml.safe_dump_all(rendered)
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text)
    for pod, _ in roles(rendered).values():
        (bus,) = (e for e in container(pod)["env"] if e["name"] == "HEADWATER_REDIS")
        assert bus["valueFrom"] == {"secretKeyRef": {"name": "headwater-redis", "key": "url"}}


def test_images_are_pinned(rendered: tuple[Manifest, ...]) -> None:
    for pod in pods(rendered).values():
        assert re.fullmatch(r"[\w/.-]+:\d+\.\d+\.\d+[\w.-]*", container(pod)["image"])


# --- scaling ------------------------------------------------------------------------------------


def test_autoscaler_follows_a_metric_that_there_is() -> None:
    rendered = render("production")
    (scaler,) = of_kind(rendered, "HorizontalPodAutoscaler")
    (deployment,) = (
        one
        for one in of_kind(rendered, "Deployment")
        if one["metadata"]["name"] == scaler["spec"]["scaleTargetRef"]["name"]
    )
    assert "replicas" not in deployment["spec"]  # each apply would undo the scaler
    by_pods = scaler["spec"]["metrics"][0]["pods"]
    name = by_pods["metric"]["name"]
    assert name == metrics.CONNECTIONS._name
    rules = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]
    (rule,) = rules["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    _, settings = roles(rendered)[EDGE]
    assert settings.connections is not None
    assert int(by_pods["target"]["averageValue"]) <= 0.7 * settings.connections
    behavior = scaler["spec"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 600
    (policy,) = behavior["scaleDown"]["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] > settings.drain_s


def test_budgets_and_spreads_select_the_pods_they_mean() -> None:
    rendered = render("production")
    for budget in of_kind(rendered, "PodDisruptionBudget"):
        component = budget["metadata"]["labels"][NAME]
        chosen = [k for k, pod in pods(rendered).items() if matches(budget["spec"], pod)]
        assert chosen == [component]
    edge = pods(rendered)[EDGE]
    spreads = edge["spec"]["topologySpreadConstraints"]
    assert [spread["topologyKey"] for spread in spreads] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    assert all(fits(spread["labelSelector"], edge["metadata"]["labels"]) for spread in spreads)


# --- network ------------------------------------------------------------------------------------


def fits(selector: Manifest, labels: dict[str, str]) -> bool:
    """Tell whether a label selector selects labels."""
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())


def matches(spec: Manifest, pod: Manifest) -> bool:
    selector = spec["selector"]
    if "matchLabels" not in selector:
        selector = {"matchLabels": selector}
    return fits(selector, pod["metadata"]["labels"])


class Network:
    """What NetworkPolicies allow."""

    def __init__(self, rendered: tuple[Manifest, ...]) -> None:
        self.policies = [one["spec"] for one in of_kind(rendered, "NetworkPolicy")]
        self.pods = pods(rendered)

    def allows(self, source: str, target: str, port: str | int) -> bool:
        """Tell whether one may connect to another: a component, or else a namespace."""
        return self._passes("Egress", source, target, port) and self._passes(
            "Ingress", target, source, port
        )

    def _passes(self, way: str, own: str, other: str, port: str | int) -> bool:
        if own not in self.pods:
            return True  # not ours to say
        labels = self.pods[own]["metadata"]["labels"]
        about = [p for p in self.policies if way in p["policyTypes"]]
        about = [p for p in about if fits(p["podSelector"], labels)]
        assert about, f"nothing is said of {own}: it is open"
        rules = [rule for p in about for rule in p.get(way.lower(), [])]
        key = "to" if way == "Egress" else "from"
        return any(
            port in [one["port"] for one in rule["ports"]]
            and (key not in rule or any(self._is(peer, other) for peer in rule[key]))
            for rule in rules
        )

    def _is(self, peer: Manifest, other: str) -> bool:
        if "namespaceSelector" in peer:
            return fits(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other})
        return other in self.pods and fits(
            peer["podSelector"], self.pods[other]["metadata"]["labels"]
        )


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        ("anywhere", "edge", "http", True),
        ("edge", "origin", "http", True),
        ("edge", "redis", "redis", True),
        ("origin", "redis", "redis", True),
        ("edge", "kube-system", 53, True),
        ("origin", "kube-system", 53, True),
        ("monitoring", "edge", "admin", True),
        ("monitoring", "origin", "admin", True),
        ("anywhere", "edge", "admin", False),
        ("anywhere", "origin", "http", False),
        ("anywhere", "origin", "admin", False),
        ("anywhere", "redis", "redis", False),
        ("monitoring", "redis", "redis", False),
        ("edge", "edge", "admin", False),
        ("origin", "edge", "http", False),
        ("redis", "origin", "http", False),
        ("origin", "anywhere", 443, False),
        ("redis", "anywhere", 443, False),
    ],
)
def test_network_lets_through_what_it_must_and_no_more(
    rendered: tuple[Manifest, ...], source: str, target: str, port: str | int, allowed: bool
) -> None:
    assert Network(rendered).allows(source, target, port) is allowed


# --- Redis --------------------------------------------------------------------------------------


def literal(name: str, password: str) -> str:
    """Return what README.md puts into the Secret."""
    page = (KUBERNETES / "README.md").read_text()
    found = re.search(rf'--from-literal={re.escape(name)}="([^"]+)"', page)
    assert found is not None
    return found[1].replace("$PASSWORD", password)


def test_redis_starts_as_the_manifest_says_and_takes_the_secret(tmp_path: Path) -> None:
    password = "0123456789abcdef"
    (tmp_path / "users.acl").write_text(literal("users.acl", password))
    port = _free_port()
    here = {
        "/etc/valkey/users.acl": str(tmp_path / "users.acl"),
        "6379": str(port),
        "0.0.0.0": "127.0.0.1",
        "valkey-server": _needed_valkey_binary(),
    }
    words = container(pods(render("production"))["redis"])["command"]
    assert here.keys() <= set(words)
    command = [here.get(word, word) for word in words]
    url = literal("url", password).replace("headwater-redis:6379", f"127.0.0.1:{port}")
    process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        assert published(url) == 0
        with pytest.raises(redis.AuthenticationError):
            published(url.replace(password, "guessed"))
    finally:
        process.terminate()
        process.wait(10)


def published(url: str) -> Any:
    """Publish a wake, once the server is there; return who heard it."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with redis.Redis.from_url(url) as client:
                return client.publish("headwater:wake:x", b"")
        except redis.AuthenticationError:
            raise
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
