"""The table of error codes is complete, has no code that nothing raises, and each error has its code."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.store import errors
from headrace.store.error_codes import ERROR_CODES
from tests.producer_api.server.test_error_table import TABLE

ROOT = Path(__file__).parents[2]
PACKAGES = ("store", "producer_api", "workers", "models", "policy", "prompts", "features")
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


@pytest.mark.whole
def test_every_code_of_the_table_stands_in_the_source() -> None:
    words = {word for path in SOURCES for word in re.findall(r"[\"']([a-z_]+)[\"']", path.read_text())}
    assert ERROR_CODES.keys() - words == set(), "nothing raises it: remove it from store/error_codes.py"


def test_the_tested_answers_have_codes_of_the_table() -> None:
    assert TABLE.keys() - ERROR_CODES.keys() == set()


CODES = {
    errors.HeadraceError: "internal_error",
    errors.RequestError: "invalid_value",
    errors.InvalidRequest: "invalid_value",
    errors.Unauthenticated: "invalid_api_key",
    errors.Forbidden: "insufficient_scope",
    errors.NotFound: "not_found",
    errors.Gone: "result_expired",
    errors.Conflict: "conflict",
    errors.PreconditionFailed: "precondition_failed",
    errors.IdempotencyKeyReused: "idempotency_key_reused",
    errors.TooLarge: "request_too_large",
    errors.Unavailable: "no_capacity",
    errors.NoWorker: "no_worker",
    errors.StatementTimeout: "database_unavailable",
    errors.QuotaExceeded: "quota_exceeded",
    errors.CannotOpen: "encryption_key_missing",
    errors.SettingsError: "invalid_settings",
    errors.ModelLoadError: "model_load_failed",
    errors.CannotLoadHere: "model_load_failed",
    errors.VersionRejected: "model_rejected",
}


def test_each_error_has_its_code_and_keeps_what_it_was_given() -> None:
    assert {kind: kind("why").code for kind in CODES} == CODES
    limited = errors.RateLimited("why", retry_after_s=3.5, param="a")
    assert (limited.code, limited.retry_after_s, limited.param, str(limited)) == (
        "rate_limit_exceeded",
        3.5,
        "a",
        "why",
    )
    assert errors.RateLimited("why", retry_after_s=1, code="queue_full").code == "queue_full"
    assert errors.QuotaExceeded("why").retry_after_s == math.inf
    assert [kind("why").retry_after_s for kind in (errors.Unavailable, errors.NoWorker, errors.StatementTimeout)] == [
        1.0,
        10.0,
        1.0,
    ]
    assert (errors.NoWorker("why", param="model").param, errors.Conflict("why", code="x", param="y").param) == (
        "model",
        "y",
    )
    assert issubclass(errors.QuotaExceeded, errors.RateLimited)
    assert issubclass(errors.NoWorker, errors.Unavailable)
    assert not issubclass(errors.Unavailable, errors.RequestError)
