"""Usage and cost of tenants by time and by dimension, and the prices of model versions.

Reads the usage ledger, which a trigger writes in the transaction that ends a job, and the daily totals into which old
rows of the ledger are rolled up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, String, cast, extract, func, literal, or_, select, text, union_all

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.schema.usage_tables import usage_days, usage_ledger

DETAIL_S = 7 * 86_400.0
"""Seconds between the deletion of a job's row and the roll-up of its line in the ledger into the day's total."""


class Dimension(StrEnum):
    """Dimensions to group usage by and to filter it by. ``model`` is the name of a version, such as ``smollm2@1``."""

    TASK = "task"
    MODEL = "model"
    API_KEY = "api_key_id"
    PROJECT = "project_id"
    USER = "user_id"
    CLASS_RANK = "class_rank"
    IS_BATCH = "is_batch"


_USED = ("api_key_id", "project_id", "user_id", "task", "model", "model_version", "class_rank", "at", "tenant_id")
_SUMS = ("input_tokens", "cached_tokens", "output_tokens", "cost")
_LEDGER = (
    union_all(
        select(*(usage_ledger.c[name] for name in _USED + _SUMS), literal(1, BigInteger).label("num_jobs")),
        select(*(usage_days.c[name] for name in (*_USED, *_SUMS, "num_jobs"))),
    )
    .subquery("used")
    .c
)
_EXPRESSIONS: Mapping[Dimension, ColumnElement[Any]] = {
    **{name: _LEDGER[name] for name in Dimension if name in _LEDGER},
    Dimension.MODEL: _LEDGER.model + "@" + cast(_LEDGER.model_version, String),
    Dimension.IS_BATCH: _LEDGER.class_rank == CLASS_RANKS[ServiceClass.BATCH],
}

Value = str | int | bool | None


@dataclass(frozen=True, slots=True)
class TimeBuckets:
    """``num_buckets`` intervals of ``width_s`` seconds; the first one starts at ``start_s``, in Unix seconds."""

    start_s: int
    width_s: int
    num_buckets: int

    @property
    def end_s(self) -> int:
        """End of the last interval, in Unix seconds."""
        return self.start_s + self.width_s * self.num_buckets


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """Usage of the jobs of one bucket with the same values ``by``. ``cost``: of the jobs that had a price."""

    bucket: int
    by: Mapping[Dimension, Value]
    num_jobs: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: Decimal


# Rolls old rows of the ledger up into daily totals.
_ROLL_UP = text("SELECT headrace_add_up_usage(:tenant_id, :older_than_s, :limit)")

# Rolls a partition of the ledger up, and drops it.
_ADD_UP_DAY = text("SELECT headrace_add_up_day(:older_than_s)")

# Stores a price, if the model version exists.
_SET_PRICE = text("""
INSERT INTO model_prices (model, version, input, cached_input, output)
SELECT model, version, :input, :cached_input, :output FROM model_versions WHERE model = :model AND version = :version
ON CONFLICT (model, version) DO UPDATE SET
    input = EXCLUDED.input, cached_input = EXCLUDED.cached_input, output = EXCLUDED.output, updated_at = now()
RETURNING version
""")

# The former price, locked.
_OLD_PRICE = text("""
SELECT input, cached_input, output FROM model_prices WHERE model = :model AND version = :version FOR UPDATE
""")


def usage_by(
    db: Database,
    tenant_id: str,
    buckets: TimeBuckets,
    *,
    by: Sequence[Dimension] = (),
    only: Mapping[Dimension, Sequence[Value]] = MappingProxyType({}),
) -> list[UsageGroup]:
    """Return usage by bucket and by the dimensions ``by``. Empty buckets are left out.

    A model in ``only`` without a version means all its versions. A daily total is in the bucket in which its day
    starts, in UTC.
    """
    at_s = extract("epoch", _LEDGER.at)
    bucket = cast(func.floor((at_s - buckets.start_s) / buckets.width_s), BigInteger).label("bucket")
    columns = [_EXPRESSIONS[name].label(f"by_{name}") for name in by]
    sums = [func.sum(_LEDGER[name]).label(name) for name in ("input_tokens", "cached_tokens", "output_tokens")]
    cost = func.coalesce(func.sum(_LEDGER.cost), 0).label("cost")
    statement = (
        select(bucket, *columns, func.sum(_LEDGER.num_jobs).label("num_jobs"), *sums, cost)
        .where(_LEDGER.tenant_id == tenant_id)
        .where(_LEDGER.at >= func.to_timestamp(buckets.start_s), _LEDGER.at < func.to_timestamp(buckets.end_s))
        .where(*(_is_among(name, values) for name, values in only.items()))
        .group_by(bucket, *columns)
        .order_by(bucket, *columns)
    )
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(statement).mappings().all()
    return [
        UsageGroup(
            bucket=row["bucket"],
            by={name: row[f"by_{name}"] for name in by},
            num_jobs=int(row["num_jobs"]),
            input_tokens=int(row["input_tokens"]),
            cached_tokens=int(row["cached_tokens"]),
            output_tokens=int(row["output_tokens"]),
            cost=Decimal(row["cost"]),
        )
        for row in rows
    ]


def _is_among(name: Dimension, values: Sequence[Value]) -> ColumnElement[bool]:
    found = _EXPRESSIONS[name].in_(values)
    return or_(found, _LEDGER.model.in_(values)) if name is Dimension.MODEL else found


def roll_up(db: Database, tenant_id: str, older_than_s: float, limit: int) -> int:
    """Roll up at most ``limit`` lines of a tenant's ledger into daily totals. Returns their number.

    Only days that ended more than ``older_than_s`` seconds ago are rolled up. The minimum is one day.
    """
    values = {"tenant_id": tenant_id, "older_than_s": float(older_than_s), "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        return int(connection.execute(_ROLL_UP, values).scalar_one())


def add_up_day(db: Database, older_than_s: float) -> str | None:
    """Roll up the oldest day of the ledger, of all tenants, and drop its partition; return its name.

    None: no partition ended more than ``older_than_s`` seconds ago. The minimum is one day. Lines that are in no day's
    partition are left to ``roll_up``.
    """
    with db.autocommit() as connection:
        name: str | None = connection.execute(_ADD_UP_DAY, {"older_than_s": float(older_than_s)}).scalar_one()
    return name


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a million tokens: of the prompt, of its cached part, and of the output."""

    input: Decimal
    cached_input: Decimal
    output: Decimal

    def __post_init__(self) -> None:
        for amount in (self.input, self.cached_input, self.output):
            if not amount.is_finite() or amount < 0:
                raise InvalidRequest(f"a price is a number from 0 up, not {amount}", param="price")


def set_price(db: Database, model: str, version: int, price: Price, *, actor: str) -> None:
    """Set the price of a model version. Raises NotFound if there is no such version.

    A job has the price of the time when it ends. The cost of ended jobs does not change.
    """
    amounts = {"input": price.input, "cached_input": price.cached_input, "output": price.output}
    with db.begin() as connection:
        of = {"model": model, "version": version}
        old = connection.execute(_OLD_PRICE, of).mappings().one_or_none()
        found = connection.execute(_SET_PRICE, of | amounts).scalar_one_or_none()
        if found is None:
            raise NotFound(f"no model {model}@{version}", code="model_not_found", param="model")
        before, after = None if old is None else _audit_fields(dict(old)), _audit_fields(amounts)
        record(connection, None, actor, "model.priced", f"{model}@{version}", after, before=before, after=after)


def _audit_fields(amounts: Mapping[str, Decimal]) -> dict[str, str]:
    """Return amounts as text in normal form: 0.5 and 0.50 are equal."""
    return {name: f"{amount.normalize():f}" for name, amount in amounts.items()}
