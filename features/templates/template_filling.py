"""Fills in the prompt template of a request, on every route that makes jobs, and the default template of a version.

The template's messages come first, then those of the request. What is stored, counted, scanned by the tenant's policy
and given to the model is the text with the values; beside it the job keeps which version it came from. A default
template is a copy, made when a version is registered. It is the operator's text, so it comes in after the policy. A
request that names a template, or that is no conversation, does without it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from headrace.features.templates.prompt_template import RenderedTemplate, Template, rendered
from headrace.policy.schemas import Validator, check_schema, first_problem
from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.submission.prompt_preparation import PromptTemplates
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, RequestError
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.prompt_reference import (
    DefaultTemplate,
    FilledTemplate,
    PromptReference,
    PromptUse,
    TemplatePlace,
)
from headrace.store.registry import prompt_templates
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.prompt_templates import PromptVersion
from headrace.store.tasks.generate import GenerateInput, GenerateRequest
from headrace.store.tasks.registry import JobRequest

_VARIABLES = "prompt.variables"
_ROLES = {"developer": Role.SYSTEM}


def check_template(template: Template) -> None:
    """Raise InvalidRequest for a template that cannot be filled in, or for a schema that cannot be followed.

    It may take a second.
    """
    RenderedTemplate(template)
    try:
        check_schema(template.schema_of_values, "variables")
    except ValueError as error:
        raise InvalidRequest(str(error), param="variables") from None


class TenantTemplates(PromptTemplates):
    """The prompt templates of all tenants, in Postgres."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def read(self, tenant_id: str, reference: PromptReference) -> tuple[FilledTemplate, PromptUse]:
        """Return a template with the reference's values, and which version it is."""
        found = prompt_templates.get(self._db, tenant_id, reference.id, reference.version)
        return fill_version(found, reference.variables or {})

    def fill(self, tenant_id: str, request: GenerateRequest) -> GenerateRequest:
        """Return the request with the input that its prompt template makes, if it names one."""
        if request.input.template is None:
            return request
        try:
            filled, use = self.read(tenant_id, request.input.template)
        except RequestError as error:
            raise _of_job(error) from None
        source, place = combined(request.input, filled)
        return request.filled_in(source, use, place)

    def snapshot(self, tenant_id: str, reference: PromptReference) -> DefaultTemplate:
        """Return a copy of a prompt, for a version. Raises InvalidRequest too if it is a raw text."""
        try:
            filled, use = self.read(tenant_id, reference)
        except RequestError as error:
            error.message += ": a default template gets all its values here, or has a `default` for them"
            raise
        messages = messages_of(filled)
        if filled.text is not None or not messages:
            raise InvalidRequest(
                "a default template comes before conversations: store one with `instructions` or `messages`, no raw"
                " `text`",
                param="prompt",
            )
        return DefaultTemplate(**use.model_dump(), messages=tuple(messages))

    def with_default(self, request: JobRequest, version: ModelVersion) -> JobRequest:
        """Return the request with the messages of the version's default template before its own, if it takes them."""
        if version.template is None or not isinstance(request, GenerateRequest) or not request.takes_default_template:
            return request
        source, place = _preceded(request.input, version.template.messages)
        return request.filled_in(source, version.template.use, place)


def _of_job(error: RequestError) -> RequestError:
    """Return the error with the name that the field has in a job."""
    sent = error.param or "prompt"
    error.param = sent.replace("prompt", "input.template", 1)
    error.message = error.message.replace(f"`{sent}`", f"`{error.param}`")
    return error


def fill_version(found: PromptVersion, values: Mapping[str, Any]) -> tuple[FilledTemplate, PromptUse]:
    """Return a stored template with these values, and which version it is. Raises InvalidRequest."""
    stored = json.dumps(found.template)
    template, ready = rendered(stored)
    _check_values(template, _validator(stored), values)
    use = PromptUse(id=found.id, name=found.name, version=found.version, digest=template.content_digest)
    return ready.fill(values), use


@lru_cache(maxsize=256)
def _validator(stored: str) -> Validator:
    return check_schema(rendered(stored)[0].schema_of_values, "variables")


def _check_values(template: Template, validator: Validator, values: Mapping[str, Any]) -> None:
    """Raise InvalidRequest, which names the variable, for values that do not match the template's schema."""
    schema = template.schema_of_values
    if unknown := sorted(values.keys() - schema["properties"].keys()):
        raise InvalidRequest(f"the prompt has no variable {unknown[0][:64]}", param=_VARIABLES)
    if missing := sorted(set(schema["required"]) - values.keys()):
        raise InvalidRequest(f"the prompt needs a value for {', '.join(missing)[:200]}", param=_VARIABLES)
    if (problem := first_problem(validator, dict(values))) is not None:
        where, why = problem
        place = f"{_VARIABLES}.{where}"[:200] if where else _VARIABLES
        raise InvalidRequest(f"`{place}` is not as the prompt declares it: {why[:200]}", param=place)


def combined(source: GenerateInput, filled: FilledTemplate) -> tuple[GenerateInput, TemplatePlace]:
    """Return the input with the template's messages before its own, or with the template's text as the raw prompt."""
    if filled.text is None:
        return _preceded(source, messages_of(filled))
    if source.messages is not None:
        raise InvalidRequest("the prompt is a raw text, which goes without `messages`", param="input.messages")
    return _made_input(source, {"prompt": filled.text}), TemplatePlace(0)


def messages_of(filled: FilledTemplate) -> list[ChatMessage]:
    """Return the messages of a filled template that is no raw text."""
    messages = [ChatMessage(role=Role.SYSTEM, content=filled.instructions)] if filled.instructions else []
    return [
        *messages,
        *(ChatMessage(role=_ROLES.get(role) or Role(role), content=text) for role, text in filled.messages),
    ]


def _preceded(source: GenerateInput, messages: Sequence[ChatMessage]) -> tuple[GenerateInput, TemplatePlace]:
    """Return a conversation with these messages before its own. Raises InvalidRequest."""
    made = {"messages": [*messages, *(source.messages or ())]}
    return _made_input(source, made), TemplatePlace(len(messages))


def _made_input(source: GenerateInput, made: Mapping[str, Any]) -> GenerateInput:
    own = {name: getattr(source, name) for name in source.model_fields_set - {"template", "messages"}}
    try:
        return GenerateInput.model_validate({**own, **made, "special_tokens": "text"})
    except ValidationError as error:
        problem = from_validation(error.errors(include_input=False))
        problem.message = f"the prompt makes an input that is refused: {problem.message}"
        problem.param = "input"
        raise problem from None
