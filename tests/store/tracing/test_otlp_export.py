"""Spans on their way to a collector: sampling, a collector that is away, and the list of attributes in the docs."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.tracing.spans import Attribute, TraceSpan
from store.tracing.trace_context import TraceContext, read_traceparent
from store.tracing.tracing import SpanCounts
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
