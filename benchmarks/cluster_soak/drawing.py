"""The picture: one panel for each kind of size, a line for each process or table, red lines for kills. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cluster_soak.growth import Samples

_WIDTH, _LEFT, _RIGHT, _PANEL, _TOP = 960, 60, 150, 150, 34
_COLOURS = ("#1d3557", "#2a7f62", "#c1121f", "#e9a23b", "#7b5ea7", "#4aa3c7", "#8c564b", "#888888")
_LINE_PX = 14


@dataclass(frozen=True)
class Panel:
    """A title, and the series to draw by the name to show."""

    title: str
    series: Mapping[str, str]


def svg(samples: Samples, panels: Sequence[Panel], kills: Sequence[tuple[float, str]]) -> str:
    """Return the drawing. ``kills``: (seconds since the start, the process that was killed)."""
    end_s = max(samples[-1][0], 1.0)
    height = (_PANEL + _TOP) * len(panels) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, panel in enumerate(panels):
        parts += _panel(samples, panel, kills, end_s, top=_TOP + (_PANEL + _TOP) * number)
    parts += [_text(_x(at * 60, end_s), height - 24, f"{at} min") for at in range(0, int(end_s // 60) + 1, 10)]
    parts.append(_text(_LEFT, height - 6, "a thin red line: a process or a server was killed (-9)"))
    return "\n".join([*parts, "</svg>\n"])


def _panel(samples: Samples, panel: Panel, kills: Sequence[tuple[float, str]], end_s: float, top: float) -> list[str]:
    foot = top + _PANEL - 12
    highest = max(
        (values[name] for _, values in samples for name in panel.series.values() if name in values), default=1
    )
    scale = (foot - top) / max(highest, 1.0)
    parts = [f'<text x="{_LEFT}" y="{top - 6}" font-weight="bold">{panel.title}</text>']
    parts += [_text(8, top + 8, f"{highest:.0f}"), _text(8, foot, "0")]
    for at, _ in kills:
        x = _x(at, end_s)
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{foot}" stroke="#f2b8b8"/>')
    parts.append(f'<line x1="{_LEFT}" y1="{foot}" x2="{_WIDTH - _RIGHT}" y2="{foot}" stroke="#666"/>')
    for number, (shown, name) in enumerate(panel.series.items()):
        points = [(_x(at, end_s), foot - values[name] * scale) for at, values in samples if name in values]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_text(_WIDTH - _RIGHT + 8, top + 8 + _LINE_PX * number, shown, colour))
    return parts


def _x(at: float, end_s: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at / end_s


def _text(x: float, y: float, words: str, colour: str = "#333") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}">{words}</text>'
