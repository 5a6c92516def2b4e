"""The picture of a plan: wait, time to the first token and cost of each capacity. Pure: figures in, SVG out."""

from collections.abc import Callable, Sequence
from textwrap import wrap

from headrace.features.planner.arrivals import Arrival
from headrace.features.planner.forecast import Forecast
from headrace.features.planner.simulation import Run

_WIDTH, _ROW, _TOP, _LABELS, _GAP = 960, 22, 96, 190, 20
_LINE_CHARS, _LINE_H = 145, 16
_TRACK_H, _TRACK_BINS = 110, 120
_FIXED, _SCALED, _LINE = "#1b6ca8", "#2a7f62", "#c1121f"


def svg(forecasts: Sequence[Forecast], runs: Sequence[Run], *, advice: str, error: str) -> str:
    """Return the drawing. Bars: the 95th percentiles and the cost. Below: arrivals, and the workers of scaled runs.

    ``error``: how far forecasts were from live runs, which is written under the bars.
    """
    has_cost = all(one.cost is not None for one in forecasts)
    panels: list[tuple[str, Callable[[Forecast], float | None], str]] = [
        ("wait, p95", lambda one: one.wait_p95_s, " s"),
        ("time to the first token, p95", lambda one: one.ttft_p95_s, " s"),
        ("cost", lambda one: one.cost, "") if has_cost else ("worker-hours", lambda one: one.worker_hours, " h"),
    ]
    scaled = [run for run in runs if run.capacity.limits is not None]
    foot = _TOP + _ROW * len(forecasts) + 30
    height = foot + 24 + _TRACK_H * len(scaled) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        *(_text(8, 18 + _LINE_H * number, line) for number, line in enumerate(wrap(advice, _LINE_CHARS))),
    ]
    for number, one in enumerate(forecasts):
        parts.append(_text(8, _TOP + _ROW * number + 14, f"{one.rates}: {one.capacity}"))
    width = (_WIDTH - _LABELS - 3 * _GAP) / 3
    for number, (title, value, unit) in enumerate(panels):
        left = _LABELS + number * (width + _GAP)
        parts.append(_text(left, _TOP - 10, title, weight="bold"))
        parts += _bars(left, width - 60, [(one, value(one)) for one in forecasts], unit)
    parts.append(_text(8, foot, f"Error of the forecast against live runs: {error}"))
    for number, run in enumerate(scaled):
        parts += _track(foot + 24 + _TRACK_H * number, run)
    return "\n".join([*parts, "</svg>\n"])


def _bars(left: float, width: float, values: Sequence[tuple[Forecast, float | None]], unit: str) -> list[str]:
    most = max((value or 0.0 for _, value in values), default=0.0) or 1.0
    parts = []
    for number, (one, value) in enumerate(values):
        y = _TOP + _ROW * number
        length = width * (value or 0.0) / most
        colour = _SCALED if one.is_scaled else _FIXED
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{max(1.0, length):.1f}" height="16" fill="{colour}"/>')
        told = "none" if value is None else f"{value:,.2f}{unit}" if value < 10 else f"{value:,.0f}{unit}"
        parts.append(_text(left + length + 4, y + 13, told))
    return parts


def _track(top: float, run: Run) -> list[str]:
    """Return the arrivals in each part of the time, filled, and the workers, as a line."""
    end_s = max(run.ended_at, 1.0)
    width = _WIDTH - _LABELS - _GAP
    counts = _histogram([job.arrival for job in run.jobs], end_s)
    most_jobs, most_workers = max(counts), max((number for _, number in run.workers), default=0) or 1
    base = top + _TRACK_H - 28

    def x(at: float) -> float:
        return _LABELS + width * min(at, end_s) / end_s

    parts = [
        _text(8, top + 26, f"{run.rates.name}: {run.capacity.name}"),
        _text(8, top + 42, f"jobs (filled, most {most_jobs:,}"),
        _text(8, top + 58, f"in {end_s / _TRACK_BINS:,.0f} s), workers (line)"),
    ]
    bar = width / _TRACK_BINS
    for number, jobs in enumerate(counts):
        high = 64 * jobs / most_jobs
        parts.append(
            f'<rect x="{_LABELS + bar * number:.1f}" y="{base - high:.1f}" width="{bar:.1f}" height="{high:.1f}" '
            'fill="#c9d6df"/>'
        )
    path = f"M{x(0):.1f},{base:.1f}"
    for at, number in run.workers:
        path += f" H{x(at):.1f} V{base - 64 * number / most_workers:.1f}"
    parts.append(f'<path d="{path} H{x(end_s):.1f}" fill="none" stroke="{_LINE}" stroke-width="2"/>')
    parts.append(_text(_LABELS, base + 16, "0 s"))
    parts.append(_text(_WIDTH - _GAP - 60, base + 16, f"{end_s:,.0f} s"))
    return [*parts, _text(_LABELS - 22, base - 58, str(most_workers))]


def _histogram(arrivals: Sequence[Arrival], end_s: float) -> list[int]:
    counts = [0] * _TRACK_BINS
    for one in arrivals:
        counts[min(_TRACK_BINS - 1, int(_TRACK_BINS * one.at_s / end_s))] += 1
    return counts


def _text(x: float, y: float, words: str, *, weight: str = "normal") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{words}</text>'
