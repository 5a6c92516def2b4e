"""OpenAI's responses as a face of the task ``generate``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headrace.features.openai.request_fields import BATCH_TIER
from headrace.features.responses import response_routes, stored_responses
from headrace.features.responses.field_names import as_sent
from headrace.features.responses.mcp_approvals import answered_calls
from headrace.features.responses.mcp_items import with_turns
from headrace.features.responses.mcp_tools import called_by, calls_tools
from headrace.features.responses.response_answer import response_object
from headrace.features.responses.response_request import ResponseContext, ResponseRequest, to_job
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.http.job_options import unsupported
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.db.database import Database
from headrace.store.jobs.jobs import Job
from headrace.store.tasks.generate import GENERATE


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    request = ResponseRequest.model_validate(body)
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(request, name) is not None:
            raise unsupported(f"`{name}` is not supported in a batch: send what it stands for", name)
    answered_calls(request, (), (), None)
    return _parsed(request, ResponseContext())


def _parsed(request: ResponseRequest, context: ResponseContext) -> ParsedRequest:
    prepared = to_job(request, context)
    response = replace(prepared.response, request={**prepared.response.request, "service_tier": BATCH_TIER})

    def answer(job: Job) -> dict[str, Any]:
        answer_of(job)
        return response_object(job, StoredResponse.of(job.id, response))

    parsed = ParsedRequest(prepared.job, answer, lambda error: as_sent(error, request), response)
    if not calls_tools(request):
        return parsed

    def with_tools(db: Database, tenant_id: str) -> ParsedRequest:
        return _parsed(request, replace(context, called=called_by(db, tenant_id, request)))

    return replace(parsed, with_tools=with_tools, read_answer=_answer_with_turns)


def _answer_with_turns(db: Database, job: Job) -> dict[str, Any]:
    """Return a response with its calls, and with the tools of its servers as they were when it was accepted."""
    answer_of(job)
    row = stored_responses.get(db, job.tenant_id, job.id, unstored=True)
    return response_object(job, with_turns(db, job, row))


PART = TaskRoutes(GENERATE, (response_routes.router,), {"/v1/responses": _parse})
