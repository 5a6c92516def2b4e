"""The operator's word on limits: ``headrace limits set`` and ``show``."""

from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from headrace.cli.tree import app
from headrace.features.limits.limits_verb import money
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import authenticate, create_key, create_tenant, find_tenant
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits


def test_the_operator_sets_limits_and_sees_them(
    tmp_path: Path, settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    create_tenant(db, "acme")

    def limits(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["limits", *arguments, "--tenant", "acme"])
        return done.exception.message if isinstance(done.exception, HeadraceError) else done.output

    said = limits("set", "--monthly-cost", "12.50", "--concurrent-jobs", "8")
    assert "12.50 (operator 12.50); used: 0" in said
    said = limits("set", "--concurrent-jobs", "default")
    assert "12.50 (operator 12.50)" in said, "what is not named stays"
    assert "concurrent_jobs          no limit" in said
    assert "input_tokens_per_minute  no limit" in said
    key = create_key(db, find_tenant(db, "acme"), "ci", ["jobs:read"], actor="tests")
    assert "input_tokens_per_minute  2000000 (default 2000000)" in limits("show", "--key", authenticate(db, key).key_id)
    shown = orjson.loads(limits("show", "--json"))
    assert (shown["holds"]["monthly_cost"], shown["default_of_each_key"]["requests_per_minute"]) == ("12.50", 6000)
    numbers = {
        "requests_per_minute": 1,
        "input_tokens_per_minute": 2,
        "concurrent_jobs": 3,
        "queued_tokens": 4,
        "monthly_cost": "5",
        "live_batches": 6,
        "concurrent_streams": 7,
    }
    key_id = authenticate(db, key).key_id
    words = [word for name, number in numbers.items() for word in (f"--{name.replace('_', '-')}", str(number))]
    own = Limits(queued_tokens=2)
    set_limits(db, find_tenant(db, "acme"), key_id, own, set_by=SetBy.TENANT, actor="tests")
    assert orjson.loads(limits("set", *words, "--key", key_id, "--json")) == {
        "tenant": find_tenant(db, "acme"),
        "key": key_id,
        "holds": numbers | {"queued_tokens": 2},
        "default": {"requests_per_minute": 6000, "input_tokens_per_minute": 2_000_000, "concurrent_streams": 1000},
        "operator": numbers,
        "own": {"queued_tokens": 2},
        "default_of_each_key": {},
        "used": {"concurrent_jobs": 0, "queued_tokens": 0, "live_batches": 0, "cost": "0", "reserved_cost": "0"},
    }
    told = limits("show", "--key", key_id)
    assert told.startswith(f"{key_id}\n")
    assert "queued_tokens            2 (operator 4, own 2); used: 0" in told
    assert list_entries(db, find_tenant(db, "acme"))[0].actor == "headrace limits"
    assert orjson.loads(limits("show", "--json"))["operator"] == {"monthly_cost": "12.50"}, (
        "only the key's have changed"
    )
    assert "name a limit" in limits("set")
    assert "'default'" in limits("set", "--queued-tokens", "many")
    assert "from 0" in limits("set", "--queued-tokens", "-1")
    assert "no API key key_0" in limits("show", "--key", "key_0")


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0.000015300000000000000", "0.000015"),
        ("0E-21", "0"),
        ("12.50", "12.5"),
        ("120", "120"),
        ("1E-9", "less than 0.000001"),
    ],
)
def test_money_has_no_more_digits_than_people_read(amount: str, shown: str) -> None:
    assert money(Decimal(amount)) == shown
