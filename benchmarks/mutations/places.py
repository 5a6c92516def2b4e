"""Where the product uses a piece of its code: the functions that a test must call to meet a mutant."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from benchmarks.mutations.mutants import Mutant

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "migrations", "models", "policy", "producer_api", "prompts", "store", "workers")


def places_of(mutant: Mutant) -> set[str]:
    """Return "file:function" of the changed function, or of the functions that use what the statement defines."""
    if mutant.function:
        return {f"{mutant.path}:{mutant.function}"}
    if not mutant.path.endswith(".py"):
        name = Path(mutant.path).name if mutant.path.endswith(".lua") else "forward"
        return {place for path, tree in _modules() if name in (ROOT / path).read_text() for place in _using(path, tree)}
    tree = dict(_modules())[mutant.path]
    names = _closure(tree, set(mutant.names))
    places = set(_using(mutant.path, tree, names))
    module = mutant.path.removesuffix(".py").replace("/", ".")
    for path, other in _modules():
        local = {
            alias.asname or alias.name
            for node in other.body
            if isinstance(node, ast.ImportFrom) and node.module == module
            for alias in node.names
            if alias.name in names
        }
        if local:
            places.update(_using(path, other, _closure(other, local)))
    return places


@functools.cache
def _modules() -> list[tuple[str, ast.Module]]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in files]


def _closure(tree: ast.Module, names: set[str]) -> set[str]:
    """Add the names that statements at module level make of these."""
    while True:
        more = {
            node.id
            for statement in tree.body
            if not isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and _uses(statement, names)
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        if more <= names:
            return names
        names = names | more


def _uses(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id in names for inner in ast.walk(node))


def _using(path: str, tree: ast.Module, names: set[str] | None = None) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (names is None or _uses(node, names)):
            yield f"{path}:{node.name}"
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                whole = names is None or node.name in names
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and (
                    whole or _uses(inner, names or set())
                ):
                    yield f"{path}:{node.name}.{inner.name}"
