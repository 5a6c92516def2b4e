"""Tracing of one process: off, or on if the environment names an OpenTelemetry collector."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from headrace.store.errors import SettingsError
from headrace.store.settings import otel_environment
from headrace.store.tracing.otel_settings import ON, read_otel_settings
from headrace.store.tracing.spans import TraceSpan
from headrace.store.tracing.trace_context import TraceContext

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
