"""The table of error codes is complete, and has no code that nothing raises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from store.error_codes import ERROR_CODES
from tests.producer_api.server.test_error_table import TABLE

ROOT = Path(__file__).parents[2]
PACKAGES = ("store", "producer_api", "workers", "models", "policy", "prompts")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stem != "error_codes"]


def raised(path: Path) -> Iterator[str]:
    """Yield the codes in ``code="..."`` of a call and in ``code = "..."`` or ``default_code = "..."`` of a class."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.keyword(arg="code", value=value):
                pass
            case ast.Assign(targets=[ast.Name(id="code" | "default_code")], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id="code" | "default_code"), value=ast.expr() as value):
                pass
            case _:
                continue
        branches = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
        yield from (one.value for one in branches if isinstance(one, ast.Constant) and isinstance(one.value, str))


def test_every_code_of_the_source_is_in_the_table() -> None:
    found = {code for path in SOURCES for code in raised(path)}
    assert len(found) > 40
    assert found - ERROR_CODES.keys() == set(), "add the code and its meaning to store/error_codes.py"


def test_every_code_of_the_table_stands_in_the_source() -> None:
    words = {word for path in SOURCES for word in re.findall(r"[\"']([a-z_]+)[\"']", path.read_text())}
    assert ERROR_CODES.keys() - words == set(), "nothing raises it: remove it from store/error_codes.py"


def test_the_tested_answers_have_codes_of_the_table() -> None:
    assert TABLE.keys() - ERROR_CODES.keys() == set()
