"""A span as plain data, and the names of its attributes (docs/tracing.md lists them). No attribute has a text of a job.

Names of ``gen_ai``, ``http``, ``messaging``, ``server`` and ``error`` are OpenTelemetry's semantic conventions.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from headrace.store.tracing.trace_context import TraceContext

PROVIDER = "headrace"
"""The value of ``gen_ai.provider.name``."""

AttributeValue: TypeAlias = str | int | float | tuple[str, ...]


class SpanKind(StrEnum):
    """OpenTelemetry's kinds of span, by their names in its SDK."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"
    PRODUCER = "PRODUCER"
    CONSUMER = "CONSUMER"


class Attribute(StrEnum):
    """The attributes of spans."""

    JOB_ID = "headrace.job.id"
    TENANT_ID = "headrace.tenant.id"
    QUEUE = "headrace.queue"
    SERVICE_CLASS = "headrace.service_class"
    REQUEST_ID = "headrace.request.id"
    BATCH_ID = "headrace.batch.id"
    ATTEMPT_NUMBER = "headrace.attempt.number"
    ATTEMPT_EPOCH = "headrace.attempt.epoch"
    ATTEMPT_OUTCOME = "headrace.attempt.outcome"
    WORKER = "headrace.worker"
    EVENT_ID = "headrace.webhook.event.id"
    EVENT_TYPE = "headrace.webhook.event.type"
    DELIVERY_ATTEMPT = "headrace.webhook.attempt"
    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    REQUEST_MODEL = "gen_ai.request.model"
    RESPONSE_MODEL = "gen_ai.response.model"
    RESPONSE_ID = "gen_ai.response.id"
    MAX_TOKENS = "gen_ai.request.max_tokens"
    TEMPERATURE = "gen_ai.request.temperature"
    TOP_P = "gen_ai.request.top_p"
    CHOICE_COUNT = "gen_ai.request.choice.count"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
    HTTP_METHOD = "http.request.method"
    HTTP_ROUTE = "http.route"
    HTTP_STATUS = "http.response.status_code"
    SERVER_ADDRESS = "server.address"
    ERROR_TYPE = "error.type"


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """A span that has ended. Times are nanoseconds since 1970.

    ``links``: spans that this one follows without being their child. ``error``: a code, never a message, because a
    message may quote a text; None without an error. It is the value of ``error.type`` too.
    """

    name: str
    context: TraceContext
    parent_span_id: str | None
    start_ns: int
    end_ns: int
    kind: SpanKind = SpanKind.INTERNAL
    attributes: Mapping[Attribute, AttributeValue] = field(default_factory=dict)
    links: tuple[TraceContext, ...] = ()
    error: str | None = None


def now_ns() -> int:
    """Return the time as nanoseconds since 1970. For spans alone: leases and deadlines use the database's clock."""
    return time.time_ns()


def ns_of(at: datetime) -> int:
    """Return a time as nanoseconds since 1970."""
    return round(at.timestamp() * 1e6) * 1000
