"""The default template of a model version: copied from a prompt at its registration, and put before conversations.

A request that names a template, or that is no conversation, does without it.
"""

from typing import TypeGuard, overload

from headrace.producer_api.submission.template_filling import messages_of, preceded, read_and_fill
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, RequestError
from headrace.store.payloads.prompt_reference import PromptReference
from headrace.store.registry.default_template import DefaultTemplate
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import JobRequest


def snapshot(db: Database, tenant_id: str, reference: PromptReference) -> DefaultTemplate:
    """Return a copy of the tenant's prompt, filled in with the reference's values. Blocks for up to half a second.

    Raises NotFound if the tenant has no such prompt, InvalidRequest if a value is missing or it is a raw text.
    """
    try:
        filled, use = read_and_fill(db, tenant_id, reference)
    except RequestError as error:
        error.message += ": a default template gets all its values here, or has a `default` for them"
        raise
    messages = messages_of(filled)
    if filled.text is not None or not messages:
        raise InvalidRequest(
            "a default template comes before conversations: store one with `instructions` or `messages`, no raw `text`",
            param="prompt",
        )
    return DefaultTemplate(**use.model_dump(), messages=tuple(messages))


def is_concerned(request: JobRequest) -> TypeGuard[GenerateRequest]:
    """Return True if the default template of a version comes before the request."""
    return (
        isinstance(request, GenerateRequest)
        and request.input.messages is not None
        and request.input.template is None
        and request.prompt_use is None
    )


@overload
def with_default(request: GenerateRequest, version: ModelVersion) -> GenerateRequest: ...


@overload
def with_default(request: JobRequest, version: ModelVersion) -> JobRequest: ...


def with_default(request: JobRequest, version: ModelVersion) -> JobRequest:
    """Return the request with the messages of the version's default template before its own, if that concerns it.

    Raises InvalidRequest if there are too many messages then.
    """
    if version.template is None or not is_concerned(request):
        return request
    source, place = preceded(request.input, version.template.messages)
    return request.filled_in(source, version.template.use, place)


def is_indifferent(request: JobRequest, one: ModelVersion, other: ModelVersion) -> bool:
    """Return True if the request would be the same on both versions: they differ in nothing but their template."""
    homes = [version.base if version.shares_weights else version.name for version in (one, other)]
    return homes[0] == homes[1] and one.sampling == other.sampling and not is_concerned(request)
