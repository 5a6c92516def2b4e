"""Operations a second against operations for each byte, both logarithmic, as SVG. Rates in, text out."""

import math
from collections.abc import Mapping

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 440, 80, 30, 40, 60


def svg(title: str, bytes_per_s: float, operations_per_s: float, rates: Mapping[str, tuple[float, float]]) -> str:
    """Return the drawing: the machine's roof, and for each name a point (operations a byte, operations a second)."""
    xs = [x for x, _ in rates.values()]
    left, right = 10 ** math.floor(math.log10(min(xs))), 10 ** math.ceil(math.log10(max(xs)))
    high = 10 ** math.ceil(math.log10(operations_per_s))
    low = 10 ** math.floor(math.log10(min(left * bytes_per_s, *(y for _, y in rates.values()))))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(x / left) / math.log(right / left),
            _TOP + (_HEIGHT - _TOP - _BOTTOM) * math.log(high / y) / math.log(high / low),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT, 22, title),
        _text((_LEFT + _WIDTH) / 2, _HEIGHT - 14, "operations for each byte read from memory", "middle"),
    ]
    for power in range(round(math.log10(left)), round(math.log10(right)) + 1):
        (x, top), (_, bottom) = place(10**power, high), place(10**power, low)
        parts += [_line(x, top, x, bottom, "#ddd"), _text(x, bottom + 18, f"{10**power:g}", "middle")]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        (x, y), (end, _) = place(left, 10**power), place(right, 10**power)
        parts += [_line(x, y, end, y, "#ddd"), _text(x - 8, y + 4, f"{10**power / 1e9:g} G/s", "end")]
    ridge = min(max(operations_per_s / bytes_per_s, left), right)
    corner = place(ridge, ridge * bytes_per_s)
    parts += [
        _line(*place(left, left * bytes_per_s), *corner, "#3c3c3c", 2),
        _line(*corner, *place(right, operations_per_s), "#3c3c3c", 2),
    ]
    for name, (x, y) in rates.items():
        at, up = place(x, y)
        share = y / min(operations_per_s, x * bytes_per_s)
        parts += [
            f'<circle cx="{at:.1f}" cy="{up:.1f}" r="4" fill="#1b6ca8"/>',
            _text(at + 8, up + 14, f"{name}: {share:.0%}"),
        ]
    return "\n".join([*parts, "</svg>\n"])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
