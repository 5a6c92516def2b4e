"""Spans on their way to a collector: sampling, a collector that is away, and the list of attributes in the docs."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace.store.tracing.tracing import (
    OFF,
    Attribute,
    SpanCounts,
    SpanKind,
    TraceContext,
    TraceSpan,
    attempt_span_id,
    new_span_id,
    new_trace_id,
    ns_of,
    read_traceparent,
)
from tests.otlp import Collector
from tests.processes import wait_for

DOCS = Path(__file__).parents[3] / "docs" / "tracing.md"
SAMPLED = TraceContext("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", is_sampled=True)
UNSAMPLED = TraceContext(SAMPLED.trace_id, SAMPLED.span_id, is_sampled=False)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def span(context: TraceContext, name: str = "a span") -> TraceSpan:
    return TraceSpan(name, context, None, 1_000, 2_000)


def test_the_sampler_decides_for_new_traces_and_the_caller_for_its_own(collector: Collector) -> None:
    tracing = collector.tracing("api", OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
    begun = [tracing.begin(parent) for parent in (None, UNSAMPLED, SAMPLED)]
    assert [context is not None and context.is_sampled for context in begun] == [False, False, True]
    for number, context in enumerate(begun):
        assert context is not None
        tracing.record(span(context, f"span {number}"))
    tracing.stop()
    wait_for(lambda: tracing.counts().exported, "the sampled span is exported")
    (found,) = collector.spans()
    assert (found.name, found.trace_id) == ("span 2", SAMPLED.trace_id)
    assert found.span_id != SAMPLED.span_id


def test_a_collector_that_hangs_delays_nothing_and_lost_spans_are_counted(collector: Collector) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url("/slow"),
        "OTEL_BSP_MAX_QUEUE_SIZE": "4",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
        # Only four together are sent: a moment between two of them is no end of the batch.
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
    }
    tracing = collector.tracing("api", **environment)
    for _ in range(4):
        tracing.record(span(SAMPLED))
    collector.wait_calls(1, "/slow")
    began_at = time.monotonic()
    for _ in range(7):
        tracing.record(span(SAMPLED))
    assert tracing.counts() == SpanCounts(queue_full=3)
    tracing.stop(0.1)
    assert time.monotonic() - began_at < 20, "the collector answers after 30 s"


@pytest.mark.full
def test_spans_that_the_collector_refuses_are_counted() -> None:
    collector = Collector()
    tracing = collector.tracing("api")
    collector.close()
    tracing.record(span(SAMPLED))
    tracing.stop()
    wait_for(lambda: tracing.counts().not_exported == 1, lambda: f"the span is counted: {tracing.counts()}")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00-00000000000000000000000000000000-eee19b7ec3c1b174-01",
        "00-5b8efff798038103d269b633813fc60c-0000000000000000-01",
        "ff-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174-01",
        "00-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174-01-more",
        "00-5B8EFFF798038103D269B633813FC60C-eee19b7ec3c1b174-01",
    ],
)
def test_an_invalid_traceparent_is_no_trace(header: str | None) -> None:
    assert read_traceparent(header) is None


def test_a_traceparent_is_read_and_written() -> None:
    assert read_traceparent(SAMPLED.header) == SAMPLED
    assert read_traceparent(UNSAMPLED.header) == UNSAMPLED
    later = "cc-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174-03-what-a-later-version-adds"
    assert read_traceparent(later) == SAMPLED


def test_the_docs_list_every_attribute() -> None:
    rows = re.findall(r"^\| `([a-z_.]+\.[a-z_.]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(Attribute)


def test_ids_of_spans_are_those_of_every_process() -> None:
    assert attempt_span_id("job_1", 2) == "4774565c3fd24150"
    assert (len(new_trace_id()), len(new_span_id())) == (32, 16)
    child = SAMPLED.child()
    assert (child.trace_id, child.is_sampled, child.span_id != SAMPLED.span_id) == (SAMPLED.trace_id, True, True)
    assert SAMPLED.child("1" * 16).header == f"00-{SAMPLED.trace_id}-{'1' * 16}-01"
    assert UNSAMPLED.header.endswith("-00")
    assert ns_of(datetime(2026, 11, 29, microsecond=7, tzinfo=UTC)) == 1_795_910_400_000_007_000
    assert (OFF.begin(SAMPLED), OFF.within(SAMPLED), OFF.begin(None), OFF.counts()) == (
        SAMPLED,
        SAMPLED,
        None,
        SpanCounts(),
    )


def test_a_span_is_exported_with_all_that_it_has(collector: Collector) -> None:
    tracing = collector.tracing("api", OTEL_SERVICE_NAME="ours")
    assert tracing.is_on
    inside = tracing.within(SAMPLED)
    assert inside is not None
    assert (inside.trace_id, inside.span_id == SAMPLED.span_id, tracing.within(None)) == (SAMPLED.trace_id, False, None)
    tracing.record(
        TraceSpan(
            "finish",
            SAMPLED,
            "1" * 16,
            2_000,
            1_000,
            kind=SpanKind.CONSUMER,
            attributes={Attribute.JOB_ID: "job_1", Attribute.MAX_TOKENS: 3},
            links=(UNSAMPLED,),
            error="poison",
        )
    )
    tracing.record(span(UNSAMPLED))
    tracing.stop()
    wait_for(lambda: tracing.counts() == SpanCounts(exported=1), lambda: f"it is exported: {tracing.counts()}")
    (found,) = collector.spans()
    assert (found.name, found.span_id, found.parent_id) == ("finish", SAMPLED.span_id, "1" * 16)
    assert (found.start_ns, found.end_ns, found.links, found.error) == (2_000, 2_000, (UNSAMPLED.span_id,), "poison")
    assert found.service == "ours"
    assert found.attributes == {"headrace.job.id": "job_1", "gen_ai.request.max_tokens": 3, "error.type": "poison"}
