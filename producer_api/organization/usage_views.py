"""What callers see of the usage ledger: OpenAI's pages of time buckets. Reads nothing."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from store.tenants.usage import Dimension, Span, Spent

CURRENCY = "usd"

# The words of OpenAI's `service_tier` for our classes.
_TIERS = {0: "priority", 1: "default", 2: "flex"}


class _Grouped(BaseModel):
    """By what a result was grouped: null where it was not asked for, or the request named none."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None


class CompletionsResult(_Grouped):
    """What generating text used."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    num_model_requests: int
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None


class EmbeddingsResult(_Grouped):
    """What embedding used."""

    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"
    input_tokens: int
    num_model_requests: int
    model: str | None = None


class Amount(BaseModel):
    """Money."""

    value: float
    currency: str = CURRENCY


class CostsResult(_Grouped):
    """What it cost, by the prices that held when each job ended."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Amount
    line_item: str | None = Field(None, description="the model version")


Result = CompletionsResult | EmbeddingsResult | CostsResult


class Bucket(BaseModel):
    """A span of time, and what was used in it: nothing, one result, or one for each group."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[Result]


class UsagePage(BaseModel):
    """Buckets without a gap; ask for the next with ``page=next_page``."""

    object: Literal["page"] = "page"
    data: list[Bucket]
    has_more: bool
    next_page: str | None


def completions(spent: Spent) -> CompletionsResult:
    """Return what generating text used."""
    return CompletionsResult(
        input_tokens=spent.input_tokens,
        input_cached_tokens=spent.cached_tokens,
        output_tokens=spent.output_tokens,
        num_model_requests=spent.num_jobs,
        **_groups(spent),
    )


def embeddings(spent: Spent) -> EmbeddingsResult:
    """Return what embedding used."""
    return EmbeddingsResult(input_tokens=spent.input_tokens, num_model_requests=spent.num_jobs, **_groups(spent))


def costs(spent: Spent) -> CostsResult:
    """Return what it cost."""
    groups = _groups(spent)
    return CostsResult(amount=Amount(value=float(spent.cost)), line_item=groups.pop("model", None), **groups)


def _groups(spent: Spent) -> dict[str, Any]:
    groups: dict[str, Any] = {str(name): value for name, value in spent.by.items()}
    if Dimension.CLASS_RANK in spent.by:
        groups["service_tier"] = _TIERS[groups.pop("class_rank")]
    if Dimension.IS_BATCH in spent.by:
        groups["batch"] = groups.pop("is_batch")
    return groups


def page(span: Span, found: Sequence[Spent], view: Callable[[Spent], Result], next_page: str | None) -> UsagePage:
    """Return the span's buckets, each with what was found for it."""
    results: defaultdict[int, list[Result]] = defaultdict(list)
    for spent in found:
        results[spent.bucket].append(view(spent))
    starts = [span.start_s + number * span.width_s for number in range(span.num_buckets)]
    buckets = [
        Bucket(start_time=start, end_time=start + span.width_s, results=results[number])
        for number, start in enumerate(starts)
    ]
    return UsagePage(data=buckets, has_more=next_page is not None, next_page=next_page)
