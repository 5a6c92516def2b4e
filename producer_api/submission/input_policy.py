"""Applies a tenant's policy to a request before anything of it is stored.

The policy sees every text of the input and the metadata; for the Responses API also the items that are stored. They
share one set of placeholders. Only the changed request is stored, counted and given to the model.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headrace.policy.budget import Budget, ScanTooLong
from headrace.policy.documents import Action, PolicyDocument, Stage
from headrace.policy.names import load_finder
from headrace.policy.outputs import MissingFinder
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_input
from headrace.policy.recognisers.recogniser import FOUND_BY_NAME
from headrace.policy.streaming import GuardedText, counted
from headrace.policy.text.escapes import unescaped
from headrace.producer_api.caches.ttl_cache import LoadingCache
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.jobs.face_row import FaceRow
from headrace.store.payloads.image_input import images_of
from headrace.store.payloads.job_payload import PinnedPolicy, PolicyHit
from headrace.store.registry import policies
from headrace.store.registry.policies import EVERY_MODEL, StoredPolicy
from headrace.store.tasks.registry import JobRequest

KEEP_S = 5.0
"""The longest time until a changed policy takes effect in every process."""

_MAX_TENANTS = 10_000
# Fields that hold a name or a kind, not a text.
_NAMES = frozenset(
    ["role", "type", "id", "call_id", "tool_call_id", "name", "status", "object", "verbosity", "file_id"]
)
# Values of these fields that the protocol defines, not the caller.
_PROTOCOL = (
    "assistant developer system tool user function function_call function_call_output message completed medium"
    " file_search file_search_call input_text output_text text json_object json_schema array boolean integer null"
    " number object string"
    " additionalProperties allOf anyOf const default description enum examples format items maximum maxItems"
    " maxLength minimum minItems minLength oneOf pattern properties required title type"
)
_OURS = frozenset(_PROTOCOL.split())
# Objects with keys that the caller chooses.
_FREE = frozenset(["metadata", "variables"])


class ActivePolicy:
    """The version of a policy that is in force. ``model`` is as in ``store.registry.policies``."""

    def __init__(self, stored: StoredPolicy, names_model: str) -> None:
        self.model = stored.model
        self.version = stored.version
        self._document = stored.document
        self._names_model = names_model

    @cached_property
    def policy(self) -> Policy:
        """The policy, compiled at its first use, which may take a second. Raises Unavailable."""
        try:
            return compiled(PolicyDocument.model_validate(self._document), self._names_model)
        except MissingFinder as error:
            raise Unavailable(f"this server cannot follow the tenant's policy: {error}") from error


class ActivePolicies:
    """The policies in force, by tenant. Blocks on Postgres for those that are not cached."""

    def __init__(self, db: Database, *, names_model: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._names_model = names_model
        self._kept: LoadingCache[str, dict[str, ActivePolicy]] = LoadingCache(
            self._read, ttl_s=KEEP_S, max_size=_MAX_TENANTS, clock=clock
        )

    def policy_for(self, tenant_id: str, model: str) -> ActivePolicy | None:
        """Return the tenant's policy for a model, else its policy for every model; None if it has neither."""
        kept = self._kept.get(tenant_id)
        return kept.get(model) or kept.get(EVERY_MODEL)

    def refresh(self) -> None:
        """Read again the policies that were used lately and have half of their time behind them."""
        self._kept.refresh()

    def _read(self, tenant_ids: Sequence[str]) -> dict[str, dict[str, ActivePolicy]]:
        return {tenant_id: self._read_one(tenant_id) for tenant_id in tenant_ids}

    def _read_one(self, tenant_id: str) -> dict[str, ActivePolicy]:
        known = self._kept.last(tenant_id) or {}
        stored = policies.list_policies(self._db, tenant_id)
        return {one.model: self._active(one, known.get(one.model)) for one in stored}

    def _active(self, stored: StoredPolicy, known: ActivePolicy | None) -> ActivePolicy:
        """Keep a version that is known, because it may be compiled."""
        if known is not None and known.version == stored.version:
            return known
        return ActivePolicy(stored, self._names_model)


def compiled(document: PolicyDocument, names_model: str) -> Policy:
    """Return a compiled policy. Raises BadPattern, and MissingFinder if a finder is not installed.

    ``names_model``: the folder of the model that finds names, empty if there is none.
    """
    finder = None
    if any(FOUND_BY_NAME.intersection(rule.kinds) for rule in document.rules):
        if not names_model:
            raise MissingFinder("names are found by a model of their own: this server has no HEADRACE_NAMES_MODEL")
        finder = load_finder(Path(names_model))
    policy = Policy(document, finder=finder)
    policy.check()
    return policy


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """A request as it may be stored. The vault has the values of its placeholders.

    ``actions``: the number of findings by action.
    """

    request: JobRequest
    response: FaceRow | None
    vault: PlaceholderMap
    flagged: tuple[PolicyHit, ...] = ()
    actions: Mapping[str, int] = field(default_factory=dict)


def applied(
    policy: Policy, request: JobRequest, response: FaceRow | None = None, before: PlaceholderMap | None = None
) -> PolicyOutcome:
    """Return the request as it may be stored. ``before``: the placeholders of the response that it continues.

    Raises InvalidRequest if a rule blocks it (with the rule's id), if a field cannot be checked, or if the scan takes
    too long.
    """
    _check_revealing(policy, request)
    with _in_time("input") as budget:
        return _applied(policy, request, response, before, budget)


def _applied(
    policy: Policy, request: JobRequest, response: FaceRow | None, before: PlaceholderMap | None, budget: Budget
) -> PolicyOutcome:
    fields: dict[str, Any] = {"input": request.model_dump(mode="json", exclude_none=True)["input"]}
    if _has_tokens(fields["input"]):
        raise InvalidRequest("token ids cannot be checked by this tenant's policy: send text", param="input")
    if images_of(request.input):
        refuse_images(policy, "input")
    fields["metadata"] = dict(request.metadata)
    if response is not None:
        fields["items"], fields["shown"] = response.texts()
    for text in (*_fixed(fields["input"], request), *_names_and_keys(fields.get("shown"))):
        _check_fixed(policy, text, "input", budget)
    verdict = apply_input(policy, list(_texts(fields)), before, budget)
    if verdict.blocked_by is not None:
        raise _blocked(verdict.blocked_by, "input")
    done = _refilled(fields, iter(verdict.texts))
    if response is not None:
        response = response.with_texts(done["items"], done["shown"])
    request = _with_input(request, done)
    found = [hit for hits in verdict.hits for hit in hits]
    flagged = counted(hit for hit in found if hit.action is Action.FLAG)
    actions = Counter(hit.action.value for hit in found)
    return PolicyOutcome(request, response, verdict.vault, tuple(map(PolicyHit.model_validate, flagged)), actions)


def guarded(policy: Policy, fields: dict[str, Any], param: str) -> dict[str, Any]:
    """Return fields beside a request as they may be stored. Raises InvalidRequest as ``applied`` does."""
    with _in_time(param) as budget:
        verdict = apply_input(policy, list(_texts(fields)), budget=budget)
    if verdict.blocked_by is not None:
        raise _blocked(verdict.blocked_by, param)
    done: dict[str, Any] = _refilled(fields, iter(verdict.texts))
    return done


def _blocked(rule: str, param: str) -> InvalidRequest:
    message = f"the policy's rule {rule} does not let this input in"
    return InvalidRequest(message, code="policy_blocked_input", param=param)


def _check_revealing(policy: Policy, request: JobRequest) -> None:
    if policy.changes_outputs and (name := request.revealing_field()) is not None:
        raise InvalidRequest(
            f"`{name}` would tell what this tenant's policy takes out of answers: leave it out",
            code="unsupported_parameter",
            param=name,
        )


def _fixed(given: Any, request: JobRequest) -> Iterator[str]:
    """Yield what of a request cannot have a placeholder: speakers' names, keys of schemas, stop strings, a grammar."""
    yield from _names_and_keys(given)
    yield from request.fixed_texts()


def _names_and_keys(given: Any, *, in_schema: bool = False) -> Iterator[str]:
    if isinstance(given, list):
        for value in given:
            yield from _names_and_keys(value, in_schema=in_schema)
    elif isinstance(given, dict):
        for key, value in given.items():
            if in_schema and key not in _OURS:
                yield key
            if key in _NAMES and isinstance(value, str) and value not in _OURS:
                yield value
            yield from _names_and_keys(value, in_schema=in_schema or key == "parameters")


def check_fixed(policy: Policy, text: str, param: str) -> None:
    """Raise InvalidRequest, with the rule's id, if the policy would change a text that cannot have a placeholder."""
    with _in_time(param) as budget:
        _check_fixed(policy, text, param, budget)


def _check_fixed(policy: Policy, text: str, param: str, budget: Budget) -> None:
    for read in (text, unescaped(text)):
        text_of = GuardedText(policy.input, PlaceholderMap(), budget=budget)
        if text_of.finish(read) != read or text_of.blocked_by is not None:
            raise _blocked(text_of.blocked_by or text_of.hits[0].rule_id, param)


@contextmanager
def _in_time(param: str) -> Iterator[Budget]:
    """Yield the scan budget for all texts of one request; raise InvalidRequest when it is used up."""
    try:
        yield Budget()
    except ScanTooLong as error:
        raise InvalidRequest(str(error), code="policy_scan_too_long", param=param) from None


def check_template(policy: Policy, template: dict[str, Any]) -> None:
    """Raise InvalidRequest, with the rule's id, for a prompt template that the policy would change."""
    _check_unchanged(policy, template, "messages", "this template: let requests bring it, as a variable")


def check_pipeline_text(policy: Policy, document: dict[str, Any]) -> None:
    """Raise InvalidRequest, with the rule's id, for a pipeline that the policy would change."""
    _check_unchanged(policy, document, "steps", "this pipeline: let jobs bring it, in their input")


def refuse_images(policy: Policy, param: str) -> None:
    """Raise InvalidRequest for images if the policy has rules for inputs: it reads no image."""
    if any(policy.document.rules_for(Stage.INPUT)):
        raise InvalidRequest(
            "images cannot be checked by this tenant's policy: give the model a policy of its own, without rules for "
            "inputs",
            param=param,
        )


def check_items(policy: Policy, items: list[dict[str, Any]]) -> None:
    """Raise InvalidRequest, with the rule's id, for items of a conversation that the policy would change.

    Their placeholders would have no values: those of a response have them in its job.
    """
    with _in_time("items") as budget:
        for text in _names_and_keys(items):
            _check_fixed(policy, text, "items", budget)
    _check_unchanged(policy, items, "items", "these items: send them as the input of a response")


def _check_unchanged(policy: Policy, given: Any, param: str, what: str) -> None:
    texts = list(_texts(given))
    with _in_time(param) as budget:
        verdict = apply_input(policy, texts, budget=budget)
    if verdict.blocked_by is not None:
        raise _blocked(verdict.blocked_by, param)
    changing = (hit.rule_id for hits in verdict.hits for hit in hits if hit.action in (Action.MASK, Action.REDACT))
    if list(verdict.texts) != texts:
        raise InvalidRequest(
            f"the policy's rule {next(changing)} takes something out of {what}",
            code="policy_blocked_input",
            param=param,
        )


def changed_by(policy: Policy, name: str, param: str) -> str | None:
    """Return a name that the caller chose as the policy changes it, None if it does not.

    Raises InvalidRequest, with the rule's id, if a rule blocks it.
    """
    with _in_time(param) as budget:
        verdict = apply_input(policy, [name], budget=budget)
    if verdict.blocked_by is not None:
        raise _blocked(verdict.blocked_by, param)
    (left,) = verdict.texts
    return None if left == name else left


def pinned(
    found: ActivePolicy, done: PolicyOutcome, *, is_sealed: bool, reads_file: bool = False
) -> PinnedPolicy | None:
    """Return the policy as it is stored with the job, None if it neither checks outputs nor has flagged the input.

    ``is_sealed``: the payload of the job is encrypted. ``reads_file``: the worker applies the policy, to the text of a
    file. Raises Unavailable if values would be stored without encryption.
    """
    if not (found.policy.looks_at_outputs or done.flagged or reads_file):
        return None
    if found.policy.restores and not is_sealed:
        raise Unavailable("this tenant's policy puts values back, and this server has no HEADRACE_ENCRYPTION_KEYS")
    vault = done.vault
    return PinnedPolicy(
        model=found.model,
        version=found.version,
        flagged=done.flagged,
        counts=vault.counts,
        vault=vault.model_dump(mode="json") if vault.values else None,
    )


def _with_input(request: JobRequest, done: dict[str, Any]) -> JobRequest:
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
        # From None, because the error contains the input.
        message = "the input is too long once its values are replaced by placeholders"
        raise InvalidRequest(message, param="input") from None


def _has_tokens(source: Any) -> bool:
    """True if an input, or one of several, is given as token ids."""
    if isinstance(source, list):
        return any(not isinstance(one, str) for one in source)
    return isinstance(source, dict) and ("token_ids" in source or _has_tokens(source.get("prompts", [])))


def _texts(given: Any, *, is_free: bool = False) -> Iterator[str]:
    """Yield every text in a JSON value except names. ``is_free``: the caller chose the keys, so they are texts too."""
    match given:
        case str():
            yield given
        case dict():
            for key, value in given.items():
                if is_free:
                    yield key
                if is_free or key not in _NAMES or not isinstance(value, str):
                    yield from _texts(value, is_free=is_free or key in _FREE)
        case list():
            for value in given:
                yield from _texts(value, is_free=is_free)
        case _:
            return


def _refilled(given: Any, texts: Iterator[str], *, is_free: bool = False) -> Any:
    """Return the JSON value with every text that ``_texts`` yields replaced by the next of ``texts``."""
    match given:
        case str():
            return next(texts)
        case dict():
            done: dict[str, Any] = {}
            for key, value in given.items():
                name = next(texts) if is_free else key
                is_name = not is_free and key in _NAMES and isinstance(value, str)
                done[name] = value if is_name else _refilled(value, texts, is_free=is_free or key in _FREE)
            return done
        case list():
            return [_refilled(value, texts, is_free=is_free) for value in given]
        case _:
            return given
