"""The API of the task ``predict``: ``POST /v1/tabular/predictions``."""

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.predict.task import (
    EXPLAINED_COST,
    PREDICT,
    Explain,
    PredictInput,
    Prediction,
    PredictRequest,
    Rows,
)
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.jobs.jobs import Job

router = APIRouter(prefix="/v1/tabular", tags=["tabular"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class PredictBody(TaskBody):
    """The body of ``POST /v1/tabular/predictions``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "fraud", **(PREDICT.url_example or {})}]})

    rows: Rows
    explain: Explain = False


class RowUsage(BaseModel):
    """What the predictions cost."""

    rows: int = Field(description="the rows of the request")
    total_tokens: int = Field(description=f"one for each row, {EXPLAINED_COST} with an explanation; usage counts them")


class PredictionList(BaseModel):
    """The predictions in the order of the rows."""

    object: Literal["list"] = "list"
    id: str = Field(description="the job's id")
    model: str = Field(description="the model version, as `name@3`")
    predictions: list[Prediction] = Field(description="one for each row, in order")
    usage: RowUsage = Field(description="what it cost")


def to_job(asked: PredictBody) -> PredictRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    fields = {"task": PREDICT.name, "input": PredictInput.model_construct(rows=asked.rows), "explain": asked.explain}
    return order_of(asked, PredictRequest, fields)


def predict_answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    predictions = answer_of(job)["predictions"]
    return {
        "object": "list",
        "id": job.id,
        "model": f"{job.model}@{job.model_version}",
        "predictions": predictions,
        "usage": {
            "rows": len(predictions),
            "total_tokens": int((job.usage or {}).get("input_tokens", job.input_tokens)),
        },
    }


@router.post("/predictions", response_model=PredictionList, summary="Predict from rows of a table")
async def predict(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: PredictBody, origin: OriginOf
) -> Response:
    """Store a job for the rows; when it has ended, answer with one prediction for each row, in order.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: PredictBody) -> ParsedRequest:
    return ParsedRequest(to_job(asked), predict_answer, as_sent)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(PredictBody.model_validate(body))


PART = TaskRoutes(PREDICT, (router,), {"/v1/tabular/predictions": _parse})
