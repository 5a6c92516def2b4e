"""Routes of prompt templates, which a response request uses in `prompt`. A version never changes."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from producer_api.access.auth import JobsReader, JobsWriter
from producer_api.http.requests import RuntimeOf, StrictJsonRoute
from producer_api.http.views import JsonResponse, seconds
from producer_api.responses.prompt_template import Template
from producer_api.runtime import Runtime
from producer_api.server.errors import DOCUMENTED
from producer_api.submission.input_policy import check_template
from store.registry import prompt_templates
from store.registry.policies import EVERY_MODEL
from store.registry.prompt_templates import PromptVersion
from store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/prompts", tags=["prompts"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class NewPrompt(Template):
    """A template and a display name; requests refer to the id."""

    name: str = Field("", max_length=200)


class PromptObject(Template):
    """One version of a prompt."""

    id: str
    object: Literal["prompt"] = "prompt"
    name: str
    version: int
    created_at: int


class PromptList(BaseModel):
    """Prompts, or versions of one; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[PromptObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _prompt_object(found: PromptVersion) -> PromptObject:
    created_at = seconds(found.created_at)
    fixed = {"id": found.id, "name": found.name, "version": found.version, "created_at": created_at}
    return PromptObject.model_validate(found.template | fixed)


def _prompt_list(found: list[PromptVersion], limit: int) -> PromptList:
    data = [_prompt_object(one) for one in found[:limit]]
    ids = [one.id for one in data]
    return PromptList(
        data=data,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=len(found) > limit,
    )


@router.post("", status_code=201, response_model=PromptObject, summary="Create a prompt")
async def create_prompt(runtime: RuntimeOf, principal: JobsWriter, body: NewPrompt) -> Response:
    """Store a template as version 1 of a new prompt. Every `{{name}}` in it must be declared in `variables`."""
    template = body.model_dump(mode="json", exclude={"name"})

    def create() -> PromptVersion:
        _check(runtime, principal, {**template, "title": body.name})
        tenant_id, actor = principal.tenant_id, principal.key_id
        return prompt_templates.create(runtime.db, tenant_id, name=body.name, template=template, actor=actor)

    return JsonResponse(_prompt_object(await run_in_threadpool(create)), status_code=201)


def _check(runtime: Runtime, principal: Principal, template: dict[str, Any]) -> None:
    """Raise InvalidRequest if the tenant's policy for all models forbids storing the template."""
    found = runtime.policies.policy_for(principal.tenant_id, EVERY_MODEL)
    if found is not None:
        check_template(found.policy, template)


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
    return JsonResponse(_prompt_list(list(found), limit))


@router.post("/{prompt_id}/versions", status_code=201, response_model=PromptObject, summary="Add a version")
async def add_version(runtime: RuntimeOf, principal: JobsWriter, prompt_id: str, body: Template) -> Response:
    """Store the next version of a prompt. It is now the default version."""
    template = body.model_dump(mode="json")

    def add() -> PromptVersion:
        _check(runtime, principal, template)
        tenant_id, actor = principal.tenant_id, principal.key_id
        return prompt_templates.add_version(runtime.db, tenant_id, prompt_id, template=template, actor=actor)

    return JsonResponse(_prompt_object(await run_in_threadpool(add)), status_code=201)


@router.get("/{prompt_id}/versions", response_model=PromptList, summary="List a prompt's versions")
async def list_versions(runtime: RuntimeOf, principal: JobsReader, prompt_id: str) -> Response:
    """Return every version of a prompt, oldest first."""
    found = await run_in_threadpool(prompt_templates.list_versions, runtime.db, principal.tenant_id, prompt_id)
    return JsonResponse(_prompt_list(list(found), len(found)))
