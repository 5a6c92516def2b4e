"""Use cases of the Responses API: prepare a job from a request and the objects it refers to; cancel a response."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from headrace.features.responses import conversations, stored_responses
from headrace.features.responses.file_searches import searched_step
from headrace.features.responses.mcp_approvals import answered_calls
from headrace.features.responses.mcp_items import with_turns
from headrace.features.responses.mcp_tools import LISTED, called_by
from headrace.features.responses.response_items import Item, references_of
from headrace.features.responses.response_output import output_items, response_of
from headrace.features.responses.response_request import (
    PreparedResponse,
    ResponseContext,
    ResponseRequest,
    to_job,
)
from headrace.features.responses.stored_responses import job_id_of
from headrace.producer_api.jobs.cancel import cancel
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.streaming.job_events import wait_until_ended
from headrace.producer_api.submission.prompt_preparation import PromptTemplates
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Gone, InvalidRequest, NotFound
from headrace.store.jobs import jobs
from headrace.store.jobs.flow_values import read_outputs
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.prompt_reference import FilledTemplate, PromptReference, PromptUse
from headrace.store.payloads.retrieval import SEARCH_STEP
from headrace.store.payloads.step_payload import PASSAGES
from headrace.store.schema.job_states import JobState

_CANCEL_WAIT_S = 2.0
"""How long a cancel waits for the worker, which reacts at its next decode step."""


T = TypeVar("T")


def read_response(read: Callable[[Database, str, str], T], db: Database, tenant_id: str, response_id: str) -> T:
    """Return the result of ``read``; raise Gone, not NotFound, if the retention time is over. Blocks."""
    job_id = job_id_of(response_id)
    try:
        return read(db, tenant_id, job_id)
    except NotFound:
        if not stored_responses.was_deleted(db, tenant_id, job_id):
            missing = jobs.why_missing(db, tenant_id, job_id)
            if isinstance(missing, Gone):
                raise missing from None
        raise


def read_found(db: Database, job: Job) -> Sequence[Mapping[str, Any]] | None:
    """Return the passages that the search of a response found, None before its end or if they are not kept. Blocks."""
    name = searched_step(job)
    if name is None:
        return None
    step = SEARCH_STEP.format(name)
    found = read_outputs(db, job.tenant_id, job.id, [step]).get(step)
    return None if found is None or found["output"] is None else found["output"].get(PASSAGES)


def prepare(db: Database, templates: PromptTemplates, tenant_id: str, request: ResponseRequest) -> PreparedResponse:
    """Return the job for the request, with its previous responses and prompt template loaded. Blocks.

    Raises InvalidRequest and, for an id that the tenant does not have, NotFound.
    """
    if request.conversation is not None and request.previous_response_id is not None:
        raise InvalidRequest("send `conversation` or `previous_response_id`, not both", param="conversation")
    referenced = _referenced(db, tenant_id, references_of(request.input))
    called = called_by(db, tenant_id, request)
    items: Sequence[Item] = ()
    answer: Sequence[Item] = ()
    listed: Sequence[Item] = ()
    before = request.previous_response_id
    if request.conversation_id is not None:
        items, before = _conversation_items(db, tenant_id, request.conversation_id)
    if request.previous_response_id is not None:
        items, answer, listed = _chain(db, tenant_id, request.previous_response_id)
    context = ResponseContext(
        items,
        answer,
        referenced=referenced,
        called=called,
        answered=answered_calls(request, answer, listed, called),
        before=None if before is None else job_id_of(before),
    )
    if request.prompt is None:
        return to_job(request, context)
    filled, use = _fill_template(templates, tenant_id, request.prompt)
    return to_job(request, replace(context, filled=filled, use=use))


def _referenced(db: Database, tenant_id: str, references: Mapping[str, str]) -> dict[str, Item]:
    """Return the items of stored answers by their ids. ``references``: the place of each id in the request."""
    by_response = {response_of(item_id): None for item_id in references}
    if len(by_response) > (most := stored_responses.MAX_TURNS):
        raise InvalidRequest(
            f"the input refers to items of {len(by_response)} responses, and {most} are the most: "
            "send the items themselves",
            param="input",
        )
    found = {item["id"]: item for response_id in by_response for item in _answer(db, tenant_id, response_id)}
    for item_id, param in references.items():
        if item_id not in found:
            raise NotFound(
                f"no item {item_id[:80]} of a stored answer: send the item itself, or let `store` be true", param=param
            )
    return {item_id: found[item_id] for item_id in references}


def _answer(db: Database, tenant_id: str, response_id: str | None) -> Sequence[Item]:
    try:
        if response_id is None:
            return ()
        row = read_response(stored_responses.get, db, tenant_id, response_id)
        job = jobs.get(db, tenant_id, job_id_of(response_id))
        return output_items(job, with_turns(db, job, row))
    except (NotFound, Gone):
        return ()


def settle(db: Database, tenant_id: str, conversation_id: str) -> None:
    """Add the responses that have ended to the conversation. Blocks."""
    conversations.settle(db, tenant_id, conversation_id, output_items)


def _conversation_items(db: Database, tenant_id: str, conversation_id: str) -> tuple[Sequence[Item], str | None]:
    """Return the items of a conversation, and the id of the newest response among them."""
    try:
        settle(db, tenant_id, conversation_id)
        found = conversations.read_items(db, tenant_id, conversation_id)
    except NotFound as error:
        raise NotFound(error.message, param="conversation") from error
    found.check_room()
    return found.items, found.last_response_id


def _chain(db: Database, tenant_id: str, previous_id: str) -> tuple[Sequence[Item], Sequence[Item], Sequence[Item]]:
    """Return the items of all responses up to the previous one, the items of its answer, and its servers' tools."""
    try:
        before = read_response(stored_responses.get_chain, db, tenant_id, previous_id)
        row = stored_responses.get(db, tenant_id, job_id_of(previous_id))
        job = jobs.get(db, tenant_id, job_id_of(previous_id))
    except NotFound as error:
        raise NotFound(error.message, code="previous_response_not_found", param="previous_response_id") from error
    if job.state is not JobState.SUCCEEDED:
        what = f"is {job.state}: only" if job.state.is_terminal else "has not ended: wait for it,"
        raise InvalidRequest(
            f"the previous response {what} one with an answer can be continued", param="previous_response_id"
        )
    if row.request.get("conversation") is not None:
        raise InvalidRequest(
            "the previous response belongs to a conversation: send its id in `conversation` instead",
            param="previous_response_id",
        )
    before.check_room()
    return before.items, output_items(job, with_turns(db, job, row)), row.request.get(LISTED) or ()


def _fill_template(
    templates: PromptTemplates, tenant_id: str, prompt: PromptReference
) -> tuple[FilledTemplate, PromptUse]:
    values = {name: _value(value, name) for name, value in (prompt.variables or {}).items()}
    filled, use = templates.read(tenant_id, prompt.model_copy(update={"variables": values}))
    if filled.text is not None:
        raise InvalidRequest("the prompt is a raw text: send it to /v1/completions", param="prompt")
    return filled, use


def _value(value: Any, name: str) -> Any:
    """Return the text of a text part; other values are as the prompt's schema has them."""
    if not isinstance(value, dict) or not str(value.get("type")).startswith("input_"):
        return value
    text = value.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(
            f"`prompt.variables.{name[:64]}` is not a text: only text is supported",
            code="unsupported_parameter",
            param="prompt.variables",
        )
    return text


async def cancel_response(runtime: Runtime, job: Job) -> Job:
    """Cancel a response's job and return it, ended if the worker reacts in time. An ended job is unchanged."""
    try:
        job = await run_in_threadpool(cancel, runtime, job.tenant_id, job.id)
    except Conflict:
        return await runtime.reader.get(job.tenant_id, job.id)
    return job if job.state.is_terminal else await wait_until_ended(runtime, job, _CANCEL_WAIT_S)
