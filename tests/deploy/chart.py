"""Renders the chart's small subset of Helm's template language, so that it can be parsed where no Helm is.

Knows .Values, .Release.Name, quote, add, default, toYaml and include with nindent, and on a line of their own if, if
not, range (over a list, or one with ``prepend``), define and end; anything else is an error, which keeps the templates
within the tested subset.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "headrace"
_EXPRESSION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")


def values() -> dict[str, Any]:
    """The chart's default values."""
    return yaml.safe_load((CHART / "values.yaml").read_text())


def _lookup(path: str, scope: dict[str, Any]) -> Any:
    """A value of the chart, or of a range's variable, such as ``$worker.model``; what an element lacks is None."""
    if path in {".Release.Name", "$.Release.Name"}:
        return "demo"
    if match := re.fullmatch(r"\$?\.Values\.([\w.]+)", path):
        node: Any = scope
        for part in match[1].split("."):
            node = node[part]
        return node
    variable, *parts = path.split(".")
    node = scope[variable]
    for part in parts:
        node = node.get(part)
    return node


def _evaluate(expression: str, scope: dict[str, Any]) -> str:
    path = r"(\$\w+|\$?\w*\.[\w.]+)"
    if match := re.fullmatch(rf"{path}(?: \| default {path})?( \| quote)?", expression):
        value = _lookup(match[1], scope)
        if match[2] and not value:
            value = _lookup(match[2], scope)
        return json.dumps(str(value)) if match[3] else str(value)
    if match := re.fullmatch(rf"add {path}(?: {path})? (\d+)", expression):
        return str(sum(_lookup(found, scope) for found in match.groups()[:2] if found) + int(match[3]))
    if match := re.fullmatch(rf"toYaml (?:{path}|\({path} \| default {path}\)) \| nindent (\d+)", expression):
        value = _lookup(match[1] or match[2], scope)
        if match[3] and not value:
            value = _lookup(match[3], scope)
        return _indented(yaml.safe_dump(value).splitlines(), int(match[4]))
    if match := re.fullmatch(r'include "([\w.]+)" [.$] \| nindent (\d+)', expression):
        return _indented("\n".join(_filled(_named_parts()[match[1]], scope)).splitlines(), int(match[2]))
    raise ValueError(f"the chart test does not know the template expression {expression!r}")


def _indented(lines: list[str], columns: int) -> str:
    return "\n" + "\n".join(" " * columns + line for line in lines)


@cache
def _named_parts() -> dict[str, list[str]]:
    """The lines of each ``define``, by its name."""
    parts: dict[str, list[str]] = {}
    for path in (CHART / "templates").glob("_*.tpl"):
        lines = path.read_text().splitlines()
        for index, line in enumerate(lines, start=1):
            if match := re.fullmatch(r'\{\{- define "([\w.]+)" -\}\}', line):
                parts[match[1]] = lines[index : _until_end(lines, index)]
    return parts


def _until_end(lines: list[str], start: int) -> int:
    """The index of the ``end`` of the block whose first line is ``start``."""
    depth = 1
    for index in range(start, len(lines)):
        if re.fullmatch(r"\s*\{\{-? end \}\}", lines[index]):
            depth -= 1
        elif re.match(r"\s*\{\{-? (if|range) ", lines[index]):
            depth += 1
        if not depth:
            return index
    raise ValueError("a block of the template has no end")


def _elements(expression: str, scope: dict[str, Any]) -> list[Any]:
    if match := re.fullmatch(r"prepend (\S+) (\S+)", expression):
        return [_lookup(match[2], scope), *_lookup(match[1], scope)]
    return list(_lookup(expression, scope))


def _filled(lines: list[str], scope: dict[str, Any]) -> list[str]:
    """The lines with their blocks and expressions filled in."""
    filled, index = list[str](), 0
    while index < len(lines):
        line = lines[index]
        is_if = re.fullmatch(r"\s*\{\{-? if (not )?(\$?\w*\.[\w.]+) \}\}", line)
        is_range = re.fullmatch(r"\s*\{\{-? range (\$\w+) := (.+) \}\}", line)
        index += 1
        if not is_if and not is_range:
            filled.append(_EXPRESSION.sub(lambda found: _evaluate(found[1], scope), line))
            continue
        end = _until_end(lines, index)
        inside = lines[index:end]
        if is_if and bool(_lookup(is_if[2], scope)) is not bool(is_if[1]):
            filled += _filled(inside, scope)
        elif is_range:
            for element in _elements(is_range[2], scope):
                filled += _filled(inside, scope | {is_range[1]: element})
        index = end + 1
    return filled


def render(template: str, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that one template makes with these values."""
    lines = _filled(template.splitlines(), scope)
    return [document for document in yaml.safe_load_all("\n".join(lines)) if document]


WITH_SERVER = {"engine": {"enabled": True}}
"""Values for a vLLM of the chart, beside the workers with Headrace's own engine."""

WITH_SIDECAR = {"engine": {"enabled": True, "server": {"sidecar": True}}}
"""Values for a vLLM in the pod of each of its workers."""

WITH_NODES = {
    "engine": {
        "enabled": True,
        "server": {"tensorParallelSize": 8, "multiNode": {"enabled": True}, "args": ["--max-model-len=32768"]},
    },
    "networkPolicy": {"metrics": {"from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]}},
}
"""Values for a vLLM on several nodes."""

WITH_PLACES = {
    "gateway": {"enabled": True, "host": "headrace.example", "parents": [{"name": "public", "namespace": "gateways"}]},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "spread": [{"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}],
    "api": {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}},
    "worker": {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
                }
            }
        }
    },
    "host": {"enabled": True},
    "engine": {"enabled": True, "server": {"sidecar": True}},
}
"""Values for a Gateway, the Prometheus operator, and pods that are spread over zones or kept to some nodes."""

WITH_MORE = {
    "worker": {
        "replicas": 0,
        "autoscaling": {"enabled": True},
        "more": [
            {
                "name": "worker-chat",
                "model": "chat",
                "source": "/models/chat",
                "replicas": 0,
                "autoscaling": {"enabled": True, "least": 1, "most": 2},
                "image": "headrace-worker:0.1.0-cuda",
                "nodeSelector": {"gpu": "yes"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "resources": {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 1}},
            },
            {
                "name": "worker-embed",
                "model": "embed",
                "source": "/models/embed",
                "replicas": 2,
                "autoscaling": {"enabled": False, "least": 0, "most": 1},
            },
        ],
    },
    "host": {"enabled": True, "models": [{"name": "small", "model": "small", "source": "/models/small"}]},
    "ingress": {"enabled": True, "host": "headrace.example"},
}
"""Values for three models with workers of their own, a model host and an ingress."""

EVERYTHING = WITH_SERVER | WITH_MORE
"""Values with every kind of pod."""

WITH_AUTOSCALING = {"worker": {"replicas": 0, "autoscaling": {"enabled": True}}}
"""Values for workers whose number KEDA sets."""


_CUSTOM = ("keda.sh/", "monitoring.coreos.com/", "gateway.networking.k8s.io/", "leaderworkerset.x-k8s.io/")
_SCHEMA = json.loads(Path(__file__).with_name("custom_resources.json").read_text())
_KINDS = {
    kind: jsonschema_rs.validator_for({**_SCHEMA, "allOf": [{"$ref": f"#/kinds/{kind}"}]}) for kind in _SCHEMA["kinds"]
}


def is_custom(obj: dict[str, Any]) -> bool:
    """True for an object of a kind that is no part of Kubernetes."""
    return obj["apiVersion"].startswith(_CUSTOM)


def complaint(obj: dict[str, Any]) -> str | None:
    """Return what is wrong with a custom object; None if nothing is. The pods of its templates are not looked at."""
    kind = _KINDS.get(obj["kind"])
    if kind is None:
        return "tests/deploy/custom_resources.json does not know its kind"
    return next((f"{'/'.join(map(str, one.instance_path))}: {one.message}" for one in kind.iter_errors(obj)), None)


def pods_of_group(obj: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pods that a LeaderWorkerSet has templates of; of other objects none."""
    templates = obj.get("spec", {}).get("leaderWorkerTemplate", {})
    made = {name: one for name, one in templates.items() if name in {"leaderTemplate", "workerTemplate"}}
    return [
        {"apiVersion": "v1", "kind": "Pod", **one, "metadata": {**one["metadata"], "name": name.lower()}}
        for name, one in made.items()
    ]


def with_changes(given: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return values with others merged into them, as Helm does."""
    merged = {
        name: with_changes(given.get(name, {}), value) if isinstance(value, dict) and value else value
        for name, value in changes.items()
    }
    return given | merged


def objects(changes: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every object of the chart with its default values, and ``changes`` to them."""
    scope = with_changes(values(), changes or {})
    return [obj for path in sorted((CHART / "templates").glob("*.yaml")) for obj in render(path.read_text(), scope)]
