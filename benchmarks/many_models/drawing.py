"""The picture: which versions had a place at which time, and when processes were killed. Pure: data in, SVG out."""

from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 900, 130, 20, 26, 40
# A look may come late on a busy machine.
_LATE_LOOK_S = 8
_COLOURS = {"starting": "#e9c46a", "serving": "#2a7f62", "draining": "#c0c0c0"}


def svg(runs: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return the drawing: a band for each run, a row for each model.

    A run has ``places``, a list of (seconds, {queue: state}), and ``kills``, a list of (seconds, what).
    """
    band = _TOP + _ROW * len(names) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {band * len(runs) + 30}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (title, run) in enumerate(runs.items()):
        parts += _band(title, run, names, band * number)
    y = band * len(runs) + 12
    for number, (state, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + 120 * number
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>{_text(x + 18, y + 11, state)}')
    return "\n".join([*parts, "</svg>\n"])


def _band(title: str, run: Mapping[str, Any], names: Sequence[str], top: int) -> list[str]:
    places = run["places"]
    end_s = max((at for at, _ in places), default=1.0) or 1.0

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at / end_s

    parts = [f'<text x="{_LEFT}" y="{top + 12}" font-weight="bold">{title}</text>']
    for row, name in enumerate(names):
        y = top + _TOP + _ROW * row
        parts.append(_text(8, y + 14, name))
        parts.append(f'<line x1="{_LEFT}" y1="{y + 20}" x2="{_WIDTH - _RIGHT}" y2="{y + 20}" stroke="#eee"/>')
        for state, begin, end in _spans(places, f"{name}@1"):
            width = max(1.0, x(end) - x(begin))
            parts.append(f'<rect x="{x(begin):.1f}" y="{y}" width="{width:.1f}" height="18" fill="{_COLOURS[state]}"/>')
    foot = top + _TOP + _ROW * len(names)
    for number, (at, what) in enumerate(run["kills"]):
        parts.append(
            f'<line x1="{x(at):.1f}" y1="{top + 28}" x2="{x(at):.1f}" y2="{foot}" stroke="#c1121f" stroke-width="2"/>'
        )
        parts.append(_text(x(at) + 4, top + 36 - 10 * (number % 2), what))
    return parts + [_text(x(at), foot + 14, f"{at} s") for at in range(0, int(end_s) + 1, 30)]


def _spans(places: Sequence[tuple[float, Mapping[str, str]]], queue: str) -> list[tuple[str, float, float]]:
    """Return the times of one queue in one state, as (state, begin, end)."""
    spans: list[tuple[str, float, float]] = []
    for at, states in places:
        state = states.get(queue)
        if state is None:
            continue
        if spans and spans[-1][0] == state and at - spans[-1][2] < _LATE_LOOK_S:
            spans[-1] = (state, spans[-1][1], at)
        else:
            spans.append((state, at, at + 0.5))
    return spans


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{text}</text>'
