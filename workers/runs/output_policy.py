"""The tenants' policies over what comes back: which version a job is under, and the guard that it makes of it.

A job names its version, which never changes; so a version is read and compiled once. Between the engine's text and
everything that leaves stands a ``GuardedOutput``: the frames' thread feeds one as the deltas come, and the job's thread
another one with the same deltas at the end, for what is stored. Equal deltas make equal pieces.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from policy.documents import PolicyDocument
from policy.outputs import Form, GuardedOutput
from policy.placeholders import Vault
from policy.policies import Policy
from policy.streaming import counted
from store.db.database import Database
from store.payloads.job_payload import PinnedPolicy, PolicyHit
from store.payloads.sampling_params import GrammarKind
from store.registry import policies
from store.tasks.generate import GeneratePayload

_MOST_KEPT = 64
"""A compiled side of a policy may take tens of megabytes."""


class PolicyBook:
    """Compiled versions, the last ones used. Threads may share one; blocks on Postgres for a version it has not."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int], Policy] = OrderedDict()

    def get(self, tenant_id: str, pinned: PinnedPolicy) -> Policy:
        """Return the policy. Raises Unavailable, NotFound."""
        key = (tenant_id, pinned.model, pinned.version)
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
        document = policies.get_version(self._db, tenant_id, pinned.model, pinned.version)
        policy = Policy(PolicyDocument.model_validate(document))
        with self._lock:
            self._kept[key] = policy
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return policy


@dataclass(frozen=True, slots=True)
class Said:
    """An output as it may leave: the pieces in which it does, and what rules found in it."""

    text: str
    pieces: tuple[str, ...]
    hits: tuple[PolicyHit, ...] = ()
    blocked_by: str | None = None


@dataclass(frozen=True, slots=True)
class OutputRules:
    """What a policy says of one job's output. Makes as many guards as are asked for, all alike."""

    policy: Policy
    vault: Vault
    form: Form

    @property
    def holds_back(self) -> bool:
        """True if what leaves may differ from what the model says: nothing of that may be shown or kept then."""
        return self.policy.changes_outputs

    def guard(self) -> GuardedOutput:
        """Return a guard at the output's beginning."""
        return self.policy.guarded_output(self.vault.model_copy(deep=True), self.form)

    def apply(self, deltas: Sequence[str]) -> Said:
        """Return what becomes of a whole output that came in these deltas."""
        guard = self.guard()
        pieces = [*map(guard.feed, deltas), guard.finish()]
        if not self.holds_back:
            pieces = list(deltas)
        return Said("".join(pieces), tuple(filter(None, pieces)), _counted(guard), guard.blocked_by)


def _counted(guard: GuardedOutput) -> tuple[PolicyHit, ...]:
    return tuple(map(PolicyHit.model_validate, counted(guard.hits)))


def output_rules(book: PolicyBook, tenant_id: str, payload: GeneratePayload) -> OutputRules | None:
    """Return the rules that a job's output is under, None if there are none. Raises as ``PolicyBook.get``."""
    if payload.policy is None:
        return None
    vault = Vault(counts=payload.policy.counts)
    # Whatever looks like a placeholder in the input is not this output's to give out.
    vault.reserve([payload.input.model_dump_json()])
    policy = book.get(tenant_id, payload.policy)
    return OutputRules(policy, vault, _form(payload)) if policy.looks_at_outputs else None


def _form(payload: GeneratePayload) -> Form:
    if payload.tool_style is not None:
        return Form.CALLS
    grammar = payload.sampling.grammar
    is_json = grammar is not None and grammar.kind is GrammarKind.JSON_SCHEMA
    return Form.JSON if is_json else Form.TEXT
