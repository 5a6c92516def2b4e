"""What tenants used and what it cost, by time and by whatever they count by; and the prices of model versions.

Reads the ledger, whose rows the database writes in the transaction that ends a job, and the totals of days into which
its old rows are added up. Knows no API's words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, String, cast, extract, func, literal, or_, select, text, union_all

from store.audit.audit import record
from store.db.database import Database
from store.errors import InvalidRequest, NotFound
from store.payloads.job_payload import CLASS_RANKS, ServiceClass
from store.schema.usage_tables import usage_days, usage_ledger

DETAIL_S = 7 * 86_400.0
"""So long after the record of its job goes, a job's line in the ledger is added to its day's total."""


class Dimension(StrEnum):
    """What usage can be counted by and narrowed to. ``model`` is a version's name, such as ``smollm2@1``."""

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
class Span:
    """``num_buckets`` spans of ``width_s`` seconds, the first beginning at ``start_s`` in Unix seconds."""

    start_s: int
    width_s: int
    num_buckets: int

    @property
    def end_s(self) -> int:
        """Where the last one ends."""
        return self.start_s + self.width_s * self.num_buckets


@dataclass(frozen=True, slots=True)
class Spent:
    """What the jobs of one bucket used that are alike in ``by``. ``cost`` leaves out those that had no price."""

    bucket: int
    by: Mapping[Dimension, Value]
    num_jobs: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: Decimal


def spent(
    db: Database,
    tenant_id: str,
    span: Span,
    *,
    by: Sequence[Dimension] = (),
    only: Mapping[Dimension, Sequence[Value]] = MappingProxyType({}),
) -> list[Spent]:
    """Return what was used, by bucket and by ``by``; buckets in which nothing was are absent.

    A model among ``only`` may be named without its version, which means all of them. What was added up by the day is in
    the bucket in which that day begins, in UTC.
    """
    at_s = extract("epoch", _LEDGER.at)
    bucket = cast(func.floor((at_s - span.start_s) / span.width_s), BigInteger).label("bucket")
    columns = [_EXPRESSIONS[name].label(f"by_{name}") for name in by]
    sums = [func.sum(_LEDGER[name]).label(name) for name in ("input_tokens", "cached_tokens", "output_tokens")]
    cost = func.coalesce(func.sum(_LEDGER.cost), 0).label("cost")
    statement = (
        select(bucket, *columns, func.sum(_LEDGER.num_jobs).label("num_jobs"), *sums, cost)
        .where(_LEDGER.tenant_id == tenant_id)
        .where(_LEDGER.at >= func.to_timestamp(span.start_s), _LEDGER.at < func.to_timestamp(span.end_s))
        .where(*(_is_among(name, values) for name, values in only.items()))
        .group_by(bucket, *columns)
        .order_by(bucket, *columns)
    )
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(statement).mappings().all()
    return [
        Spent(
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


_ADD_UP = text("SELECT headrace_add_up_usage(:tenant_id, :older_than_s, :limit)")


def add_up(db: Database, tenant_id: str, older_than_s: float, limit: int) -> int:
    """Add old lines of a tenant's ledger to their days' totals, at most ``limit``; return how many.

    Those of days that ended over ``older_than_s`` seconds ago, which is a day at least.
    """
    values = {"tenant_id": tenant_id, "older_than_s": float(older_than_s), "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        return int(connection.execute(_ADD_UP, values).scalar_one())


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost: of a prompt, of that part of it that was cached, and of an answer."""

    input: Decimal
    cached_input: Decimal
    output: Decimal

    def __post_init__(self) -> None:
        for amount in (self.input, self.cached_input, self.output):
            if not amount.is_finite() or amount < 0:
                raise InvalidRequest(f"a price is a number from 0 up, not {amount}", param="price")


_SET_PRICE = text("""
INSERT INTO model_prices (model, version, input, cached_input, output)
SELECT model, version, :input, :cached_input, :output FROM model_versions WHERE model = :model AND version = :version
ON CONFLICT (model, version) DO UPDATE SET
    input = EXCLUDED.input, cached_input = EXCLUDED.cached_input, output = EXCLUDED.output, updated_at = now()
RETURNING version
""")


_OLD_PRICE = text("""
SELECT input, cached_input, output FROM model_prices WHERE model = :model AND version = :version FOR UPDATE
""")


def set_price(db: Database, model: str, version: int, price: Price, *, actor: str) -> None:
    """Let jobs of a model version cost this from now on; raise NotFound if there is no such version.

    A job costs what is the price when it ends; what has ended keeps its cost.
    """
    amounts = {"input": price.input, "cached_input": price.cached_input, "output": price.output}
    with db.begin() as connection:
        of = {"model": model, "version": version}
        old = connection.execute(_OLD_PRICE, of).mappings().one_or_none()
        found = connection.execute(_SET_PRICE, of | amounts).scalar_one_or_none()
        if found is None:
            raise NotFound(f"no model {model}@{version}", code="model_not_found", param="model")
        before, after = None if old is None else _told(dict(old)), _told(amounts)
        record(connection, None, actor, "model.priced", f"{model}@{version}", after, before=before, after=after)


def _told(amounts: Mapping[str, Decimal]) -> dict[str, str]:
    """Return amounts as text, 0.5 and 0.50 alike."""
    return {name: f"{amount.normalize():f}" for name, amount in amounts.items()}
