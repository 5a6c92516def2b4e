"""Routes of a tenant's content policies. Each change is a new version and an audit event."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.policy import policies
from headrace.features.policy.input_policy import compiled
from headrace.features.policy.policies import StoredPolicy
from headrace.policy.deny import check_size
from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import MissingFinder
from headrace.policy.text.patterns import BadPattern
from headrace.producer_api.access.auth import ModelsAdmin
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse, seconds
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.payloads.strict_model import Strict

router = APIRouter(prefix="/v1/policies", tags=["policies"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class PolicyPut(Strict):
    """A policy for one model, or the default for all models without their own."""

    model: str | None = Field(None, min_length=1, max_length=200)
    document: PolicyDocument


class PolicyObject(BaseModel):
    """The newest version of a policy. ``model`` null: the default for all models without their own."""

    object: Literal["policy"] = "policy"
    model: str | None
    version: int
    document: dict[str, Any]
    created_at: int


class PolicyList(BaseModel):
    """A tenant's policies."""

    object: Literal["list"] = "list"
    data: list[PolicyObject]


@router.put("", response_model=PolicyObject, summary="Set a policy")
async def put_policy(runtime: RuntimeOf, principal: ModelsAdmin, body: PolicyPut) -> Response:
    """Store the next version of a policy. All processes apply it within five seconds. No rules: the policy is off."""

    def put() -> StoredPolicy:
        _check(body.document, is_sealed=runtime.db.seal.is_on, names_model=runtime.settings.names_model)
        document = body.document.model_dump(mode="json", exclude_defaults=True) | {"version": body.document.version}
        model = body.model or EVERY_MODEL
        return policies.put(runtime.db, principal.tenant_id, model, {"rules": [], **document}, principal.key_id)

    return JsonResponse(_policy_object(await run_in_threadpool(put)))


@router.get("", response_model=PolicyList, summary="List policies")
async def list_policies(runtime: RuntimeOf, principal: ModelsAdmin) -> Response:
    """Return the newest version of each of the tenant's policies."""
    found = await run_in_threadpool(policies.list_policies, runtime.db, principal.tenant_id)
    return JsonResponse(PolicyList(data=[_policy_object(one) for one in found]))


def _check(document: PolicyDocument, *, is_sealed: bool, names_model: str) -> None:
    """Raise InvalidRequest for a rule that this server cannot apply."""
    for number, rule in enumerate(document.rules):
        where = f"document.rules[{number}]"
        if rule.restore and not is_sealed:
            raise InvalidRequest(
                f"`{where}.restore`: values are stored only encrypted, and this server has no HEADRACE_ENCRYPTION_KEYS",
                code="unsupported_parameter",
                param=f"{where}.restore",
            )
    try:
        check_size(document)
        compiled(document, names_model)
    except (BadPattern, MissingFinder) as error:
        raise InvalidRequest(str(error), param="document") from None


def _policy_object(stored: StoredPolicy) -> PolicyObject:
    return PolicyObject(
        model=stored.model or None,
        version=stored.version,
        document=stored.document,
        created_at=seconds(stored.created_at),
    )
