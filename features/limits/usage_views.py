"""Response models of usage: OpenAI's pages of time buckets. No I/O."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from headrace.store.tenants.usage import Dimension, TimeBuckets, UsageGroup

CURRENCY = "usd"

# OpenAI's `service_tier` for each service class.
_TIERS = {0: "priority", 1: "default", 2: "flex"}


class _Grouped(BaseModel):
    """The values that a result is grouped by; null if not grouped by it, or if the request had no value."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None


class CompletionsResult(_Grouped):
    """Usage of text generation."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    num_model_requests: int
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None


class EmbeddingsResult(_Grouped):
    """Usage of embeddings."""

    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"
    input_tokens: int
    num_model_requests: int
    model: str | None = None


class Amount(BaseModel):
    """Money."""

    value: float
    currency: str = CURRENCY


class CostsResult(_Grouped):
    """Cost, by the prices at the end of each job."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Amount
    line_item: str | None = Field(None, description="the model version")


Result = CompletionsResult | EmbeddingsResult | CostsResult


class Bucket(BaseModel):
    """A time bucket with its results: none, one, or one per group."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[Result]


class UsagePage(BaseModel):
    """Consecutive buckets; the next page is ``page=next_page``."""

    object: Literal["page"] = "page"
    data: list[Bucket]
    has_more: bool
    next_page: str | None


def completions(spent: UsageGroup) -> CompletionsResult:
    """Return the usage of text generation."""
    return CompletionsResult(
        input_tokens=spent.input_tokens,
        input_cached_tokens=spent.cached_tokens,
        output_tokens=spent.output_tokens,
        num_model_requests=spent.num_jobs,
        **_groups(spent),
    )


def embeddings(spent: UsageGroup) -> EmbeddingsResult:
    """Return the usage of embeddings."""
    return EmbeddingsResult(input_tokens=spent.input_tokens, num_model_requests=spent.num_jobs, **_groups(spent))


def costs(spent: UsageGroup) -> CostsResult:
    """Return the cost."""
    groups = _groups(spent)
    return CostsResult(amount=Amount(value=float(spent.cost)), line_item=groups.pop("model", None), **groups)


def _groups(spent: UsageGroup) -> dict[str, Any]:
    groups: dict[str, Any] = {str(name): value for name, value in spent.by.items()}
    if Dimension.CLASS_RANK in spent.by:
        groups["service_tier"] = _TIERS[groups.pop("class_rank")]
    if Dimension.IS_BATCH in spent.by:
        groups["batch"] = groups.pop("is_batch")
    return groups


def page(
    span: TimeBuckets, found: Sequence[UsageGroup], view: Callable[[UsageGroup], Result], next_page: str | None
) -> UsagePage:
    """Return the buckets of the span with their results."""
    results: defaultdict[int, list[Result]] = defaultdict(list)
    for spent in found:
        results[spent.bucket].append(view(spent))
    starts = [span.start_s + number * span.width_s for number in range(span.num_buckets)]
    buckets = [
        Bucket(start_time=start, end_time=start + span.width_s, results=results[number])
        for number, start in enumerate(starts)
    ]
    return UsagePage(data=buckets, has_more=next_page is not None, next_page=next_page)
