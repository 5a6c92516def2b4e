"""The API of the task ``recommend``: ``POST /v1/recommendations``."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.recommend.task import (
    ONE_USER,
    RECOMMEND,
    ExcludeHistory,
    Filter,
    History,
    ItemFilter,
    RecommendedItem,
    RecommendRequest,
    TopK,
    UserFeatures,
    UserVector,
)
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.jobs.jobs import Job

router = APIRouter(prefix="/v1", tags=["recommendations"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class RecommendBody(TaskBody):
    """The body of ``POST /v1/recommendations``. The user is exactly one of `vector`, `history` and `features`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "shop", **(RECOMMEND.url_example or {})}]})

    vector: UserVector = None
    history: History = None
    features: UserFeatures = None
    filter: Filter = ItemFilter()
    top_k: TopK = 10
    exclude_history: ExcludeHistory = True

    @model_validator(mode="after")
    def _has_one_user(self) -> Self:
        if [self.vector, self.history, self.features].count(None) != 2:
            raise ValueError(ONE_USER)
        return self


class RecommendationList(BaseModel):
    """The best items for the user."""

    object: Literal["list"] = "list"
    id: str = Field(description="the job's id")
    model: str = Field(description="the model version, as `name@3`")
    items: list[RecommendedItem] = Field(description="by falling score")
    unknown_ids: list[str] = Field(description="ids of the history that the version does not have; they did not count")


def to_job(asked: RecommendBody) -> RecommendRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    user = asked.model_dump(include={"vector", "history", "features"}, exclude_none=True)
    fields = {name: getattr(asked, name) for name in ("filter", "top_k", "exclude_history")}
    return order_of(asked, RecommendRequest, {"task": RECOMMEND.name, "input": user, **fields})


def recommend_answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    output = answer_of(job)
    return {
        "object": "list",
        "id": job.id,
        "model": f"{job.model}@{job.model_version}",
        "items": output["items"],
        "unknown_ids": output["unknown_ids"],
    }


@router.post("/recommendations", response_model=RecommendationList, summary="Recommend items for a user")
async def recommend(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: RecommendBody, origin: OriginOf
) -> Response:
    """Store a job for the user; when it has ended, answer with the best items that the filter lets through.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: RecommendBody) -> ParsedRequest:
    return ParsedRequest(to_job(asked), recommend_answer, as_sent)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(RecommendBody.model_validate(body))


PART = TaskRoutes(RECOMMEND, (router,), {"/v1/recommendations": _parse})
