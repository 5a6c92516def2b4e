"""The log events in the source, found by its syntax tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "cli",
    "features",
    "headrace",
    "migrations",
    "models",
    "policy",
    "producer_api",
    "prompts",
    "store",
    "workers",
)
# It runs in Celery apps of users and writes into their logs.
_NOT_OURS = ROOT / "headrace" / "celery.py"
_LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_LOGGERS = frozenset({"log", "_log", "logger", "_uncaught"})


def logged() -> Iterator[tuple[str, str | None]]:
    """Yield the place of each call of a logger, and the name of its event; None if that is no fixed name."""
    trees = {
        path: ast.parse(path.read_text())
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != _NOT_OURS
    }
    constants = dict(_constant(node) for tree in trees.values() for node in tree.body if isinstance(node, ast.Assign))
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _is_logger(node.func):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", _event(node.args[0] if node.args else None, constants)


def _constant(node: ast.Assign) -> tuple[str, object]:
    name = node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""
    return name, node.value.value if isinstance(node.value, ast.Constant) else None


def _is_logger(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in _LEVELS
        and isinstance(function.value, ast.Name)
        and function.value.id in _LOGGERS
    )


def _event(first: ast.expr | None, constants: dict[str, object]) -> str | None:
    """Return the first word of the text: the standard library's records have their fields behind it."""
    value = first.value if isinstance(first, ast.Constant) else None
    value = constants.get(first.id) if isinstance(first, ast.Name) else value
    word = value.partition(" ")[0] if isinstance(value, str) else ""
    return word if re.fullmatch(r"[a-z][a-z_.]*[a-z]", word) else None
