"""Applies the tenants' policies to outputs: reads and compiles the version that a job names, and makes its guards.

A version never changes, so it is read and compiled once. Every text that leaves the worker goes through a
``GuardedOutput``. The filter of the stream feeds one while the deltas come. The job's thread feeds another one with the
same deltas at the end, for the stored output. Equal deltas give equal pieces.

    deltas 1 2 3 4 5 ──▶ guard ──▶ frames 1   2 3        only shown frames have numbers
                           └─ blocks ──▶ the request is cancelled, no more frames are shown

After a missing delta no more frames are shown, because the guard cannot know its text. Readers get the rest from
Postgres when the job has ended.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import structlog
from pydantic import BaseModel

from headrace.features.policy import policies
from headrace.features.policy.document_policy import document_texts, policed_texts
from headrace.policy.budget import ScanTooLong
from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import GuardedOutput, OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.policy.streaming import counted
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import PinnedPolicy, PolicyHit
from headrace.store.payloads.sampling_params import GrammarKind
from headrace.store.streams.checkpoints import ChoiceMark, Marks
from headrace.store.streams.stream_log import Frame
from headrace.store.tasks.generate import GeneratePayload
from headrace.workers.runs.output_guard import FilteredChoices, FilteredFields, FilteredOutput, JobGuards, OutputGuard

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MOST_KEPT = 64
"""Compiled versions: each may take tens of megabytes."""


class CompiledPolicies(JobGuards):
    """The compiled versions that were used last. Thread-safe; reads a missing version from Postgres."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._read = lru_cache(MOST_KEPT)(self._read_now)

    def get(self, tenant_id: str, pinned: PinnedPolicy) -> Policy:
        """Return the policy. Raises Unavailable, NotFound."""
        return self._read(tenant_id, pinned.model, pinned.version)

    def _read_now(self, tenant_id: str, model: str, version: int) -> Policy:
        return Policy(PolicyDocument.model_validate(policies.get_version(self._db, tenant_id, model, version)))

    def output(self, tenant_id: str, pinned: PinnedPolicy, given: BaseModel | None) -> "OutputRules | None":
        """As ``JobGuards.output``."""
        policy = self.get(tenant_id, pinned)
        if not policy.looks_at_outputs:
            return None
        form, vault = OutputFormat.TEXT, PlaceholderMap()
        if isinstance(given, GeneratePayload):
            form, given = _form(given), given.input
        if given is not None:
            vault = PlaceholderMap(counts=pinned.counts)
            # Text of the input that looks like a placeholder must not be used as one in the output.
            vault.reserve([given.model_dump_json()])
        return OutputRules(policy, vault, form)

    def texts(
        self, tenant_id: str, pinned: PinnedPolicy, texts: Sequence[str], what: str, *, after: int | None = None
    ) -> tuple[str, ...]:
        """As ``JobGuards.texts``."""
        policy = self.get(tenant_id, pinned)
        if after is None:
            return document_texts(policy, texts, what)
        return policed_texts(policy, pinned, texts, what, after=after)


def _in_time(apply: Callable[P, T]) -> Callable[P, T]:
    """Raise InvalidRequest where the scan takes too long: the output must not pass."""

    @wraps(apply)
    def in_time(*args: P.args, **named: P.kwargs) -> T:
        try:
            return apply(*args, **named)
        except ScanTooLong as error:
            raise InvalidRequest(str(error), code="policy_scan_too_long") from None

    return in_time


class ChoiceGuards:
    """One guard for each choice of a job. A delta at the end of a choice gets the rest of its text."""

    def __init__(self, new_guard: Callable[[], GuardedOutput]) -> None:
        self._new_guard = new_guard
        self._guards: dict[int, GuardedOutput] = {}

    def of(self, choice: int) -> GuardedOutput:
        """Return the guard of a choice."""
        if choice not in self._guards:
            self._guards[choice] = self._new_guard()
        return self._guards[choice]

    def feed(self, text: str, mark: ChoiceMark | None) -> str:
        """Return the text that is shown for a delta."""
        guard = self.of(0 if mark is None else mark.choice)
        return guard.feed(text) + (guard.finish() if mark is not None and mark.end is not None else "")

    @property
    def blocked_by(self) -> str | None:
        """The rule that blocks one of the outputs."""
        return next((guard.blocked_by for guard in self._guards.values() if guard.blocked_by is not None), None)


@dataclass(frozen=True, slots=True)
class OutputRules(OutputGuard):
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

    def stream_filter(self, on_blocked: Callable[[], object]) -> "StreamFilter":
        """As ``OutputGuard.stream_filter``."""
        return StreamFilter(self.guard, on_blocked)

    @_in_time
    def apply(self, deltas: Sequence[str]) -> FilteredOutput:
        """As ``OutputGuard.apply``."""
        guard = self.guard()
        pieces = [*map(guard.feed, deltas), guard.finish()]
        if not self.holds_back:
            pieces = list(deltas)
        return FilteredOutput("".join(pieces), tuple(filter(None, pieces)), _counted(guard), guard.blocked_by)

    @_in_time
    def apply_to_fields(self, output: dict[str, Any], names: Collection[str] | None) -> FilteredFields:
        """Return the filtered form of an output of fields: of every text in the fields ``names``, or in all of them.

        Equal values have equal placeholders in all of its texts.
        """
        vault = self.vault.model_copy(deep=True)
        guards: list[GuardedOutput] = []

        def filtered(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: filtered(one) for name, one in value.items()}
            if isinstance(value, list):
                return [filtered(one) for one in value]
            if not isinstance(value, str):
                return value
            guards.append(guard := self.policy.guarded_output(vault, self.form))
            left = guard.feed(value) + guard.finish()
            return left if self.holds_back else value

        done = {name: filtered(one) if names is None or name in names else one for name, one in output.items()}
        hits = counted(hit for guard in guards for hit in guard.hits)
        blocked_by = next((guard.blocked_by for guard in guards if guard.blocked_by is not None), None)
        return FilteredFields(done, tuple(map(PolicyHit.model_validate, hits)), blocked_by)

    @_in_time
    def apply_each(self, deltas: Iterable[str], marks: Marks, num_choices: int) -> FilteredChoices:
        """Return the filtered form of all choices of a job, whose deltas came in this order."""
        guards = ChoiceGuards(self.guard)
        given = [*zip(deltas, marks, strict=True)]
        found = [(guards.feed(text, mark), mark) for text, mark in given]
        # A choice that was cancelled has no end among the deltas.
        ended = {mark.choice for mark in marks if mark.end is not None}
        open_ones = [choice for choice in range(num_choices) if choice not in ended]
        found += [(guards.of(choice).finish(), ChoiceMark(choice)) for choice in open_ones]
        if not self.holds_back:
            found = given
        pieces = [(text, mark) for text, mark in found if text or mark.end is not None]
        outputs = [_output_of(choice, pieces, guards.of(choice)) for choice in range(num_choices)]
        return FilteredChoices(tuple(text for text, _ in pieces), tuple(mark for _, mark in pieces), tuple(outputs))


def _output_of(choice: int, pieces: Sequence[tuple[str, ChoiceMark]], guard: GuardedOutput) -> FilteredOutput:
    own = tuple(text for text, mark in pieces if mark.choice == choice and text)
    return FilteredOutput("".join(own), own, _counted(guard), guard.blocked_by)


def _counted(guard: GuardedOutput) -> tuple[PolicyHit, ...]:
    return tuple(map(PolicyHit.model_validate, counted(guard.hits)))


class StreamFilter:
    """Filters the frames of one attempt, in order, and numbers those that are shown. Used by one thread."""

    def __init__(self, new_guard: Callable[[], GuardedOutput], on_blocked: Callable[[], object]) -> None:
        self._guards = ChoiceGuards(new_guard)
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
            text = self._guards.feed(frame.text or "", frame.mark)
            if self._guards.blocked_by is not None:
                self._is_closed = True
                self._on_blocked()
        except Exception as error:  # noqa: BLE001 - frames of other jobs go on, and the outcome is decided elsewhere
            self._is_closed = True
            log.error("gate_failed", job_id=frame.job_id, epoch=frame.epoch, error=type(error).__name__)
            return None
        if not text and (frame.mark is None or frame.mark.end is None):
            return None
        self._num_shown += 1
        return Frame(frame.job_id, frame.epoch, self._num_shown, text, mark=frame.mark)


def _form(payload: GeneratePayload) -> OutputFormat:
    if payload.tool_style is not None:
        return OutputFormat.CALLS
    grammar = payload.sampling.grammar
    is_json = grammar is not None and grammar.kind is GrammarKind.JSON_SCHEMA
    if is_json and payload.reasoning is not None:
        return OutputFormat.CALLS  # only a part of it is JSON
    return OutputFormat.JSON if is_json else OutputFormat.TEXT
