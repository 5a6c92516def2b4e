"""Where the time to the first token goes: the phases of jobs, from the spans that a collector received."""

import statistics
from collections.abc import Iterable, Mapping

from benchmarks.traces.collector import DrawnSpan

_ENDS = {
    "stored": ("accept", "end_ns"),
    "claim begins": ("claim", "start_ns"),
    "claimed": ("claim", "end_ns"),
    "sent to the engine": ("prefill", "start_ns"),
    "first token": ("prefill", "end_ns"),
}
"""The phases of a request, each by a span and the field that has its time."""


def phases(spans: Iterable[DrawnSpan]) -> Mapping[str, float]:
    """Return the median milliseconds from the arrival of a job's request to each phase, over all whole traces."""
    traces: dict[str, dict[str, DrawnSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, {})["POST" if span.name.startswith("POST") else span.name] = span
    whole = [each for each in traces.values() if each.keys() >= {"POST", *(name for name, _ in _ENDS.values())}]
    return {
        phase: round(statistics.median((getattr(each[name], end) - each["POST"].start_ns) / 1e6 for each in whole), 1)
        for phase, (name, end) in _ENDS.items()
        if whole
    }
