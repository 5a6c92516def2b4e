"""What the chart makes of its values: workers of several models, KEDA, an ingress, and values that are refused."""

import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from headrace.producer_api.jobs.queue_routes import router as queue_router
from headrace.producer_api.jobs.queue_views import QueueScalingObject
from headrace.store.scale_bounds import ScaleBounds, parse_bounds
from headrace.store.settings import Settings
from tests.deploy import chart

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "headrace.rules.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_each_model_has_workers_of_its_own() -> None:
    made = {(obj["kind"], obj["metadata"]["name"]): obj for obj in chart.objects(chart.WITH_MORE)}
    workers = {name: obj for (kind, name), obj in made.items() if kind == "Deployment" and name.startswith("demo-work")}
    assert set(workers) == {"demo-worker", "demo-worker-chat", "demo-worker-embed"}
    for name, obj in workers.items():
        chosen = obj["spec"]["selector"]["matchLabels"].items()
        matching = {
            other for other, one in workers.items() if chosen <= one["spec"]["template"]["metadata"]["labels"].items()
        }
        assert matching == {name}
        assert made["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"].items() == chosen
        (container,) = obj["spec"]["template"]["spec"]["containers"]
        (registering,) = made["Job", f"{name}-register"]["spec"]["template"]["spec"]["containers"]
        model = container["command"][-1]
        assert registering["command"][-2:] == [model, f"/models/{model}"]
        assert registering["image"] == container["image"]
    chat, embed = (workers[f"demo-worker-{name}"]["spec"]["template"]["spec"] for name in ("chat", "embed"))
    assert chat["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert (chat["nodeSelector"], chat["tolerations"][0]["key"]) == ({"gpu": "yes"}, "nvidia.com/gpu")
    assert embed["containers"][0]["resources"] == chart.values()["worker"]["resources"]
    assert workers["demo-worker-embed"]["spec"]["replicas"] == 2
    (dispatcher,) = made["Deployment", "demo-dispatcher"]["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one.get("value") for one in dispatcher["env"]}["HEADRACE_AUTOSCALE"]
    assert Settings(autoscale=given).autoscale == ("smollm2=0..4", "chat=1..2")
    scaled = {name: obj["spec"] for (kind, name), obj in made.items() if kind == "ScaledObject"}
    assert (
        {one["scaleTargetRef"]["name"] for one in scaled.values()} == {"demo-worker", "demo-worker-chat"} == set(scaled)
    )
    assert "/v1/queues/chat/scaling" in scaled["demo-worker-chat"]["triggers"][0]["metadata"]["url"]


def test_the_ingress_leads_to_the_api_by_tls() -> None:
    made = {(obj["kind"], obj["metadata"]["name"]): obj for obj in chart.objects(chart.WITH_MORE)}
    ingress, service = made["Ingress", "demo-api"]["spec"], made["Service", "demo-api"]
    (rule,) = ingress["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] == service["spec"]["ports"][0]["name"]
    assert ingress["tls"] == [{"hosts": [rule["host"]], "secretName": "headrace-tls"}]


def test_a_gateway_leads_to_the_same_service() -> None:
    made = {(obj["kind"], obj["metadata"]["name"]): obj for obj in chart.objects(chart.WITH_PLACES)}
    route = made["HTTPRoute", "demo-api"]["spec"]
    ((backend,),) = (rule["backendRefs"] for rule in route["rules"])
    service = made["Service", backend["name"]]["spec"]
    assert backend["port"] == service["ports"][0]["port"]
    assert (route["hostnames"], route["parentRefs"]) == (["headrace.example"], chart.WITH_PLACES["gateway"]["parents"])


def test_prometheus_finds_each_page_under_the_name_that_the_alerts_ask_for() -> None:
    """The rules are applied as Prometheus does: in turn, and each regular expression is for the whole text."""
    made = chart.objects(chart.WITH_PLACES)
    (monitor,) = [obj["spec"] for obj in made if obj["kind"] == "PodMonitor"]
    jobs: dict[str, str] = {}
    for pod in (obj["spec"]["template"] for obj in made if obj["kind"] == "Deployment"):
        labels = pod["metadata"]["labels"]
        chosen = monitor["selector"]
        if not chosen["matchLabels"].items() <= labels.items():
            continue
        if any(labels[one["key"]] not in one["values"] for one in chosen["matchExpressions"]):
            continue
        containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
        ports = [(one["name"], port["name"]) for one in containers for port in one.get("ports", ())]
        for endpoint in monitor["podMetricsEndpoints"]:
            for container in (name for name, port in ports if port == endpoint["port"]):
                if job := relabelled(labels["app.kubernetes.io/component"], endpoint["relabelings"]):
                    jobs[container] = job
    assert jobs == {
        "api": "headrace-api",
        "worker": "headrace-worker",
        "host": "headrace-host",
        "dispatcher": "headrace-dispatcher",
    }
    assert set(re.findall(r'job="([\w-]+)"', RULES.read_text())) <= set(jobs.values())


def relabelled(component: str, rules: list[dict[str, Any]]) -> str | None:
    """Return the job of a page; None if it is dropped."""
    job = None
    for rule in rules:
        match = re.fullmatch(rule.get("regex", "(.*)"), component if "sourceLabels" in rule else "")
        if rule.get("action") == "keep" and not match:
            return None
        if rule.get("targetLabel") == "job" and match:
            job = rule["replacement"].replace("$1", match[1])
    return job


def test_pods_of_a_kind_are_spread_by_labels_that_they_have() -> None:
    kinds = set()
    for obj in (one for one in chart.objects(chart.WITH_PLACES) if one["kind"] == "Deployment"):
        labels, pod = obj["spec"]["template"]["metadata"]["labels"], obj["spec"]["template"]["spec"]
        for constraint in pod.get("topologySpreadConstraints", ()):
            kinds.add(labels["app.kubernetes.io/component"])
            assert constraint["labelSelector"]["matchLabels"].items() <= labels.items()
            assert "app.kubernetes.io/component" in constraint["matchLabelKeys"], "else all kinds are counted together"
            assert constraint["topologyKey"] == "topology.kubernetes.io/zone"
    assert kinds == {"api", "worker", "host", "dispatcher", "engine-worker"}
    assert not [obj for obj in chart.objects() if "topologySpreadConstraints" in json.dumps(obj)]


def test_a_server_on_several_nodes_is_asked_at_its_leader() -> None:
    made = {(obj["kind"], obj["metadata"]["name"]): obj for obj in chart.objects(chart.WITH_NODES)}
    assert ("Deployment", "demo-engine") not in made
    group = made["LeaderWorkerSet", "demo-engine-nodes"]["spec"]["leaderWorkerTemplate"]
    assert ("Service", "demo-engine-nodes") not in made, "LeaderWorkerSet makes it"
    leader, other = (group[f"{name}Template"] for name in ("leader", "worker"))
    chosen = made["Service", "demo-engine"]["spec"]["selector"]
    assert chosen.pop("leaderworkerset.sigs.k8s.io/worker-index") == "0"
    assert chosen.items() <= leader["metadata"]["labels"].items()
    (first,), (second,) = (one["spec"]["containers"] for one in (leader, other))
    words = dict(pairwise(first["command"]))
    assert (words["--nnodes"], words["--node-rank"]) == ("$(LWS_GROUP_SIZE)", "$(LWS_WORKER_INDEX)")
    assert int(words["--tensor-parallel-size"]) * int(words["--pipeline-parallel-size"]) == 16
    # The same server, but that the others have no API: no port and no probe.
    assert second["args"] == ["--headless", *first["args"]]
    assert {"readinessProbe", "ports"} <= set(first)
    assert not {"readinessProbe", "livenessProbe", "startupProbe", "ports"} & set(second)
    assert {name: first[name] for name in second if name != "args"} == {
        name: second[name] for name in second if name != "args"
    }
    (registering,) = made["Job", "demo-engine-register"]["spec"]["template"]["spec"]["containers"]
    assert registering["command"][-1] == "http://demo-engine:8000"


def test_custom_resources_have_fields_that_exist() -> None:
    for changes in (chart.WITH_MORE, chart.WITH_NODES, chart.WITH_PLACES):
        for obj in filter(chart.is_custom, chart.objects(changes)):
            assert chart.complaint(obj) is None
            assert chart.complaint({**obj, "spec": {**obj["spec"], "mistyped": 1}})


def test_the_operators_own_server_is_the_one_that_is_registered() -> None:
    url = "http://gpu.inference:9000"
    changes = {"engine": {"enabled": True, "url": url, "server": {"enabled": False}}}
    made = {obj["metadata"]["name"]: obj for obj in chart.objects(changes) if obj["kind"] in {"Deployment", "Job"}}
    assert "demo-engine" not in made
    (container,) = made["demo-engine-register"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["--url", url]


@pytest.mark.parametrize(
    ("changes", "is_valid"),
    [
        ({}, True),
        (chart.WITH_SERVER, True),
        (chart.WITH_AUTOSCALING, True),
        ({"worker": {"autoscaling": {"enabled": True}}}, False),
        ({"worker": {"replicas": 0}}, False),
        ({"engine": {"url": "http://mine:8000", "server": {"enabled": False}}}, True),
        ({"engine": {"url": "http://mine:8000"}}, False),
        ({"engine": {"url": "mine:8000", "server": {"enabled": False}}}, False),
        ({"engine": {"kind": "sglang"}}, False),
        ({"engine": {"gpu": 1}}, False),
        (chart.WITH_SIDECAR, True),
        ({"engine": {"url": "http://mine:8000", "server": {"enabled": False, "sidecar": True}}}, False),
        (chart.WITH_MORE, True),
        (chart.WITH_NODES, True),
        (chart.WITH_PLACES, True),
        ({"engine": {"server": {"sidecar": True, "multiNode": {"enabled": True}}}}, False),
        ({"engine": {"server": {"multiNode": {"enabled": True, "nodes": 1}}}}, False),
        ({"gateway": {"enabled": True, "host": "headrace.example"}}, False),
        ({"spread": [{"topologyKey": "topology.kubernetes.io/zone"}]}, False),
        ({"worker": {"more": [{"name": "worker-x", "model": "x", "source": "/models/x"}]}}, False),
        ({"worker": {"more": [chart.WITH_MORE["worker"]["more"][0] | {"name": "api"}]}}, False),
        ({"worker": {"more": [chart.WITH_MORE["worker"]["more"][0] | {"gpu": 1}]}}, False),
        ({"ingress": {"enabled": True}}, False),
        ({"host": {"enabled": True, "memory": "lots"}}, False),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, Any], is_valid: bool) -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    values = chart.with_changes(chart.values(), changes)
    assert jsonschema_rs.validator_for(schema).is_valid(values) is is_valid


def test_the_chart_version_is_the_project_version() -> None:
    meta = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert meta["appVersion"] == PROJECT["project"]["version"]
    assert meta["version"] == PROJECT["project"]["version"]
    assert all(f":{meta['appVersion']}" in chart.values()["image"][name] for name in ("control", "worker"))


def test_keda_asks_a_route_that_exists_for_the_number_that_the_dispatcher_decides() -> None:
    found = {(obj["kind"], obj["metadata"]["name"]): obj for obj in chart.objects(chart.WITH_AUTOSCALING)}
    scaled = found["ScaledObject", "demo-worker"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == "demo-worker"
    assert "replicas" not in found["Deployment", "demo-worker"]["spec"], "an upgrade would set the number back"
    (trigger,) = scaled["triggers"]
    service = found["Service", "demo-api"]
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert trigger["metadata"]["url"] == f"{address}{queue_router.prefix}/smollm2/scaling"
    assert f"{queue_router.prefix}/{{name}}/scaling" in {
        str(getattr(route, "path", "")) for route in queue_router.routes
    }
    assert trigger["metadata"]["valueLocation"] in QueueScalingObject.model_fields
    assert trigger["authenticationRef"]["name"] == found["TriggerAuthentication", "demo-worker"]["metadata"]["name"]
    (container,) = found["Deployment", "demo-dispatcher"]["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one.get("value") for one in container["env"]}["HEADRACE_AUTOSCALE"]
    (bounds,) = parse_bounds(Settings(autoscale=given).autoscale)
    assert bounds == ScaleBounds("smollm2", scaled["minReplicaCount"], scaled["maxReplicaCount"])


def test_the_values_of_the_page_are_valid_and_render() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)
    given, on_nodes = (yaml.safe_load(example) for example in examples)
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    for values in (given, on_nodes):
        assert jsonschema_rs.validator_for(schema).is_valid(chart.with_changes(chart.values(), values))
    (group,) = (obj for obj in chart.objects(on_nodes) if obj["kind"] == "LeaderWorkerSet")
    sizes = on_nodes["engine"]["server"]
    cards = sizes["resources"]["limits"]["nvidia.com/gpu"] * group["spec"]["leaderWorkerTemplate"]["size"]
    assert cards == sizes["tensorParallelSize"] * sizes["multiNode"]["pipelineParallelSize"]
    commands = [
        obj["spec"]["template"]["spec"]["containers"][0]["command"][-1]
        for obj in chart.objects(given)
        if obj["kind"] == "Deployment" and "headrace/worker" in obj["spec"]["template"]["metadata"]["labels"]
    ]
    assert commands == ["embed", "chat"]


def test_a_sidecar_is_the_same_server_in_the_pod_of_its_worker() -> None:
    shared = {
        obj["metadata"]["name"]: obj for obj in chart.objects(chart.WITH_SERVER) if "template" in obj.get("spec", {})
    }
    apart = {
        obj["metadata"]["name"]: obj for obj in chart.objects(chart.WITH_SIDECAR) if "template" in obj.get("spec", {})
    }
    assert set(shared) - set(apart) == {"demo-engine"}
    server, worker = (made["spec"]["template"]["spec"] for made in (shared["demo-engine"], apart["demo-engine-worker"]))
    (sidecar,) = worker["initContainers"]
    assert sidecar.pop("restartPolicy") == "Always"
    assert [sidecar] == server["containers"]
    assert (worker["nodeSelector"], worker["tolerations"]) == (server["nodeSelector"], server["tolerations"])
    assert {one["name"] for one in sidecar["volumeMounts"]} <= {one["name"] for one in worker["volumes"]}
    assert worker["containers"] == shared["demo-engine-worker"]["spec"]["template"]["spec"]["containers"]
    (registering,) = apart["demo-engine-register"]["spec"]["template"]["spec"]["containers"]
    assert registering["command"][-2:] == ["--url", "http://127.0.0.1:8000"]
