"""A job's timeline as text for a terminal: a line for each attempt, one for each webhook, and the events below.

What was not recorded is not drawn: an attempt without a first token is one bar.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from headrace.cli.render import Json, clock, duration, table, worker_name
from headrace.client import JobInfo

_NAME = 12
_ENDED = {"succeeded", "failed", "cancelled", "expired"}
_LOST = {"released": "given back", "lease_expired": "lost"}

# The sign and the colour of each kind of part.
_SIGNS = {
    "waited": ("░", "yellow"),
    "first token": ("▒", "cyan"),
    "decoded": ("█", "green"),
    "ran": ("▓", "blue"),
    "given back": ("x", "magenta"),
    "lost": ("x", "red"),
    "delivered": ("●", "green"),
    "refused": ("●", "red"),
}
_LEGEND = {"first token": "until the first token", "ran": "ran, first token not recorded", "refused": "not delivered"}


@dataclass(frozen=True)
class Part:
    """A part of a line, from ``start`` to ``end`` in Unix seconds. A point has no length."""

    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Lane:
    """A line of the timeline with its name."""

    name: str
    parts: tuple[Part, ...]


def lanes(job: JobInfo, timeline: Json, deliveries: Sequence[Json], now: float) -> list[Lane]:
    """Return the lines. ``deliveries`` have their tries; ``now`` (Unix seconds) ends what still goes on."""
    events, attempts = timeline["events"], timeline["attempts"]
    accepted = events[0]["at"] if events else job["created_at"]
    ended = events[-1]["at"] if events and events[-1]["kind"] in _ENDED else None
    found, waits_from = [], accepted
    for number, attempt in enumerate(attempts, 1):
        waited = Part("waited", waits_from, attempt["started_at"])
        found.append(Lane(f"attempt {number}", (waited, *_computed(job, attempt, accepted, now))))
        waits_from = attempt["ended_at"]
    if not attempts or (waits_from is not None and ended is None):
        found.append(Lane("waiting", (Part("waited", waits_from, ended or now),)))
    for delivery in deliveries:
        points = [Part(_received(one), one["at"], one["at"]) for one in delivery["tries"]]
        found.append(Lane("webhook", tuple(points)))
    return [lane for lane in found if lane.parts]


def _received(attempt: Json) -> str:
    return "delivered" if attempt["status"] is not None and attempt["status"] < 300 else "refused"


def _computed(job: JobInfo, attempt: Json, accepted: float, now: float) -> Iterator[Part]:
    start, end = attempt["started_at"], attempt["ended_at"] or now
    first = _first_token_at(job, attempt, accepted, end)
    lost = _LOST.get(attempt["outcome"])
    if first is None:
        yield Part(lost or "ran", start, end)
    else:
        yield Part("first token", start, first)
        yield Part(lost or "decoded", first, end)


def _first_token_at(job: JobInfo, attempt: Json, accepted: float, end: float) -> float | None:
    """Return when the attempt's first token came. Of a lost attempt it is the job's, if that lies inside."""
    if (own_ms := attempt.get("first_token_ms")) is not None:
        return float(attempt["started_at"] + own_ms / 1000)
    first_ms = job["usage"] and job["usage"]["first_token_ms"]
    first = None if first_ms is None else accepted + first_ms / 1000
    return first if first is not None and attempt["started_at"] <= first <= end else None


class TimelineChart:
    """The lines on one axis, a legend, and the events with their times. It is as wide as the terminal."""

    def __init__(self, found: Sequence[Lane], events: Sequence[Json]) -> None:
        self._lanes = found
        self._events = events

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = [part for lane in self._lanes for part in lane.parts]
        if not parts:
            return
        start, end = min(part.start for part in parts), max(part.end for part in parts)
        width = max(10, min(options.max_width, 120) - _NAME - 1)
        for lane in self._lanes:
            yield Text(f"{lane.name:<{_NAME}}", "dim").append(_bar(lane, start, end, width))
        total = duration(end - start)
        yield Text(f"{'':<{_NAME}}{clock(start)}{total:>{max(0, width - len(clock(start)))}}", "dim")
        yield _legend(parts)
        yield Text("")
        yield table("time", "after", "event", "detail", rows=(_event(one, start) for one in self._events))


def _bar(lane: Lane, start: float, end: float, width: int) -> Text:
    """Draw the parts in ``width`` columns, each in at least one; a later part is drawn over an earlier one."""
    per_s = width / max(end - start, 1e-6)
    cells: list[tuple[str, str]] = [(" ", "")] * width
    for part in lane.parts:
        left = min(width - 1, int((part.start - start) * per_s))
        right = max(left + 1, min(width, round((part.end - start) * per_s)))
        cells[left:right] = [_SIGNS[part.kind]] * (right - left)
    return Text.assemble(*cells)


def _legend(parts: Sequence[Part]) -> Text:
    kinds = [kind for kind in _SIGNS if any(part.kind == kind for part in parts)]
    legend = Text("")
    for kind in kinds:
        sign, colour = _SIGNS[kind]
        legend.append(sign, colour).append(f" {_LEGEND.get(kind, kind)}  ", "dim")
    return legend


def _event(event: Json, start: float) -> tuple[str, str, str, str]:
    told = ", ".join(f"{name} {_value(name, value)}" for name, value in event["detail"].items())
    return clock(event["at"], with_ms=True), duration(event["at"] - start), event["kind"].replace("_", " "), told


def _value(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}"
    if isinstance(value, Mapping):  # the usage of a step
        return f"{value.get('input_tokens', 0)} + {value.get('output_tokens', 0)} tokens"
    return worker_name(str(value)) if name == "worker" else str(value)
