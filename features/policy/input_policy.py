"""Applies a tenant's policy to a request before anything of it is stored.

The policy sees every text of the input and the metadata; for the Responses API also the items that are stored. They
share one set of placeholders. Only the changed request is stored, counted and given to the model.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headrace.features.policy import policies
from headrace.features.policy.policies import StoredPolicy
from headrace.policy.budget import Budget, ScanTooLong
from headrace.policy.documents import Action, PolicyDocument, Stage
from headrace.policy.names import load_finder
from headrace.policy.outputs import MissingFinder
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_input
from headrace.policy.recognisers.recogniser import FOUND_BY_NAME
from headrace.policy.streaming import GuardedText, counted
from headrace.policy.text.escapes import unescaped
from headrace.producer_api.submission.draft_job import DraftJob, known
from headrace.producer_api.submission.placeholders_before import placeholders_before
from headrace.producer_api.submission.submission_hook import SubmissionParts
from headrace.producer_api.submission.text_guard import Guarded, LoadGuards, TextGuard
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.jobs import jobs
from headrace.store.jobs.face_row import FaceRow
from headrace.store.payloads.conversation import images_of
from headrace.store.payloads.job_payload import PinnedPolicy, PolicyHit
from headrace.store.tasks.registry import JobRequest

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


class ActivePolicy(TextGuard):
    """The version of a policy that is in force. ``stored.model`` is as in ``PinnedPolicy``."""

    def __init__(self, stored: StoredPolicy, parts: SubmissionParts) -> None:
        self.version = stored.model, stored.version
        self._document = stored.document
        self._parts = parts

    @cached_property
    def policy(self) -> Policy:
        """The policy, compiled at its first use, which may take a second. Raises Unavailable."""
        try:
            return compiled(PolicyDocument.model_validate(self._document), self._parts.settings.names_model)
        except MissingFinder as error:
            raise Unavailable(f"this server cannot follow the tenant's policy: {error}") from error

    @property
    def restores(self) -> bool:
        """As ``TextGuard.restores``."""
        return self.policy.restores

    def apply(self, draft: DraftJob) -> None:
        """As ``TextGuard.apply``."""
        parts, tenant_id, sent = self._parts, draft.principal.tenant_id, (draft.request, draft.response)
        request = parts.preparation.cut_to_length(draft.request, known(draft.version))
        before = placeholders_before(parts.db, tenant_id, draft.response) if self.restores else None
        done = self.request(request, draft.response, before, reads_file=draft.request.reads_file)
        draft.request, draft.response = done.request, done.response
        draft.policy_version, draft.policy = self.version, done.policy
        self._guard_names(draft)
        if not parts.digests.is_keyed and (draft.request, draft.response) != sent:
            # A plain digest of the sent text would let a reader of the database guess the replaced text.
            draft.origin = origin = replace(draft.origin, fingerprint="")
            draft.idempotency = parts.digests.idempotency(
                origin.route, origin.idempotency_key, draft.request, draft.response, is_stored=draft.is_stored
            )

    def _guard_names(self, draft: DraftJob) -> None:
        """Apply the policy to the caller's own names: Idempotency-Key, project and user."""
        if (sent := draft.idempotency) is not None:
            db, tenant_id = self._parts.db, draft.principal.tenant_id
            key = self.key(sent.key, lambda key: jobs.is_known(db, tenant_id, replace(sent, key=key)))
            draft.idempotency = replace(sent, key=key)
        if draft.origin.project_id is not None:
            draft.origin = replace(draft.origin, project_id=self.name(draft.origin.project_id, "OpenAI-Project"))
        if draft.request.user is not None:
            draft.request = draft.request.model_copy(update={"user": self.name(draft.request.user, "user")})

    def request(
        self, request: JobRequest, response: FaceRow | None, before: Mapping[str, Any] | None, *, reads_file: bool
    ) -> Guarded:
        """As ``TextGuard.request``."""
        taken = None if before is None or not self.restores else PlaceholderMap.model_validate(before)
        done = applied(self.policy, request, response, taken)
        for action, num_findings in done.actions.items():
            self._parts.metrics.policy_actions.labels(action).inc(num_findings)
        kept = pinned(self, done, is_sealed=self._parts.db.seal.is_on, reads_file=reads_file)
        return Guarded(
            done.request, done.response, kept, done.vault.model_dump(mode="json") if self.restores else before
        )

    def fields(self, fields: dict[str, Any], param: str) -> dict[str, Any]:
        """As ``TextGuard.fields``."""
        return guarded(self.policy, fields, param)

    def name(self, name: str, param: str) -> str:
        """As ``TextGuard.name``."""
        left, digests = changed_by(self.policy, name, param), self._parts.digests
        if left is None:
            return name
        return f"user_{digests.of('name', name.encode())[0]}" if digests.is_keyed else left

    def key(self, key: str, is_known: Callable[[str], bool]) -> str:
        """As ``TextGuard.key``."""
        param, digests = "Idempotency-Key", self._parts.digests
        if changed_by(self.policy, key, param) is None:
            return key
        if not digests.is_keyed:
            raise InvalidRequest(
                "the policy takes something out of this Idempotency-Key, and this server has no HEADRACE_DIGEST_KEYS: "
                "send a random one",
                param=param,
            )
        first, *others = (f"user_{digest}" for digest in digests.of("name", key.encode()))
        return next((one for one in others if is_known(one)), first)

    def check_fixed(self, text: str, param: str) -> None:
        """As ``TextGuard.check_fixed``."""
        check_fixed(self.policy, text, param)

    def check_unchanged(self, given: Any, param: str, what: str, *, with_names: bool = False) -> None:
        """As ``TextGuard.check_unchanged``."""
        check_unchanged(self.policy, given, param, what, with_names=with_names)

    def check_images(self, param: str) -> None:
        """As ``TextGuard.check_images``."""
        refuse_images(self.policy, param)


def active_policies(parts: SubmissionParts) -> LoadGuards:
    """Return what reads the policies of a tenant. A version that is known is kept, because it may be compiled."""

    def load(tenant_id: str, last: Mapping[str, TextGuard]) -> dict[str, TextGuard]:
        found = {one.model: one for one in policies.list_policies(parts.db, tenant_id)}
        return {
            model: last[model]
            if model in last and last[model].version == (model, one.version)
            else ActivePolicy(one, parts)
            for model, one in found.items()
        }

    return load


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


def refuse_images(policy: Policy, param: str) -> None:
    """Raise InvalidRequest for images if the policy has rules for inputs: it reads no image."""
    if any(policy.document.rules_for(Stage.INPUT)):
        raise InvalidRequest(
            "images cannot be checked by this tenant's policy: give the model a policy of its own, without rules for "
            "inputs",
            param=param,
        )


def check_unchanged(policy: Policy, given: Any, param: str, what: str, *, with_names: bool = False) -> None:
    """Raise InvalidRequest, with the rule's id, for texts that the policy would change. Names only if asked."""
    texts = list(_texts(given))
    with _in_time(param) as budget:
        for text in _names_and_keys(given) if with_names else ():
            _check_fixed(policy, text, param, budget)
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
    model, version = found.version
    return PinnedPolicy(
        model=model,
        version=version,
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
