"""Makes two steps of a step with ``retrieval``: one that embeds the question and searches, and the step itself.

The question is the user's last message. Which version embeds it says the feature that has vector stores, by its part
(``QuestionSearch``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from headrace.assembly import parts as parts_of_features
from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.submission.submission_hook import SubmissionParts
from headrace.store.errors import InvalidRequest, NoWorker, RequestError
from headrace.store.payloads.job_payload import JobTerms
from headrace.store.payloads.references import MARK
from headrace.store.payloads.retrieval import SEARCH_STEP, SEARCH_TASK, Retrieval
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.tasks.flow import FlowRequest, FlowStepBody
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import JobRequest

FIELD = "retrieval"
_ONE = "steps[0]"


@dataclass(frozen=True, slots=True)
class QuestionSearch:
    """The ``PART`` of the file ``questions`` of the feature that has vector stores.

    ``check``: raises InvalidRequest for a search that cannot be made in a step. ``embedding_of``: the version that
    embeds questions for these stores, and the fields of its requests; it blocks and raises InvalidRequest, NotFound,
    Conflict, ModelLoadError. Both get the name of the field that asks, for their messages.
    """

    check: Callable[[Retrieval, str], None]
    embedding_of: Callable[[SubmissionParts, str, Retrieval, str], tuple[ModelVersion, dict[str, Any]]]


def question_search(field: str) -> QuestionSearch:
    """Return the part. Raises InvalidRequest where no feature has vector stores."""
    for part in parts_of_features("questions", QuestionSearch):
        return part
    raise InvalidRequest("this deployment has no vector stores", code="unsupported_parameter", param=field)


def as_flow(request: GenerateRequest) -> FlowRequest:
    """Return the job of one step for a request with ``retrieval``."""
    sent = request.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    terms = {name: sent.pop(name) for name in [*sent] if name in JobTerms.model_fields}
    flow = FlowRequest.model_validate({**terms, "steps": [{**sent, "name": "answer"}]})
    (step,) = flow.steps
    return flow.model_copy(update={"steps": (step.made_from(request.prompt_use, request.template_place),)})


def as_one(error: RequestError | NoWorker) -> RequestError | NoWorker:
    """Return an error about the only step of ``as_flow`` with the name that the field has in its request."""
    if error.param is not None:
        name = error.param.removeprefix(f"{_ONE}.")
        error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
        error.param = None if name in (_ONE, "steps") else name
    return error


def retrieval_of(body: FlowStepBody) -> Retrieval | None:
    """Return the checked ``retrieval`` of a step, None if it has none. Raises InvalidRequest."""
    given = body.own_fields.get(FIELD)
    if given is None:
        return None
    try:
        found = Retrieval.model_validate(given)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False), inside=FIELD) from None
    question_search(FIELD).check(found, FIELD)
    if body.own_fields.get("n") not in (None, 1):
        raise InvalidRequest("`retrieval` goes with one answer: leave out `n`", param="n")
    if body.input.get("tools"):
        raise InvalidRequest("`retrieval` and `tools` do not go together in one step", param="input.tools")
    return found


def search_step(
    parts: SubmissionParts, tenant_id: str, body: FlowStepBody, filled: JobRequest, wanted: Retrieval
) -> FlowStepBody:
    """Return the step that searches for a step. ``filled``: that step as a request of its task, with its template.

    Raises InvalidRequest, NotFound, Conflict, ModelLoadError. Blocks.
    """
    version, own = question_search(FIELD).embedding_of(parts, tenant_id, wanted, FIELD)
    return FlowStepBody.model_construct(
        None,
        # Not checked: its name has a colon, as no name of a caller has.
        name=SEARCH_STEP.format(body.name),
        task=SEARCH_TASK,
        model=queue_name(version.model, version.version),
        input={"texts": [_question(body, filled)]},
        needs=body.needs,
        stream=False,
        **own,
    )


def _question(body: FlowStepBody, filled: JobRequest) -> Any:
    """Return the text of the user's last message, which may be a reference; with a template it may be of that."""
    messages: object = body.input.get("messages")
    if body.input.get("template") is not None and isinstance(filled, GenerateRequest):
        # A step with a template has no references to outputs.
        messages = [one.model_dump() for one in filled.input.messages or ()]
    for message in reversed(messages if isinstance(messages, Sequence) else ()):
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            if (isinstance(content, str) and content.strip()) or (isinstance(content, Mapping) and MARK in content):
                return content
            break
    raise InvalidRequest(
        "`retrieval` searches with the last message of the user: add one with a text", param="input.messages"
    )
