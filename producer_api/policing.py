"""A tenant's policy over what comes in: applied before anything of a request is stored.

Every text of the input goes through it, and the metadata; of a response also the items that are kept to be shown again.
All of them share one set of placeholders. What is stored, queued, counted and given to the model is what comes out.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from policy.documents import PolicyDocument
from policy.policies import Policy, apply_input
from store import policies
from store.db import Database
from store.errors import InvalidRequest
from store.payloads import EmbedRequest, GenerateRequest
from store.policies import EVERY_MODEL, StoredPolicy
from store.responses import NewResponse

Request = GenerateRequest | EmbedRequest

KEEP_S = 5.0
"""How long a tenant's policies are remembered: as long a change may take to reach every process."""

_MOST_TENANTS = 10_000
# What names a thing or says of what kind it is, and is no text of anybody's.
_NAMES = frozenset(["role", "type", "id", "call_id", "tool_call_id", "name", "status", "object"])
_SHOWN_AGAIN = ("instructions", "metadata", "prompt", "user", "safety_identifier")


class PolicyBook:
    """The policies in force, compiled once a version. Blocks on Postgres when it has to look."""

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._kept: dict[str, tuple[dict[str, tuple[int, Policy]], float]] = {}

    def policy_for(self, tenant_id: str, model: str) -> Policy | None:
        """Return the tenant's policy for a model, or else that for every model; None if it has none."""
        kept = self._kept.get(tenant_id)
        if kept is None or self._clock() >= kept[1]:
            kept = self._read(tenant_id, {} if kept is None else kept[0])
        found = kept[0].get(model) or kept[0].get(EVERY_MODEL)
        return None if found is None else found[1]

    def _read(
        self, tenant_id: str, known: dict[str, tuple[int, Policy]]
    ) -> tuple[dict[str, tuple[int, Policy]], float]:
        found = {one.model: _compiled(one, known.get(one.model)) for one in policies.list_policies(self._db, tenant_id)}
        if len(self._kept) >= _MOST_TENANTS:
            self._kept.clear()
        self._kept[tenant_id] = found, self._clock() + KEEP_S
        return self._kept[tenant_id]


def _compiled(stored: StoredPolicy, known: tuple[int, Policy] | None) -> tuple[int, Policy]:
    if known is not None and known[0] == stored.version:
        return known
    return stored.version, Policy(PolicyDocument.model_validate(stored.document))


def applied(policy: Policy, request: Request, response: NewResponse | None) -> tuple[Request, NewResponse | None]:
    """Return what may be stored of a request. Raises InvalidRequest with the rule's id if a rule blocks it."""
    fields: dict[str, Any] = {"input": request.model_dump(mode="json", exclude_none=True)["input"]}
    if _has_tokens(fields["input"]):
        raise InvalidRequest("token ids cannot be checked by this tenant's policy: send text", param="input")
    fields["metadata"] = dict(request.metadata)
    if response is not None:
        fields["items"] = response.input
        fields["shown"] = {name: response.request[name] for name in _SHOWN_AGAIN if name in response.request}
    verdict = apply_input(policy, list(_texts(fields)))
    if verdict.blocked_by is not None:
        raise InvalidRequest(
            f"the policy's rule {verdict.blocked_by} does not let this input in",
            code="policy_blocked_input",
            param="input",
        )
    done = _refilled(fields, iter(verdict.texts))
    if response is not None:
        response = replace(response, input=done["items"], request=response.request | done["shown"])
    return _with_input(request, done), response


def _with_input(request: Request, done: dict[str, Any]) -> Request:
    source: Any = done["input"]
    if isinstance(source, list):
        source = tuple(source)
    elif isinstance(source, dict):
        source = _read(type(request.input), source)
    return request.model_copy(update={"input": source, "metadata": done["metadata"]})


def _read(shape: Any, source: dict[str, Any]) -> Any:
    try:
        return shape.model_validate(source)
    except ValidationError:
        # From None: the error carries the input.
        told = "the input is too long once its values are replaced by placeholders"
        raise InvalidRequest(told, param="input") from None


def _has_tokens(source: Any) -> bool:
    """True if an input, or one of several, is given as token ids."""
    if isinstance(source, list):
        return any(not isinstance(one, str) for one in source)
    return isinstance(source, dict) and "token_ids" in source


def _texts(given: Any) -> Iterator[str]:
    """Yield every text in a JSON value, but for names."""
    match given:
        case str():
            yield given
        case dict():
            for key, value in given.items():
                if key not in _NAMES or not isinstance(value, str):
                    yield from _texts(value)
        case list():
            for value in given:
                yield from _texts(value)
        case _:
            return


def _refilled(given: Any, texts: Iterator[str]) -> Any:
    """Return the JSON value with the next of ``texts`` for every text that ``_texts`` yields."""
    match given:
        case str():
            return next(texts)
        case dict():
            return {
                key: value if key in _NAMES and isinstance(value, str) else _refilled(value, texts)
                for key, value in given.items()
            }
        case list():
            return [_refilled(value, texts) for value in given]
        case _:
            return given
