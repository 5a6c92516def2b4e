"""Routes of prompt templates, which requests on every face use in `prompt` or `input.template`.

A version never changes. A prompt is named by its id or its name.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.templates.prompt_template import Template
from headrace.features.templates.template_filling import check_template, combined
from headrace.features.templates.views import (
    NewPrompt,
    PromptAlias,
    PromptDeleted,
    PromptList,
    PromptObject,
    RenderedMessage,
    RenderedPrompt,
    RenderRequest,
    prompt_list,
    prompt_object,
)
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.payloads.prompt_reference import PromptReference
from headrace.store.registry import prompt_templates
from headrace.store.registry.prompt_templates import ALIAS_PATTERN, PromptVersion
from headrace.store.tasks.generate import GenerateInput, GenerateRequest
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/prompts", tags=["prompts"], route_class=StrictJsonRoute, responses=DOCUMENTED)

PromptId = Annotated[str, Path(max_length=300, description="id or name of the prompt", examples=["greeting"])]
AliasName = Annotated[str, Path(pattern=ALIAS_PATTERN, description="`default` or a name of your own")]

T = TypeVar("T")


async def _in_tenants_thread(runtime: Runtime, principal: Principal, call: Callable[[], T]) -> T:
    """Run what may take a second: parsing a template, or filling it in. It delays no other tenant."""
    return await runtime.submissions.tenant_threads.run(principal.tenant_id, call)


@router.post("", status_code=201, response_model=PromptObject, summary="Create a prompt")
async def create_prompt(runtime: RuntimeOf, principal: JobsWriter, body: NewPrompt) -> Response:
    """Store a template as version 1 of a new prompt. Every variable in it must be declared in `variables`."""
    template = _content(body)

    def create() -> PromptVersion:
        _check(runtime, principal, body, {**template, "title": body.name})
        tenant_id, actor = principal.tenant_id, principal.key_id
        return prompt_templates.create(runtime.db, tenant_id, name=body.name, template=template, actor=actor)

    return JsonResponse(prompt_object(await _in_tenants_thread(runtime, principal, create)), status_code=201)


def _content(body: Template) -> dict[str, Any]:
    return body.model_dump(mode="json", include=set(Template.model_fields), exclude_defaults=True)


def _check(runtime: Runtime, principal: Principal, body: Template, stored: dict[str, Any]) -> None:
    """Raise InvalidRequest for a template that cannot be filled in, or that the policy for all models forbids."""
    check_template(body)
    found = runtime.guards.in_force(principal.tenant_id)
    if found is not None:
        found.check_unchanged(stored, "messages", "this template: let requests bring it, as a variable")


@router.get("", response_model=PromptList, summary="List prompts")
async def list_prompts(
    runtime: RuntimeOf,
    principal: JobsReader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
) -> Response:
    """Return the newest version of each prompt, newest prompt first."""
    found = await runtime.lists.read(
        principal, lambda db: prompt_templates.list_prompts(db, principal.tenant_id, limit=limit + 1, after=after)
    )
    return JsonResponse(prompt_list(list(found), limit))


@router.post("/{prompt_id}/versions", status_code=201, response_model=PromptObject, summary="Add a version")
async def add_version(runtime: RuntimeOf, principal: JobsWriter, prompt_id: PromptId, body: Template) -> Response:
    """Store the next version of a prompt. Requests without a version use it, unless there is an alias `default`."""
    template = _content(body)

    def add() -> PromptVersion:
        _check(runtime, principal, body, template)
        tenant_id, actor = principal.tenant_id, principal.key_id
        return prompt_templates.add_version(runtime.db, tenant_id, prompt_id, template=template, actor=actor)

    return JsonResponse(prompt_object(await _in_tenants_thread(runtime, principal, add)), status_code=201)


@router.get("/{prompt_id}/versions", response_model=PromptList, summary="List a prompt's versions")
async def list_versions(runtime: RuntimeOf, principal: JobsReader, prompt_id: PromptId) -> Response:
    """Return every version of a prompt, oldest first."""
    found = await run_in_threadpool(prompt_templates.list_versions, runtime.db, principal.tenant_id, prompt_id)
    return JsonResponse(prompt_list(list(found), len(found)))


@router.get("/{prompt_id}", response_model=PromptObject, summary="Retrieve a prompt")
async def get_prompt(
    runtime: RuntimeOf,
    principal: JobsReader,
    prompt_id: PromptId,
    version: Annotated[str | None, Query(description="number or alias; default: as in requests")] = None,
) -> Response:
    """Return a version of a prompt."""
    found = await run_in_threadpool(prompt_templates.get, runtime.db, principal.tenant_id, prompt_id, version)
    return JsonResponse(prompt_object(found))


@router.delete("/{prompt_id}", response_model=PromptDeleted, summary="Delete a prompt")
async def delete_prompt(runtime: RuntimeOf, principal: JobsWriter, prompt_id: PromptId) -> Response:
    """Delete a prompt with all its versions. Jobs that were made from it keep what they were given."""
    remove = partial(prompt_templates.delete, runtime.db, principal.tenant_id, prompt_id, actor=principal.key_id)
    return JsonResponse(PromptDeleted(id=await run_in_threadpool(remove)))


@router.put("/{prompt_id}/aliases/{alias}", response_model=PromptObject, summary="Set a prompt's alias")
async def set_alias(
    runtime: RuntimeOf, principal: JobsWriter, prompt_id: PromptId, alias: AliasName, body: PromptAlias
) -> Response:
    """Let an alias name a version, and return the version. The next request uses it; accepted jobs keep theirs."""
    found = await run_in_threadpool(
        prompt_templates.set_alias,
        runtime.db,
        principal.tenant_id,
        prompt_id,
        alias,
        body.version,
        actor=principal.key_id,
    )
    return JsonResponse(prompt_object(found))


@router.delete("/{prompt_id}/aliases/{alias}", status_code=204, summary="Remove a prompt's alias")
async def remove_alias(runtime: RuntimeOf, principal: JobsWriter, prompt_id: PromptId, alias: AliasName) -> Response:
    """Remove an alias. Without `default`, requests without a version use the newest one."""
    await run_in_threadpool(
        prompt_templates.remove_alias, runtime.db, principal.tenant_id, prompt_id, alias, actor=principal.key_id
    )
    return Response(status_code=204)


@router.post("/{prompt_id}/render", response_model=RenderedPrompt, summary="Render a prompt")
async def render_prompt(
    runtime: RuntimeOf, principal: JobsWriter, prompt_id: PromptId, body: RenderRequest
) -> Response:
    """Return the messages that the prompt makes, and for a model its text and number of tokens. Nothing is computed."""
    reference = PromptReference(id=prompt_id, version=body.version, variables=body.variables)
    return JsonResponse(
        await _in_tenants_thread(runtime, principal, lambda: _rendered(runtime, principal, reference, body.model))
    )


def _rendered(runtime: Runtime, principal: Principal, reference: PromptReference, model: str | None) -> RenderedPrompt:
    filled, use = runtime.templates.read(principal.tenant_id, reference)
    source, _ = combined(GenerateInput(template=reference), filled)
    text, num_tokens = filled.text, None
    if model is not None:
        job = GenerateRequest(model=model, input=source)
        text, num_tokens = runtime.submissions.render(principal, job)
    messages = [RenderedMessage(role=one.role, content=one.content or "") for one in source.messages or ()]
    return RenderedPrompt(template=use, messages=messages or None, text=text, input_tokens=num_tokens)
