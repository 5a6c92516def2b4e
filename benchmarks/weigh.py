"""``make weigh``: the size of the project. A code line has a token that is no comment and no docstring."""

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

from headrace.store.settings import Settings

ROOT = Path(__file__).parents[1]
BESIDE = ("cli", "headrace", "migrations", "models", "policy")
"""Folders that are neither core nor a feature: programs, the client, and what computes."""

_NO_CODE = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> int:
    """Return the number of lines of code in a module."""
    strings = [
        one
        for node in ast.walk(ast.parse(source))
        if isinstance(node, _WITH_DOCSTRING)
        for one in node.body
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str)
    ]
    told = {line for one in strings for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)}
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.type not in _NO_CODE]
    return len({line for one in tokens for line in range(one.start[0], one.end[0] + 1)} - told)


def feature_imports(source: str) -> int:
    """Return how many statements of a module import from a feature."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return sum("headrace.features" in ast.unparse(one) for one in imports)


def subject(path: str) -> str:
    """Return the row of a module of the product: a feature by its folder, else the folder at the top."""
    top, second, *more = path.split("/")
    return f"feature {second}" if top == "features" and more else top


def main() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sources = {name: (ROOT / name).read_text() for name in listed.split() if not (ROOT / name).is_symlink()}
    tops = {"features", "store", "producer_api", "prompts", "workers", *BESIDE}
    product = {name: text for name, text in sources.items() if name.partition("/")[0] in tops}
    lines, modules = Counter[str](), Counter[str]()
    for name, text in product.items():
        lines[subject(name)] += code_lines(text)
        modules[subject(name)] += 1
    for name in sorted(lines, key=lambda one: (one.partition(" ")[0], -lines[one])):
        print(f"{name:28} {lines[name]:7,} lines {modules[name]:5} modules")
    core = [name for name in lines if name not in BESIDE and " " not in name and name != "features"]
    outside = [text for name, text in product.items() if not name.startswith("features/")]
    tests = [text for name, text in sources.items() if name.startswith("tests/")]
    for name, count in {
        "product, code lines": sum(lines.values()),
        f"core ({', '.join(core)})": sum(lines[name] for name in core),
        "imports of features by it": sum(map(feature_imports, outside)),
        "settings": len(Settings.model_fields),
        "tests, code lines": sum(map(code_lines, tests)),
        "tests": sum(len(re.findall(r"^ *(?:async )?def test_", text, re.M)) for text in tests),
    }.items():
        print(f"{name:50} {count:7,}")


if __name__ == "__main__":
    main()
