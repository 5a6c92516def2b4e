"""Tracing of one process: off, or on if the environment names an OpenTelemetry collector.

A span is plain data; docs/tracing.md lists its attributes, none of which has a text of a job.
Names under ``gen_ai``, ``http``, ``messaging``, ``server`` and ``error`` are OpenTelemetry's semantic conventions.

The context of a trace is the W3C header ``traceparent``: which trace, which span in it, and whether its spans are
exported. The row of a job holds the header, so that every process finds the job's trace and adds its spans.
"""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from importlib import import_module
from typing import Any, TypeAlias

from headrace.store.errors import SettingsError
from headrace.store.settings import otel_environment
from headrace.store.tracing.otel_settings import ON, read_otel_settings

# Version 00 has four fields; later versions may have more. Version ff and ids of zeros are invalid.
_HEADER = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of a trace. ``trace_id``: 32 hexadecimal digits, ``span_id``: 16. Unsampled: nothing is exported."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @property
    def header(self) -> str:
        """The value of ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"

    def child(self, span_id: str | None = None) -> "TraceContext":
        """Return another span of the trace; without ``span_id`` its id is random."""
        return replace(self, span_id=span_id or new_span_id())


def read_traceparent(header: str | None) -> TraceContext | None:
    """Return the context of a ``traceparent`` header; None if there is none or it is invalid, as W3C asks."""
    found = _HEADER.fullmatch(header or "")
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    return TraceContext(found["trace"], found["span"], bool(int(found["flags"], 16) & _SAMPLED))


def new_trace_id() -> str:
    """Return a random trace id."""
    return secrets.token_hex(16)


def new_span_id() -> str:
    """Return a random span id."""
    return secrets.token_hex(8)


def attempt_span_id(job_id: str, epoch: int) -> str:
    """Return the span id of an attempt. It is the same in every process, so each can link to the attempt."""
    return blake2b(f"{job_id} {epoch}".encode(), digest_size=8).hexdigest()


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


STOP_S = 3.0
"""How long a process that stops waits for its last spans."""


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """Spans since the start: exported, dropped because the queue was full, dropped because their export failed."""

    exported: int = 0
    queue_full: int = 0
    not_exported: int = 0


class Tracing:
    """Tracing that is off: no span is kept, and a trace exists only if the caller has one."""

    is_on = False

    def begin(self, parent: TraceContext | None) -> TraceContext | None:
        """Return the context of a new span: of the caller's trace, or of a new one. The sampler decides.

        While tracing is off it is the caller's context, so that a process with tracing can continue the trace.
        """
        return parent

    def within(self, parent: TraceContext | None) -> TraceContext | None:
        """Return the context of a new span inside ``parent``; while tracing is off it is ``parent``."""
        return parent

    def record(self, span: TraceSpan) -> None:
        """Export a span if its trace is sampled. It is queued; neither waits nor raises."""

    def counts(self) -> SpanCounts:
        """Return what became of the spans."""
        return SpanCounts()

    def stop(self, within_s: float = STOP_S) -> None:
        """Export what is queued, for ``within_s`` at most: a collector that does not answer delays no stop."""


OFF = Tracing()


def open_tracing(service: str, instance: str, environment: Mapping[str, str] | None = None) -> Tracing:
    """Return the tracing that the environment asks for (``OTEL_*``; by default the process's own).

    ``service`` and ``instance`` name the process. Raises SettingsError for a malformed variable or a missing package.
    """
    settings = read_otel_settings(otel_environment() if environment is None else environment)
    if settings is None:
        return OFF
    try:
        export: Any = import_module("headrace.store.tracing.otlp_export")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{ON} needs the package {error.name}: `pip install 'headrace[otel]'`, or unset the variable"
        ) from error
    tracing: Tracing = export.OtlpTracing(settings, service, instance)
    return tracing
