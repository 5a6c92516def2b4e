"""Throughput against time to the first token as load rises, as SVG. Pure: points in, text out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 880, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 290, 30, 55
_COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8f5bb5", "#e08e1b", "#3c3c3c", "#00a3a3", "#a8741b")


@dataclass(frozen=True)
class Point:
    """The result at one load: output tokens a second, and the mean seconds to a first token."""

    tokens_per_s: float
    ttft_s: float


def svg(title: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """Return the drawing: a line for each name, its points in the order of rising load. TTFT is logarithmic."""
    points = [point for each in lines.values() for point in each]
    most = _round_up(max((point.tokens_per_s for point in points), default=1.0))
    low = 10 ** math.floor(math.log10(min((point.ttft_s for point in points), default=0.1)))
    high = max(10 * low, 10 ** math.ceil(math.log10(max((point.ttft_s for point in points), default=1.0))))

    def place(point: Point) -> str:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point.tokens_per_s / most
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (math.log(high / point.ttft_s) / math.log(high / low))
        return f"{x:.1f},{y:.1f}"

    parts = [_frame(title), *_grid(most, low, high, place)]
    for (name, each), (n, colour) in zip(lines.items(), enumerate(_COLOURS * len(lines)), strict=False):
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(map(place, each))}"/>'
        )
        for x, y in (place(point).split(",") for point in each):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>')
        label_y = _TOP + 14 + 20 * n
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 15}" y="{label_y - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 33, label_y + 1, name, "start"))
    return "\n".join([*parts, "</svg>\n"])


def _frame(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{_text(_LEFT, 18, title, "start")}'
    )


def _grid(most: float, low: float, high: float, place: Callable[[Point], str]) -> list[str]:
    parts = []
    for n in range(6):
        x, y = place(Point(most * n / 5, low)).split(",")
        parts.append(f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{y}" stroke="#ddd"/>')
        parts.append(_text(float(x), float(y) + 18, f"{most * n / 5:.0f}", "middle"))
    ttft_s = low
    while ttft_s <= high * 1.001:
        x, y = place(Point(0, ttft_s)).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#ddd"/>')
        parts.append(_text(float(x) - 8, float(y) + 4, f"{ttft_s:g} s", "end"))
        ttft_s *= 10
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        _text(middle, _HEIGHT - 14, "output tokens a second (higher is better), mean TTFT (lower is better)", "middle")
    )
    return parts


def _text(x: float, y: float, words: str, anchor: str) -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5 × 10ⁿ that is not smaller."""
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
