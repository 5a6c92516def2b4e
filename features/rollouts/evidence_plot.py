"""The evidence against a candidate over time, as SVG. Pure: the stored history in, text out.

Each line is a check: the decimal logarithm of its e-value. Above the dashed line the check is bad. Below 0 the pairs
speak for the candidate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 210, 34, 44
_COLOURS = (
    "#1b6ca8",
    "#d1495b",
    "#2e933c",
    "#8f5bb5",
    "#e08e1b",
    "#3c3c3c",
    "#00a3a3",
    "#a8741b",
    "#777777",
    "#c2185b",
)
_LOWEST = -3.0
"""Lower values are drawn here: how good a candidate is beyond that is of no interest."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps seconds and logarithms to places on the drawing."""

    seconds: float
    highest: float

    def x(self, seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / self.seconds

    def y(self, log_e: float) -> float:
        log_e = min(max(log_e, _LOWEST), self.highest)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self.highest - log_e) / (self.highest - _LOWEST)


def evidence_svg(title: str, evidence: Mapping[str, Any]) -> str:
    """Return the drawing of ``Rollout.evidence``; one without looks has no lines.

    It needs the keys ``checks`` (name, needed) and ``history`` (at in Unix seconds, percent, log_e by check).
    """
    checks: Sequence[Mapping[str, Any]] = evidence.get("checks", ())
    history: Sequence[Mapping[str, Any]] = [entry for entry in evidence.get("history", ()) if entry.get("log_e")]
    needed = checks[0]["needed"] if checks else 3.0
    values = [value for entry in history for value in entry["log_e"].values()]
    began = history[0]["at"] if history else 0
    scale = _Scale(
        seconds=max(60.0, history[-1]["at"] - began if history else 0.0),
        highest=math.ceil(max(needed + 1, min(max(values, default=0.0), 4 * needed))),
    )
    # A check without a pair has no evidence at any time.
    names = [check["name"] for check in checks if any(entry["log_e"].get(check["name"]) for entry in history)]
    parts = [_frame(title), *_grid(scale, needed), *_steps(scale, history, began)]
    for row, (name, colour) in enumerate(zip(names, _COLOURS, strict=False)):
        points = [(entry["at"] - began, entry["log_e"][name]) for entry in history if name in entry["log_e"]]
        places = " ".join(f"{scale.x(at):.1f},{scale.y(value):.1f}" for at, value in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{places}"/>')
        label_y = _TOP + 10 + 20 * row
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 16}" y="{label_y - 9}" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 33, label_y + 1, f"{name.replace('_', ' ')} {points[-1][1]:.1f}"))
    return "\n".join([*parts, "</svg>\n"])


def _frame(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img"><rect width="100%" height="100%" fill="white"/>{_text(_LEFT, 16, title)}'
    )


def _grid(scale: _Scale, needed: float) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    every = max(1, round((scale.highest - _LOWEST) / 8))
    for log_e in range(int(_LOWEST), int(scale.highest) + 1, every):
        y = scale.y(log_e)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, str(log_e), "end"))
    y = scale.y(needed)
    parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#b00" stroke-dasharray="6 4"/>')
    parts.append(_text(right - 4, y - 4, "bad", "end"))
    for quarter in range(5):
        seconds = scale.seconds * quarter / 4
        parts.append(_text(scale.x(seconds), bottom + 16, f"{seconds / 60:.0f}", "middle"))
    parts.append(_text((_LEFT + right) / 2, bottom + 34, "minutes; log10 of the evidence against", "middle"))
    return parts


def _steps(scale: _Scale, history: Sequence[Mapping[str, Any]], began: float) -> list[str]:
    """Return a mark where the candidate's percentage changes."""
    parts = []
    percent = None
    for entry in history:
        if entry.get("percent") != percent:
            percent = entry["percent"]
            x = scale.x(entry["at"] - began)
            parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#ccc"/>')
            parts.append(_text(x + 3, _TOP - 4, f"{percent:g} %"))
    return parts


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
