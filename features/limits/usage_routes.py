"""Routes of a tenant's usage and costs in time buckets, in the format of OpenAI's organization routes.

Buckets are whole minutes, hours or days in UTC: a start or end inside a bucket includes the whole bucket.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.limits import usage_views
from headrace.features.limits.usage_views import Result, UsagePage
from headrace.producer_api.access.auth import UsageReader
from headrace.producer_api.http.requests import RuntimeOf
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import InvalidRequest
from headrace.store.tenants import usage
from headrace.store.tenants.api_keys import Principal
from headrace.store.tenants.usage import Dimension, TimeBuckets, UsageGroup, Value

router = APIRouter(prefix="/v1/organization", tags=["usage"], responses=DOCUMENTED)

Width = Literal["1m", "1h", "1d"]

_WIDTHS_S: Mapping[Width, int] = {"1m": 60, "1h": 3600, "1d": 86_400}
_LIMITS: Mapping[Width, tuple[int, int]] = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
_COST_LIMITS: Mapping[Width, tuple[int, int]] = {**_LIMITS, "1d": (7, 180)}
_PAGE = re.compile(r"page_(\d{1,11})")

_FILTERS = {
    "models": Dimension.MODEL,
    "project_ids": Dimension.PROJECT,
    "user_ids": Dimension.USER,
    "api_key_ids": Dimension.API_KEY,
}
_ALIKE = {"project_id": Dimension.PROJECT, "user_id": Dimension.USER, "api_key_id": Dimension.API_KEY}
_BY_MODEL = {**_ALIKE, "model": Dimension.MODEL}
_BY_COMPLETION = {**_BY_MODEL, "batch": Dimension.IS_BATCH, "service_tier": Dimension.CLASS_RANK}
_BY_COST = {**_ALIKE, "line_item": Dimension.MODEL}


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Parameters of a usage query: time range, buckets, grouping and filters."""

    start_s: int
    end_s: int | None
    width: Width
    limit: int | None
    page: str | None
    group_by: Sequence[str]
    only: Mapping[Dimension, Sequence[Value]]

    def span(self, limits: Mapping[Width, tuple[int, int]], now_s: float) -> tuple[TimeBuckets, str | None]:
        """Return the buckets of the requested page, and the name of the next page if there is one."""
        width_s = _WIDTHS_S[self.width]
        default, most = limits[self.width]
        limit = default if self.limit is None else self.limit
        if limit > most:
            raise InvalidRequest(f"`limit` is at most {most} for buckets of {self.width}", param="limit")
        end_s = math.ceil(now_s) if self.end_s is None else self.end_s
        first, last = self.start_s // width_s, math.ceil(end_s / width_s)
        if last <= first:
            raise InvalidRequest("`end_time` must be after `start_time`", param="end_time")
        begin = first if self.page is None else self._page_begin(first, last)
        stop = min(begin + limit, last)
        return TimeBuckets(begin * width_s, width_s, stop - begin), f"page_{stop * width_s}" if stop < last else None

    def _page_begin(self, first: int, last: int) -> int:
        found = _PAGE.fullmatch(self.page or "")
        number, inside = divmod(int(found[1]), _WIDTHS_S[self.width]) if found else (-1, 0)
        if inside or not first <= number < last:
            raise InvalidRequest("`page` is not a `next_page` of this query", param="page")
        return number


def _lists(request: Request, **given: list[str]) -> dict[str, list[str]]:
    """Return list parameters, including names with brackets, as OpenAI's clients send them."""
    sent = request.query_params
    return {name: [*values, *sent.getlist(f"{name}[]")] for name, values in given.items()}


async def _usage_query(
    request: Request,
    start_time: Annotated[int, Query(ge=0, lt=1 << 35, description="Unix seconds; its whole bucket is included")],
    end_time: Annotated[int | None, Query(ge=0, lt=1 << 35, description="exclusive; by default now")] = None,
    bucket_width: Width = "1d",
    limit: Annotated[int | None, Query(ge=1, description="buckets per page")] = None,
    page: Annotated[str | None, Query(description="`next_page` of the previous page")] = None,
    group_by: Annotated[list[str], Query(description="`project_id`, `user_id`, `api_key_id`, `model`, ...")] = [],  # noqa: B006
    models: Annotated[list[str], Query(description="a model's name, or one version's: `smollm2@1`")] = [],  # noqa: B006
    project_ids: Annotated[list[str], Query(description="values of `OpenAI-Project`")] = [],  # noqa: B006
    user_ids: Annotated[list[str], Query(description="values of `user`")] = [],  # noqa: B006
    api_key_ids: Annotated[list[str], Query(description="ids of the keys that submitted the jobs")] = [],  # noqa: B006
) -> UsageQuery:
    lists = _lists(
        request,
        group_by=group_by,
        models=models,
        project_ids=project_ids,
        user_ids=user_ids,
        api_key_ids=api_key_ids,
    )
    only = {dimension: lists[name] for name, dimension in _FILTERS.items() if lists[name]}
    return UsageQuery(start_time, end_time, bucket_width, limit, page, lists["group_by"], only)


UsageQueryParams = Annotated[UsageQuery, Depends(_usage_query)]


@router.get("/usage/completions", response_model=UsagePage, summary="Tokens of generated text")
async def get_completions(runtime: RuntimeOf, principal: UsageReader, query: UsageQueryParams) -> Response:
    """Return the usage of the tenant's ended jobs of the task `generate`: chats, completions, responses and jobs."""
    report = _UsageReport(_BY_COMPLETION, _LIMITS, usage_views.completions, only={Dimension.TASK: ["generate"]})
    return await _answer(runtime, principal, query, report)


@router.get("/usage/embeddings", response_model=UsagePage, summary="Tokens of embeddings")
async def get_embeddings(runtime: RuntimeOf, principal: UsageReader, query: UsageQueryParams) -> Response:
    """Return the usage of the tenant's ended jobs of the task `embed`."""
    report = _UsageReport(_BY_MODEL, _LIMITS, usage_views.embeddings, only={Dimension.TASK: ["embed"]})
    return await _answer(runtime, principal, query, report)


@router.get("/costs", response_model=UsagePage, summary="Costs")
async def get_costs(runtime: RuntimeOf, principal: UsageReader, query: UsageQueryParams) -> Response:
    """Return the cost of the tenant's ended jobs, by the price of the model version when the job ended."""
    report = _UsageReport(_BY_COST, _COST_LIMITS, usage_views.costs)
    return await _answer(runtime, principal, query, report)


@dataclass(frozen=True, slots=True)
class _UsageReport:
    """How one route reports the usage ledger."""

    dimensions: Mapping[str, Dimension]
    limits: Mapping[Width, tuple[int, int]]
    show: Callable[[UsageGroup], Result]
    only: Mapping[Dimension, Sequence[Value]] = field(default_factory=dict)


async def _answer(runtime: Runtime, principal: Principal, query: UsageQuery, report: _UsageReport) -> Response:
    by = _dimensions(query.group_by, report.dimensions)
    span, next_page = query.span(report.limits, time.time())  # noqa: TID251 - buckets follow the calendar
    only = {**query.only, **report.only}

    def read() -> list[UsageGroup]:
        return usage.usage_by(runtime.db, principal.tenant_id, span, by=by, only=only)

    return JsonResponse(usage_views.page(span, await run_in_threadpool(read), report.show, next_page))


def _dimensions(names: Sequence[str], known: Mapping[str, Dimension]) -> list[Dimension]:
    for name in names:
        if name not in known:
            raise InvalidRequest(f"usage can be grouped by {', '.join(known)}, not {name[:64]!r}", param="group_by")
    return [known[name] for name in dict.fromkeys(names)]
