"""Fills in the prompt template of a request, on every route that makes jobs.

The template's messages come first, then those of the request. What is stored, counted, scanned by the tenant's policy
and given to the model is the text with the values; beside it the job keeps which version it came from.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeGuard

from pydantic import ValidationError

from headrace.policy.schemas import Validator, check_schema, first_problem
from headrace.producer_api.server.errors import from_validation
from headrace.prompts.prompt_template import FilledTemplate, RenderedTemplate, Template, rendered
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, RequestError
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.prompt_reference import PromptReference, PromptUse, TemplatePlace
from headrace.store.payloads.references import step_of
from headrace.store.payloads.step_payload import Marks
from headrace.store.registry import prompt_templates
from headrace.store.registry.prompt_templates import PromptVersion
from headrace.store.tasks.flow import FlowStepBody
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


def has_template(request: JobRequest) -> TypeGuard[GenerateRequest]:
    """Return True if a prompt template has to be filled in."""
    return isinstance(request, GenerateRequest) and request.input.template is not None


def fill(db: Database, tenant_id: str, request: GenerateRequest) -> GenerateRequest:
    """Return the request with the input that its prompt template makes, if it has one. Blocks for up to half a second.

    Raises NotFound if the tenant has no such version, InvalidRequest if the values or the request do not go with it.
    """
    if request.input.template is None:
        return request
    try:
        filled, use = read_and_fill(db, tenant_id, request.input.template)
    except RequestError as error:
        raise _of_job(error) from None
    source, place = combined(request.input, filled)
    return request.filled_in(source, use, place)


def fill_step(
    db: Database, tenant_id: str, body: FlowStepBody, made: JobRequest, marks: Marks, *, has_input: bool
) -> JobRequest:
    """Return the request of a step with the input that its prompt template makes, if it has one. Blocks as ``fill``.

    ``marks``: of its references that are not known yet. Without the job's input, which a template may test, it is not
    filled in. Raises as ``fill`` does, and InvalidRequest for a template with references to outputs.
    """
    if body.filled_from is not None and isinstance(made, GenerateRequest):
        return made.filled_in(made.input, *body.filled_from)
    if not has_template(made):
        return made
    if any(step_of(path) is not None for path in marks.paths.values()):
        raise InvalidRequest(
            "a step with a prompt template refers to the job's input only: its text is made now",
            param="input.template",
        )
    return fill(db, tenant_id, made) if has_input else made


def _of_job(error: RequestError) -> RequestError:
    """Return the error with the name that the field has in a job."""
    sent = error.param or "prompt"
    error.param = sent.replace("prompt", "input.template", 1)
    error.message = error.message.replace(f"`{sent}`", f"`{error.param}`")
    return error


def read_and_fill(db: Database, tenant_id: str, reference: PromptReference) -> tuple[FilledTemplate, PromptUse]:
    """Return a template with the reference's values, and which version it is. Blocks. Raises as ``fill`` does."""
    found = prompt_templates.get(db, tenant_id, reference.id, reference.version)
    return fill_version(found, reference.variables or {})


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
        return preceded(source, messages_of(filled))
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


def preceded(source: GenerateInput, messages: Sequence[ChatMessage]) -> tuple[GenerateInput, TemplatePlace]:
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
