"""The spans of an attempt as plain data: their times, parents, links and attributes, and which attempts have none."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.models.engine.requests import EncodeOutput, FinishReason
from headrace.store.jobs.claims import Finish
from headrace.store.schema.job_states import JobState
from headrace.store.tracing.tracing import (
    Attribute,
    SpanKind,
    TraceContext,
    TraceSpan,
    Tracing,
    attempt_span_id,
    ns_of,
    read_traceparent,
)
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import Retry
from tests.workers.runs.test_outcome import CLAIM, completion

TRACE = "5b8efff798038103d269b633813fc60c"
ACCEPT = "eee19b7ec3c1b174"
AT = datetime(2026, 11, 29, tzinfo=UTC)
ZERO_NS = ns_of(AT)
PAYLOAD: dict[str, Any] = {
    "input": {"messages": []},
    "sampling": {"max_tokens": 8, "temperature": 0.5, "top_p": 0.9, "seed": 3},
    "n": 2,
}
TRACED = replace(CLAIM, payload=PAYLOAD, traceparent=f"00-{TRACE}-{ACCEPT}-01", claimed_at=AT)
ABOUT = {
    "headrace.job.id": "job_1",
    "headrace.tenant.id": "ten_1",
    "headrace.queue": "fake@1",
    "headrace.attempt.number": 2,
    "headrace.attempt.epoch": 4,
    "headrace.worker": "w1",
}
ASKED = {
    "gen_ai.provider.name": "headrace",
    "gen_ai.request.model": "fake",
    "gen_ai.response.model": "fake@1",
    "gen_ai.response.id": "job_1",
    "gen_ai.request.max_tokens": 8,
    "gen_ai.request.temperature": 0.5,
    "gen_ai.request.top_p": 0.9,
    "gen_ai.request.choice.count": 2,
}


class Recording(Tracing):
    """Tracing that is on and keeps its spans."""

    is_on = True

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []

    def record(self, span: TraceSpan) -> None:
        self.spans.append(span)


def attempt(**changes: Any) -> Attempt:
    """An attempt whose claim was sent at 100.0 and answered at 100.5, which is ``AT`` in the database."""
    return Attempt(replace(TRACED, **changes), 100.0, None, 100.5)


def spans_of(tracing: Tracing, task: str = "generate") -> AttemptSpans:
    return AttemptSpans(tracing, worker="w1", queue="fake@1", task=task)


def timed(span: TraceSpan) -> tuple[str, float, float]:
    """The name of a span, and its times in seconds after the answer of the claim."""
    return span.name, (span.start_ns - ZERO_NS) / 1e9, (span.end_ns - ZERO_NS) / 1e9


def test_a_finished_attempt_has_its_wait_its_claim_and_its_end() -> None:
    tracing = Recording()
    output = {"text": "secret", "finish_reason": "stop"}
    usage = {"input_tokens": 5, "output_tokens": 3, "cached_tokens": 0, "reasoning_tokens": 1, "queue_ms": 9.0}
    finish = Finish("job_1", 4, JobState.SUCCEEDED, output, None, usage)
    spans_of(tracing).ended(attempt(queued_s=2.0), finish, 103.0, 103.25)
    end, queue, claim, whole = tracing.spans
    assert [timed(span) for span in tracing.spans] == [
        ("finish", 2.5, 2.75),
        ("queue", -2.0, -0.5),
        ("claim", -0.5, 0.0),
        ("chat fake", -0.5, 2.75),
    ]
    own = attempt_span_id("job_1", 4)
    assert (whole.context.span_id, whole.parent_span_id, whole.links) == (own, ACCEPT, ())
    assert [span.parent_span_id for span in (end, queue, claim)] == [own, ACCEPT, own]
    assert {span.context.trace_id for span in tracing.spans} == {TRACE}
    assert (dict(queue.attributes), dict(claim.attributes), dict(end.attributes)) == (ABOUT, {}, {})
    assert dict(whole.attributes) == {
        **ABOUT,
        **ASKED,
        "headrace.attempt.outcome": "succeeded",
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert (whole.kind, whole.error, queue.kind) == (SpanKind.CONSUMER, None, SpanKind.INTERNAL)


def test_a_later_attempt_waits_since_the_one_before_it_and_links_to_it() -> None:
    tracing = Recording()
    failed = Finish("job_1", 4, JobState.FAILED, None, {"code": "out_of_memory"}, None)
    spans_of(tracing).ended(attempt(queued_s=60.0, waited_s=1.5), failed, 103.0, 103.5)
    _, queue, _, whole = tracing.spans
    assert timed(queue) == ("queue", -1.5, -0.5)
    assert [link.span_id for link in whole.links] == [attempt_span_id("job_1", 3)]
    assert (whole.error, whole.attributes[Attribute.ATTEMPT_OUTCOME]) == ("out_of_memory", "failed")


@pytest.mark.parametrize(
    ("code", "outcome", "error"), [("handed_back", "handed_back", None), ("worker_lost", "released", "worker_lost")]
)
def test_an_attempt_that_goes_back_to_the_queue_says_why(code: str, outcome: str, error: str | None) -> None:
    tracing = Recording()
    spans = spans_of(tracing)
    spans.ended(attempt(), Retry(code, "again"), 103.0, 103.5)
    spans.released([attempt(), attempt(traceparent=None)], code, 104.0)
    ended, released = (span for span in tracing.spans if span.name == "chat fake")
    for span in (ended, released):
        assert (span.attributes[Attribute.ATTEMPT_OUTCOME], span.error) == (outcome, error)
        assert Attribute.FINISH_REASONS not in span.attributes
    assert [timed(span)[2] for span in (ended, released)] == [3.0, 3.5]
    assert [span.name for span in tracing.spans[4:]] == ["queue", "claim", "chat fake"]


def test_the_phases_of_the_engine_begin_after_its_own_queue() -> None:
    """The request was submitted at 101.0, waited 0.25 s, had its first token after 1 s and ended after 2 s."""
    tracing = Recording()
    spans = spans_of(tracing)
    spans.computed(attempt(), completion(FinishReason.STOP), 101.0)
    spans.computed(attempt(), replace(completion(FinishReason.STOP), first_token_s=None), 101.0)
    spans.computed(attempt(), EncodeOutput("r", (), FinishReason.STOP, 3, total_s=0.5), 101.0)
    spans.computed(attempt(), "no result of an engine", 101.0)
    assert [timed(span) for span in tracing.spans] == [
        ("prefill", 0.75, 1.5),
        ("decode", 1.5, 2.5),
        ("prefill", 0.75, 2.5),
        ("prefill", 0.5, 1.0),
    ]
    assert {span.parent_span_id for span in tracing.spans} == {attempt_span_id("job_1", 4)}


@pytest.mark.parametrize(
    ("task", "payload", "name"),
    [
        ("generate", {"input": {"prompt": "x"}}, "text_completion fake"),
        ("generate", PAYLOAD, "chat fake"),
        ("embed", {"input": {"texts": ["x"]}}, "embeddings fake"),
        ("rerank", {"input": {}}, "rerank fake"),
    ],
)
def test_an_attempt_is_named_after_its_operation(task: str, payload: dict[str, Any], name: str) -> None:
    tracing = Recording()
    spans_of(tracing, task).released([attempt(payload=payload)], "handed_back", 104.0)
    assert tracing.spans[-1].name == name


@pytest.mark.parametrize(
    ("traceparent", "is_on", "is_passed_on"),
    [(None, True, False), (f"00-{TRACE}-{ACCEPT}-00", True, True), (TRACED.traceparent, False, False)],
)
def test_an_attempt_that_is_not_traced_writes_nothing(traceparent: str | None, is_on: bool, is_passed_on: bool) -> None:
    """The header goes to other programs for an unsampled trace too: they would begin a trace of their own."""
    tracing = Recording()
    tracing.is_on = is_on
    one, spans = attempt(traceparent=traceparent), spans_of(tracing)
    spans.computed(one, completion(FinishReason.STOP), 101.0)
    spans.ended(one, Retry("worker_lost", "gone"), 103.0, 103.5)
    spans.released([one], "worker_lost", 104.0)
    assert tracing.spans == []
    header = spans.traceparent(one)
    assert (header is not None) == is_passed_on
    if header is not None:
        own = read_traceparent(header)
        assert own == TraceContext(TRACE, attempt_span_id("job_1", 4), is_sampled=False)
