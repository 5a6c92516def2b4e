"""Renders the chart's small subset of Helm's template language, so that it can be parsed where no Helm is.

Knows .Values, .Release.Name, quote, add, toYaml with nindent, and if/end on a line of their own; anything else is an
error, which keeps the templates within the tested subset.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "headrace"
_EXPRESSION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")


def values() -> dict[str, Any]:
    """The chart's default values."""
    return yaml.safe_load((CHART / "values.yaml").read_text())


def _lookup(path: str, scope: dict[str, Any]) -> Any:
    if path == ".Release.Name":
        return "demo"
    node: Any = scope
    for part in path.removeprefix(".Values.").split("."):
        node = node[part]
    return node


def _evaluate(expression: str, scope: dict[str, Any]) -> str:
    if match := re.fullmatch(r"(\.[\w.]+)", expression):
        return str(_lookup(match[1], scope))
    if match := re.fullmatch(r"(\.[\w.]+) \| quote", expression):
        return json.dumps(str(_lookup(match[1], scope)))
    if match := re.fullmatch(r"add (\.[\w.]+) (\d+)", expression):
        return str(_lookup(match[1], scope) + int(match[2]))
    if match := re.fullmatch(r"toYaml (\.[\w.]+) \| nindent (\d+)", expression):
        block = yaml.safe_dump(_lookup(match[1], scope)).rstrip()
        return "\n" + "\n".join(" " * int(match[2]) + line for line in block.splitlines())
    raise ValueError(f"the chart test does not know the template expression {expression!r}")


def render(template: str, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that one template makes with these values."""
    lines, keep = [], [True]
    for line in template.splitlines():
        if match := re.fullmatch(r"\s*\{\{-? if (\.[\w.]+) \}\}", line):
            keep.append(bool(_lookup(match[1], scope)))
        elif re.fullmatch(r"\s*\{\{-? end \}\}", line):
            keep.pop()
        elif all(keep):
            lines.append(_EXPRESSION.sub(lambda found: _evaluate(found[1], scope), line))
    return [document for document in yaml.safe_load_all("\n".join(lines)) if document]


WITH_SERVER = {"engine": {"enabled": True}}
"""Values for a vLLM of the chart, beside the workers with Headrace's own engine."""

WITH_AUTOSCALING = {"worker": {"replicas": 0, "autoscaling": {"enabled": True}}}
"""Values for workers whose number KEDA sets."""


def with_changes(given: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return values with others merged into them, as Helm does."""
    merged = {
        name: with_changes(given[name], value) if isinstance(value, dict) and value else value
        for name, value in changes.items()
    }
    return given | merged


def objects(changes: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every object of the chart with its default values, and ``changes`` to them."""
    scope = with_changes(values(), changes or {})
    return [obj for path in sorted((CHART / "templates").glob("*.yaml")) for obj in render(path.read_text(), scope)]
