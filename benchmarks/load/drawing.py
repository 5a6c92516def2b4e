"""The picture: median and 95th percentile of each stream's times, a group for each kind of arrivals. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 820, 230, 150, 34, 30
_BARS = (("request_latency", "#9cc5b5", "whole request"), ("time_to_first_token", "#1d3557", "first token"))
_THICK = 11


def svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the drawing of ``benchmarks.load``'s rows: a bar to the median, a thin line to the 95th percentile."""
    height = _TOP + _ROW * len(rows) + 40
    longest = max((row.get(f"{name}_p95_ms") or 0 for row in rows for name, _, _ in _BARS), default=0) or 1
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT, 18, "milliseconds: a bar to the median, a line to the 95th percentile"),
    ]
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number
        parts.append(_text(8, y + 16, f"{row['arrivals']}: {row['tenant']} {row['task']}"))
        for place, (name, colour, _) in enumerate(_BARS):
            parts += _bar(row.get(f"{name}_p50_ms"), row.get(f"{name}_p95_ms"), scale, y + _THICK * place, colour)
    foot = height - 14
    for place, (_, colour, words) in enumerate(_BARS):
        x = _LEFT + 140 * place
        parts.append(f'<rect x="{x}" y="{foot - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, foot, words))
    return "\n".join([*parts, "</svg>\n"])


def _bar(median: float | None, late: float | None, scale: float, y: float, colour: str) -> list[str]:
    if median is None or late is None:
        return []
    middle = y + _THICK / 2
    right = _LEFT + late * scale
    return [
        f'<rect x="{_LEFT}" y="{y}" width="{median * scale:.1f}" height="{_THICK - 1}" fill="{colour}"/>',
        f'<line x1="{_LEFT}" y1="{middle}" x2="{right:.1f}" y2="{middle}" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{right + 4:.1f}" y="{y + _THICK - 1}" font-size="10">{median:.0f} / {late:.0f}</text>',
    ]


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{words}</text>'
