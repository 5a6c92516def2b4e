"""Applies the tenants' policies to outputs: reads and compiles the version that a job names, and makes its guards.

A version never changes, so it is read and compiled once. Every text that leaves the worker goes through a
``GuardedOutput``. The filter of the stream feeds one while the deltas come. The job's thread feeds another one with the
same deltas at the end, for the stored output. Equal deltas give equal pieces.

    deltas 1 2 3 4 5 ──▶ guard ──▶ frames 1   2 3        only shown frames have numbers
                           └─ blocks ──▶ the request is cancelled, no more frames are shown

After a missing delta no more frames are shown, because the guard cannot know its text. Readers get the rest from
Postgres when the job has ended.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from policy.documents import PolicyDocument
from policy.outputs import GuardedOutput, OutputFormat
from policy.placeholders import PlaceholderMap
from policy.policies import Policy
from policy.streaming import counted
from store.db.database import Database
from store.payloads.job_payload import PinnedPolicy, PolicyHit
from store.payloads.sampling_params import GrammarKind
from store.registry import policies
from store.streams.stream_log import Frame
from store.tasks.generate import GeneratePayload

log = structlog.get_logger(__name__)

_MOST_KEPT = 64
"""Compiled versions: each may take tens of megabytes."""


class CompiledPolicies:
    """The compiled versions that were used last. Thread-safe; reads a missing version from Postgres."""

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
class FilteredOutput:
    """An output after the policy: its pieces, and the findings of the rules."""

    text: str
    pieces: tuple[str, ...]
    hits: tuple[PolicyHit, ...] = ()
    blocked_by: str | None = None


@dataclass(frozen=True, slots=True)
class OutputRules:
    """The rules of a policy for one job's output."""

    policy: Policy
    vault: PlaceholderMap
    form: OutputFormat

    @property
    def holds_back(self) -> bool:
        """True if the policy may change outputs: then the model's own text must not be shown or stored."""
        return self.policy.changes_outputs

    def guard(self) -> GuardedOutput:
        """Return a new guard, at the beginning of the output."""
        return self.policy.guarded_output(self.vault.model_copy(deep=True), self.form)

    def apply(self, deltas: Sequence[str]) -> FilteredOutput:
        """Return the filtered form of a whole output that came in these deltas."""
        guard = self.guard()
        pieces = [*map(guard.feed, deltas), guard.finish()]
        if not self.holds_back:
            pieces = list(deltas)
        return FilteredOutput("".join(pieces), tuple(filter(None, pieces)), _counted(guard), guard.blocked_by)


def _counted(guard: GuardedOutput) -> tuple[PolicyHit, ...]:
    return tuple(map(PolicyHit.model_validate, counted(guard.hits)))


class StreamFilter:
    """Filters the frames of one attempt, in order, and numbers those that are shown. Used by one thread."""

    def __init__(self, guard: GuardedOutput, on_blocked: Callable[[], object]) -> None:
        self._guard = guard
        self._on_blocked = on_blocked
        self._num_taken = 0
        self._num_shown = 0
        self._is_closed = False

    def passed(self, frame: Frame) -> Frame | None:
        """Return the frame that is shown instead, or None. Raises nothing."""
        if self._is_closed or frame.seq != self._num_taken + 1:
            self._is_closed = True
            return None
        self._num_taken += 1
        try:
            text = self._guard.feed(frame.text or "")
            if self._guard.blocked_by is not None:
                self._is_closed = True
                self._on_blocked()
        except Exception as error:  # noqa: BLE001 - frames of other jobs go on, and the outcome is decided elsewhere
            self._is_closed = True
            log.error("gate_failed", job_id=frame.job_id, epoch=frame.epoch, error=type(error).__name__)
            return None
        if not text:
            return None
        self._num_shown += 1
        return Frame(frame.job_id, frame.epoch, self._num_shown, text)


def output_rules(cache: CompiledPolicies, tenant_id: str, payload: GeneratePayload) -> OutputRules | None:
    """Return the rules for a job's output, None if there are none. Raises as ``CompiledPolicies.get``."""
    if payload.policy is None:
        return None
    vault = PlaceholderMap(counts=payload.policy.counts)
    # Text of the input that looks like a placeholder must not be used as one in the output.
    vault.reserve([payload.input.model_dump_json()])
    policy = cache.get(tenant_id, payload.policy)
    return OutputRules(policy, vault, _form(payload)) if policy.looks_at_outputs else None


def _form(payload: GeneratePayload) -> OutputFormat:
    if payload.tool_style is not None:
        return OutputFormat.CALLS
    grammar = payload.sampling.grammar
    is_json = grammar is not None and grammar.kind is GrammarKind.JSON_SCHEMA
    return OutputFormat.JSON if is_json else OutputFormat.TEXT
