"""The spans of an attempt: the wait in the queue, the claim, the phases in the engine, the write of its outcome.

    accept ──┬── queue
             └── chat MODEL ──┬── claim           the attempt: its id follows from job and epoch, and a later one
                              ├── prefill         has a link to the one before it
                              ├── decode
                              └── finish

They are made from times that the attempt has anyway: the phases when the engine has ended its request, the others when
the outcome is stored. A worker that lost the lease writes none of the latter: the dispatcher does, which ended the
attempt. Times are the database's: a reading of this process's monotonic clock is compared with that at the claim's
answer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.models.engine.requests import CompletionOutput, EncodeOutput
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.tracing.tracing import (
    OFF,
    PROVIDER,
    Attribute,
    AttributeValue,
    SpanKind,
    TraceContext,
    TraceSpan,
    Tracing,
    attempt_span_id,
    ns_of,
    read_traceparent,
)
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import Retry

_SAMPLING = {
    "max_tokens": Attribute.MAX_TOKENS,
    "temperature": Attribute.TEMPERATURE,
    "top_p": Attribute.TOP_P,
}
_USAGE = {
    "input_tokens": Attribute.INPUT_TOKENS,
    "output_tokens": Attribute.OUTPUT_TOKENS,
    "cached_tokens": Attribute.CACHED_TOKENS,
    "reasoning_tokens": Attribute.REASONING_TOKENS,
}
# The code of an attempt that another one shall go on with. It is no error.
_HANDED_BACK = "handed_back"

Attributes = dict[Attribute, AttributeValue]


class AttemptSpans:
    """Writes the spans of this worker's attempts, if they are traced and sampled. Used from many threads at once."""

    def __init__(self, tracing: Tracing = OFF, *, worker: str = "", queue: str = "", task: str = "") -> None:
        self._tracing = tracing
        self._worker = worker
        self._queue = queue
        self._task = task

    def traceparent(self, attempt: Attempt) -> str | None:
        """Return the header for what the attempt asks of other programs; None if this process writes no traces.

        An unsampled trace has one too: the other program would begin a trace of its own without it.
        """
        if not self._tracing.is_on or (accept := read_traceparent(attempt.claim.traceparent)) is None:
            return None
        return _AttemptTrace(attempt, accept).context.header

    def computed(self, attempt: Attempt, result: object, submitted_at: float) -> None:
        """Write the phases of a request that the engine has ended: a CompletionOutput, or an EncodeOutput.

        ``submitted_at`` is a reading of the monotonic clock. Without a first token all of it was prefill.
        """
        if (trace := self._trace(attempt)) is None or not isinstance(result, CompletionOutput | EncodeOutput):
            return
        queued_s, first_token_s = 0.0, None
        if isinstance(result, CompletionOutput):
            queued_s, first_token_s = result.queued_s, result.first_token_s
        end_ns = trace.at(submitted_at + result.total_s)
        decode_ns = end_ns if first_token_s is None else trace.at(submitted_at + first_token_s)
        self._tracing.record(trace.span("prefill", trace.at(submitted_at + queued_s), decode_ns))
        if first_token_s is not None:
            self._tracing.record(trace.span("decode", decode_ns, end_ns))

    def ended(self, attempt: Attempt, verdict: Finish | Retry, began_at: float, ended_at: float) -> None:
        """Write the attempt, whose outcome was stored between two readings of the monotonic clock."""
        if (trace := self._trace(attempt)) is None:
            return
        self._tracing.record(trace.span("finish", trace.at(began_at), trace.at(ended_at)))
        if isinstance(verdict, Retry):
            self._write_released(trace, ended_at, verdict.code)
        else:
            code = None if verdict.error is None else str(verdict.error.get("code"))
            self._write_attempt(trace, ended_at, verdict.state.value, _results(verdict), code)

    def released(self, attempts: Iterable[Attempt], code: str, ended_at: float) -> None:
        """Write attempts that went back to the queue without their output."""
        for attempt in attempts:
            if (trace := self._trace(attempt)) is not None:
                self._write_released(trace, ended_at, code)

    def _write_released(self, trace: "_AttemptTrace", ended_at: float, code: str) -> None:
        if code == _HANDED_BACK:
            self._write_attempt(trace, ended_at, code, {}, None)
        else:
            self._write_attempt(trace, ended_at, "released", {}, code)

    def _write_attempt(
        self, trace: "_AttemptTrace", ended_at: float, outcome: str, results: Attributes, code: str | None
    ) -> None:
        claim = trace.attempt.claim
        begin_ns, claimed_ns = trace.at(trace.attempt.claimed_at), trace.at(trace.attempt.answered_at)
        waited_s = claim.queued_s if claim.waited_s is None else claim.waited_s
        about, since_ns = self._about(claim), claimed_ns - round(waited_s * 1e9)
        self._tracing.record(trace.span("queue", since_ns, begin_ns, parent=trace.accept, attributes=about))
        self._tracing.record(trace.span("claim", begin_ns, claimed_ns))
        operation = _operation(self._task, claim.payload)
        attributes = {
            **about,
            Attribute.ATTEMPT_OUTCOME: outcome,
            Attribute.OPERATION: operation,
            **_request(claim),
            **results,
        }
        before = trace.accept.child(attempt_span_id(claim.job_id, claim.epoch - 1))
        self._tracing.record(
            TraceSpan(
                name=f"{operation} {claim.model}",
                context=trace.context,
                parent_span_id=trace.accept.span_id,
                start_ns=begin_ns,
                end_ns=trace.at(ended_at),
                kind=SpanKind.CONSUMER,
                attributes=attributes,
                links=(before,) if claim.waited_s is not None else (),
                error=code,
            )
        )

    def _about(self, claim: Claim) -> Attributes:
        return {
            Attribute.JOB_ID: claim.job_id,
            Attribute.TENANT_ID: claim.tenant_id,
            Attribute.QUEUE: self._queue,
            Attribute.ATTEMPT_NUMBER: claim.attempt,
            Attribute.ATTEMPT_EPOCH: claim.epoch,
            Attribute.WORKER: self._worker,
        }

    def _trace(self, attempt: Attempt) -> "_AttemptTrace | None":
        """Return the trace of an attempt; None if nothing of it is exported."""
        if not self._tracing.is_on or (accept := read_traceparent(attempt.claim.traceparent)) is None:
            return None
        return _AttemptTrace(attempt, accept) if accept.is_sampled else None


class _AttemptTrace:
    """The spans of one attempt: their parents and their clock."""

    def __init__(self, attempt: Attempt, accept: TraceContext) -> None:
        self.attempt = attempt
        self.accept = accept
        self.context = accept.child(attempt_span_id(attempt.job_id, attempt.epoch))
        claimed_at = attempt.claim.claimed_at
        self._claimed_ns = 0 if claimed_at is None else ns_of(claimed_at)

    def at(self, reading: float) -> int:
        """Return a reading of the monotonic clock as the database's time, in nanoseconds since 1970."""
        return self._claimed_ns + round((reading - self.attempt.answered_at) * 1e9)

    def span(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        *,
        parent: TraceContext | None = None,
        attributes: Attributes | None = None,
    ) -> TraceSpan:
        """Return a span; without ``parent`` it is a part of the attempt."""
        parent = parent or self.context
        return TraceSpan(name, parent.child(), parent.span_id, start_ns, end_ns, attributes=attributes or {})


def _operation(task: str, payload: Mapping[str, Any]) -> str:
    """Return the semantic conventions' name of the operation; a task that has none there has its own name."""
    if task != "generate":
        return {"embed": "embeddings"}.get(task, task)
    return "chat" if payload.get("input", {}).get("messages") is not None else "text_completion"


def _request(claim: Claim) -> Attributes:
    """Return what was asked of the model, in numbers."""
    sampling: Mapping[str, Any] = claim.payload.get("sampling") or {}
    asked: Attributes = {name: sampling[key] for key, name in _SAMPLING.items() if sampling.get(key) is not None}
    if (num_choices := claim.payload.get("n")) is not None:
        asked[Attribute.CHOICE_COUNT] = num_choices
    return {
        Attribute.PROVIDER: PROVIDER,
        Attribute.REQUEST_MODEL: claim.model,
        Attribute.RESPONSE_MODEL: f"{claim.model}@{claim.model_version}",
        Attribute.RESPONSE_ID: claim.job_id,
        **asked,
    }


def _results(finish: Finish) -> Attributes:
    """Return the usage and the reason for the end, without any text."""
    usage = finish.usage or {}
    results: Attributes = {name: usage[key] for key, name in _USAGE.items() if usage.get(key) is not None}
    if reason := (finish.output or {}).get("finish_reason"):
        results[Attribute.FINISH_REASONS] = (str(reason),)
    return results
