"""The API of a task of another package: ``POST /v1/tasks/NAME``, made from the package's schemas."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, Field, create_model
from starlette.requests import Request
from starlette.responses import Response

from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job
from headrace.store.tasks.own_task import OwnTaskSpec


class OwnUsage(BaseModel):
    """What the answer cost."""

    total_tokens: int = Field(description="what the task counts for the input")


class OwnAnswer(BaseModel):
    """The base of every answer. A task's subclass narrows ``output``."""

    object: Literal["task.result"] = "task.result"
    id: str = Field(description="the job's id")
    model: str = Field(description="the model version, as `name@3`")
    output: Any = Field(description="the output of the task")
    usage: OwnUsage = Field(description="what it cost")


def own_routes(spec: OwnTaskSpec) -> TaskRoutes:
    """Return the route of a task, and the reader of a line of a batch."""
    router = APIRouter(tags=["tasks"], route_class=StrictJsonRoute, responses=DOCUMENTED)
    stem, task = spec.input.__name__.removesuffix("Input"), spec.declared
    body_type: Any = create_model(
        f"{stem}Body",
        __base__=TaskBody,
        __doc__=f"The body of ``POST {spec.urls[0]}``.",
        input=(spec.input, Field(description="the input of the task")),
    )
    output: Any = (task.output, Field(description="the output of the task"))
    answer_type = create_model(f"{stem}Answer", __base__=OwnAnswer, __doc__="The answer.", output=output)
    example = {"model": "mymodel", "input": dict(task.example)}

    def parsed(asked: Any) -> ParsedRequest:
        job = order_of(asked, spec.request, {"task": spec.name, "input": asked.input}, _same)
        return ParsedRequest(job, _answer, _complain)

    @router.post(spec.urls[0], response_model=answer_type, summary=task.summary or f"Run the task {spec.name}")
    async def run_task(
        request: Request,
        runtime: RuntimeOf,
        principal: JobsWriter,
        body: Annotated[body_type, Body(openapi_examples={spec.name: {"value": example}})],
        origin: OriginOf,
    ) -> Response:
        """Store a job for the input; when it has ended, answer with its output.

        A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
        """
        return await run_job(request, runtime, principal, parsed(body), origin, body.job)

    def parse(body: Mapping[str, Any]) -> ParsedRequest:
        return parsed(body_type.model_validate(body))

    return TaskRoutes(spec, (router,), {spec.urls[0]: parse})


def _same(name: str) -> str:
    return name


def _complain(error: HeadraceError) -> HeadraceError:
    return as_sent(error, _same)


def _answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    return {
        "object": "task.result",
        "id": job.id,
        "model": f"{job.model}@{job.model_version}",
        "output": answer_of(job),
        "usage": {"total_tokens": int((job.usage or {}).get("input_tokens", job.input_tokens))},
    }
