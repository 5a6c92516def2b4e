"""Who may reach what in the chart: the policies are added up as Kubernetes does, and the sum is the whole table."""

from typing import Any

import pytest

from headrace.store.calls import addresses
from tests.deploy import chart

COMPONENTS = (
    "api",
    "worker",
    "dispatcher",
    "flower",
    "migrate",
    "register",
    "engine",
    "engine-worker",
    "engine-register",
    "host",
)
DNS = {("UDP", 53), ("TCP", 53)}
POSTGRES, REDIS, EVERY_PORT = ("TCP", 5432), ("TCP", 6379), ("any", "any")
REACHES = {
    "api": {POSTGRES, REDIS},
    "worker": {POSTGRES, REDIS},
    "dispatcher": {POSTGRES, REDIS, EVERY_PORT},
    "flower": {REDIS},
    "migrate": {POSTGRES},
    "register": {POSTGRES},
    "engine": set(),
    "engine-worker": {POSTGRES, REDIS, ("TCP", 8000)},
    "engine-register": {POSTGRES},
    "host": {POSTGRES, REDIS},
}


TRACED = {**chart.EVERYTHING, "tracing": {"endpoint": "http://collector:4318"}}


def _policies(changes: dict[str, Any] = chart.EVERYTHING) -> list[dict[str, Any]]:
    return [obj for obj in chart.objects(changes) if obj["kind"] == "NetworkPolicy"]


def _selects(policy: dict[str, Any], component: str) -> bool:
    selector = policy["spec"]["podSelector"]
    labels = {
        "app.kubernetes.io/name": "headrace",
        "app.kubernetes.io/instance": "demo",
        "app.kubernetes.io/component": component,
    }
    assert {rule["operator"] for rule in selector.get("matchExpressions", [])} <= {"In"}
    return all(labels[key] == value for key, value in selector["matchLabels"].items()) and all(
        labels[rule["key"]] in rule["values"] for rule in selector.get("matchExpressions", [])
    )


def _rules(component: str, direction: str) -> list[dict[str, Any]]:
    return [rule for policy in _policies() if _selects(policy, component) for rule in policy["spec"].get(direction, [])]


def _ports(rule: dict[str, Any]) -> set[tuple[str, Any]]:
    return {(port["protocol"], port["port"]) for port in rule.get("ports", [])} or {EVERY_PORT}


def test_every_pod_is_closed_both_ways() -> None:
    made = {
        obj["metadata"]["labels"]["app.kubernetes.io/component"]
        for obj in chart.objects(chart.EVERYTHING)
        if "template" in obj.get("spec", {})
    }
    assert made == set(COMPONENTS)
    for component in COMPONENTS:
        kinds = [set(policy["spec"]["policyTypes"]) for policy in _policies() if _selects(policy, component)]
        assert {"Ingress", "Egress"} in kinds


@pytest.mark.parametrize("component", COMPONENTS)
def test_what_it_may_reach(component: str) -> None:
    reached = {port for rule in _rules(component, "egress") for port in _ports(rule)}
    assert reached == DNS | REACHES[component]


def test_who_may_reach_redis_may_reach_its_sentinels() -> None:
    policies = _policies({**chart.EVERYTHING, "networkPolicy": {"redis": {"sentinelPort": 26379}}})
    (policy,) = [policy for policy in policies if policy["metadata"]["name"] == "demo-redis"]
    assert _ports(policy["spec"]["egress"][0]) == {REDIS, ("TCP", 26379)}


def test_what_is_traced_reaches_the_collector() -> None:
    (policy,) = [policy for policy in _policies(TRACED) if policy["metadata"]["name"] == "demo-tracing"]
    assert _ports(policy["spec"]["egress"][0]) == {("TCP", 4318)}
    sending = set()
    for made in (obj for obj in chart.objects(TRACED) if obj["kind"] == "Deployment"):
        (container,) = made["spec"]["template"]["spec"]["containers"]
        if "OTEL_EXPORTER_OTLP_ENDPOINT" in {variable["name"] for variable in container.get("env", [])}:
            sending.add(made["metadata"]["labels"]["app.kubernetes.io/component"])
    assert sending == {component for component in COMPONENTS if _selects(policy, component)}
    assert sending == {"api", "worker", "dispatcher", "engine-worker", "host"}


def test_the_nodes_of_a_server_reach_each_other_and_prometheus_every_page() -> None:
    made = chart.objects(chart.WITH_NODES)
    policies = [obj for obj in made if obj["kind"] == "NetworkPolicy"]
    (nodes,) = [one["spec"] for one in policies if one["metadata"]["name"] == "demo-engine-nodes"]
    labels = {f"app.kubernetes.io/{name}": given for name, given in (("instance", "demo"), ("component", "engine"))}
    for peers in (nodes["ingress"][0]["from"], nodes["egress"][0]["to"]):
        assert [labels.items() <= peer["podSelector"]["matchLabels"].items() for peer in peers] == [True]
    asked = {
        component: {port["port"] for port in rule["ports"]}
        for one in policies
        for rule in one["spec"].get("ingress", ())
        for component in COMPONENTS
        if _selects(one, component) and rule["from"] == chart.WITH_NODES["networkPolicy"]["metrics"]["from"]
    }
    pages = {name: {"metrics"} for name in ("worker", "engine-worker", "host")}
    assert asked == {"api": {"http"}, "dispatcher": {"health"}, **pages}


def test_the_api_is_asked_by_the_ingress_alone_and_the_others_by_nobody() -> None:
    asked = {component: _rules(component, "ingress") for component in COMPONENTS}
    assert {component for component, rules in asked.items() if rules} == {"api", "engine"}
    (peer,) = asked["engine"][0]["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "engine-worker"
    (rule,) = asked["api"]
    assert _ports(rule) == {("TCP", "http")}
    labels = {"kubernetes.io/metadata.name": "ingress-nginx"}
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": labels}}]


def test_webhooks_leave_for_the_addresses_that_the_guard_lets_pass() -> None:
    (rule,) = [rule for rule in _rules("dispatcher", "egress") if "ports" not in rule]
    v4, v6 = (peer["ipBlock"] for peer in rule["to"])
    assert (v4["cidr"], set(v4["except"])) == ("0.0.0.0/0", {str(block) for block in addresses.DENIED_V4})
    assert (v6["cidr"], set(v6["except"])) == (str(addresses.OPEN_V6), {str(block) for block in addresses.DENIED_V6})
