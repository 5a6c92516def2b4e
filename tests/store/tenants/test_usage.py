"""Usage by time and by dimension, from rows of the ledger and from the totals of days."""

from decimal import Decimal
from typing import Any

import pytest

from headrace.store.db.database import Database
from headrace.store.tenants.usage import Dimension, TimeBuckets, UsageGroup, roll_up, usage_by
from tests.store.making import Query

START = 1_700_000_000
BUCKETS = TimeBuckets(START, 60, 2)


@pytest.fixture
def ledger(tenant: str, other_tenant: str, query: Query) -> str:
    """Jobs of two models at the edges of two minutes, and one of another tenant. Returns the tenant."""
    rows: list[tuple[str, int, dict[str, Any]]] = [
        (tenant, -1, {}),
        (tenant, 0, {"cost": 2, "cached_tokens": 1}),
        (tenant, 59, {"model_version": 2, "class_rank": 2, "user_id": "mia"}),
        (tenant, 60, {"model": "large", "task": "embed", "cost": Decimal("0.5")}),
        (tenant, 119, {"api_key_id": "key_2", "project_id": "proj_1"}),
        (tenant, 120, {}),
        (other_tenant, 30, {}),
    ]
    for number, (owner, second, changes) in enumerate(rows):
        values: dict[str, Any] = {
            "job_id": f"job_{number}",
            "tenant_id": owner,
            "api_key_id": "key_1",
            "project_id": None,
            "user_id": None,
            "task": "generate",
            "model": "tiny",
            "model_version": 1,
            "class_rank": 1,
            "state": "succeeded",
            "input_tokens": 10,
            "cached_tokens": 0,
            "output_tokens": 3,
            "cost": None,
            **changes,
        }
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        query(
            f"INSERT INTO usage_ledger ({names}, at) VALUES ({marks}, to_timestamp(:second))",
            second=START + second,
            **values,
        )
    return tenant


def group(bucket: int, num_jobs: int, cost: str = "0", cached: int = 0, **by: Any) -> UsageGroup:
    of = {Dimension(name): value for name, value in by.items()}
    return UsageGroup(bucket, of, num_jobs, 10 * num_jobs, cached, 3 * num_jobs, Decimal(cost))


def test_a_bucket_has_its_first_second_and_not_that_of_the_next(db: Database, ledger: str) -> None:
    assert usage_by(db, ledger, BUCKETS) == [group(0, 2, "2", 1), group(1, 2, "0.5")]
    assert usage_by(db, ledger, TimeBuckets(START - 60, 60, 1)) == [group(0, 1)]
    assert usage_by(db, ledger, TimeBuckets(START + 600, 60, 1)) == [], "empty buckets are left out"


def test_usage_is_grouped_and_chosen_by_each_dimension(db: Database, ledger: str) -> None:
    whole = TimeBuckets(START, 120, 1)

    def by(name: Dimension) -> list[Any]:
        return [(one.by[name], one.num_jobs) for one in usage_by(db, ledger, whole, by=[name])]

    assert {name: by(name) for name in Dimension} == {
        Dimension.TASK: [("embed", 1), ("generate", 3)],
        Dimension.MODEL: [("large@1", 1), ("tiny@1", 2), ("tiny@2", 1)],
        Dimension.API_KEY: [("key_1", 3), ("key_2", 1)],
        Dimension.PROJECT: [("proj_1", 1), (None, 3)],
        Dimension.USER: [("mia", 1), (None, 3)],
        Dimension.CLASS_RANK: [(1, 3), (2, 1)],
        Dimension.IS_BATCH: [(False, 3), (True, 1)],
    }

    def num(**only: list[Any]) -> int:
        chosen = {Dimension(name): values for name, values in only.items()}
        return sum(one.num_jobs for one in usage_by(db, ledger, whole, only=chosen))

    assert (num(model=["tiny"]), num(model=["tiny@2"]), num(model=["tiny@2", "large"])) == (3, 1, 2)
    assert (num(api_key_id=["key_2"]), num(user_id=["mia"]), num(is_batch=[True]), num(task=["rank"])) == (1, 1, 1, 0)
    assert num(model=["tiny"], api_key_id=["key_1"]) == 2


def test_days_that_are_added_up_say_the_same(db: Database, ledger: str, other_tenant: str, query: Query) -> None:
    day = TimeBuckets(START - START % 86_400, 86_400, 1)
    before = usage_by(db, ledger, day, by=[Dimension.MODEL])
    assert [roll_up(db, ledger, 86_400.0, 4), roll_up(db, ledger, 86_400.0, 4)] == [4, 2]
    assert query("SELECT tenant_id FROM usage_ledger") == [{"tenant_id": other_tenant}]
    assert usage_by(db, ledger, day, by=[Dimension.MODEL]) == before
