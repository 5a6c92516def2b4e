"""Makes two steps of a step with ``retrieval``: one that embeds the question and searches, and the step itself.

The question is the user's last message. The stores are looked up here as the tenant, so that row-level security binds
the look-up; the search of the worker names the tenant too.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.submission.submission_hook import SubmissionParts
from headrace.store.errors import Conflict, InvalidRequest, NotFound, NoWorker, RequestError
from headrace.store.payloads.job_payload import JobTerms
from headrace.store.payloads.references import MARK
from headrace.store.payloads.retrieval import SEARCH_STEP, SEARCH_TASK, Retrieval
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.retrieval import vector_stores
from headrace.store.retrieval.attribute_filters import read_filter
from headrace.store.tasks.flow import FlowRequest, FlowStepBody
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import JobRequest

FIELD = "retrieval"
QUERY_PROMPTS = ("query",)
"""Names that models of sentence-transformers give to the text before a question."""

_ONE = "steps[0]"


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
    check_retrieval(found, FIELD)
    if body.own_fields.get("n") not in (None, 1):
        raise InvalidRequest("`retrieval` goes with one answer: leave out `n`", param="n")
    if body.input.get("tools"):
        raise InvalidRequest("`retrieval` and `tools` do not go together in one step", param="input.tools")
    return found


def check_retrieval(found: Retrieval, field: str) -> None:
    """Raise InvalidRequest for filters that cannot be followed, and for a rerank model. ``field``: for the message."""
    read_filter(found.filters, f"{field}.filters")
    if found.ranking_options is not None and found.ranking_options.reranker is not None:
        raise InvalidRequest(
            "passages for an answer are not reranked: leave `ranker` out, or send `auto`",
            code="unsupported_parameter",
            param=f"{field}.ranking_options.ranker",
        )


def search_step(
    parts: SubmissionParts, tenant_id: str, body: FlowStepBody, filled: JobRequest, wanted: Retrieval
) -> FlowStepBody:
    """Return the step that searches for a step. ``filled``: that step as a request of its task, with its template.

    Raises InvalidRequest, NotFound, Conflict, ModelLoadError. Blocks.
    """
    version, own = embedding_of(parts, tenant_id, wanted, FIELD)
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


def embedding_of(
    parts: SubmissionParts, tenant_id: str, wanted: Retrieval, field: str
) -> tuple[ModelVersion, dict[str, Any]]:
    """Return the version that embeds questions for these stores, and the fields of its requests. Blocks.

    Raises InvalidRequest, NotFound, Conflict, ModelLoadError. ``field``: for the messages.
    """
    version = _version_of(parts, tenant_id, wanted, field)
    prompt = query_prompt_name(parts.catalog.task_settings(version).prompts)
    return version, {"truncate": True} if prompt is None else {"truncate": True, "prompt_name": prompt}


def query_prompt_name(prompts: Collection[str]) -> str | None:
    """Return the name of a model's prompt before a question to a vector store; None: it has none for them."""
    return next((name for name in QUERY_PROMPTS if name in prompts), None)


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


def _version_of(parts: SubmissionParts, tenant_id: str, wanted: Retrieval, field: str) -> ModelVersion:
    names = set()
    for number, store_id in enumerate(wanted.vector_store_ids):
        try:
            store = vector_stores.find(parts.db, tenant_id, store_id)
        except NotFound as error:
            error.param = f"{field}.vector_store_ids[{number}]"
            raise
        vector_stores.touch(parts.db, tenant_id, store_id)
        names.add(queue_name(store.model, store.model_version))
    if len(names) > 1:
        listed = ", ".join(sorted(names))
        raise InvalidRequest(
            f"the stores have vectors of different models ({listed}): name stores of one",
            param=f"{field}.vector_store_ids",
        )
    (name,) = names
    try:
        return parts.catalog.resolve(name)
    except NotFound:
        message = f"{name}, which makes the vectors of this store, is retired: add its files to a new store"
        raise Conflict(message, param=f"{field}.vector_store_ids") from None
