"""The drawing: jobs under way and requests in the servers, below them the workers, with a line for each kill. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT, _LEFT, _TOP = 820, 260, 50, 30
_WORKERS_HEIGHT = 110
_KILLS = {"server": "#e5989b", "router": "#c1121f"}


@dataclass(frozen=True)
class Sample:
    """The state ``at`` so many seconds: jobs, requests inside the servers, workers wanted and workers that run."""

    at: float
    under_way: int
    in_servers: int
    wanted: int
    workers: int


@dataclass(frozen=True)
class _Curve:
    name: str
    colour: str
    value: Callable[[Sample], int]


_JOBS = (
    _Curve("jobs under way", "#9cc5b5", lambda sample: sample.under_way),
    _Curve("requests in the servers", "#1d3557", lambda sample: sample.in_servers),
)
_WORKERS = (
    _Curve("workers", "#9cc5b5", lambda sample: sample.workers),
    _Curve("workers that the scaler wants", "#c1121f", lambda sample: sample.wanted),
)


def svg(samples: Sequence[Sample], kills: Sequence[tuple[float, str]]) -> str:
    """Return the drawing. ``kills``: seconds and what was killed. Workers are drawn if their number changed."""
    is_scaled = len({sample.workers for sample in samples}) > 1
    whole = _HEIGHT + (_WORKERS_HEIGHT if is_scaled else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {whole}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    kill_names = [(colour, f"a {what} is killed") for what, colour in _KILLS.items()]
    parts += _panel(samples, _JOBS, kills, kill_names, _TOP, _HEIGHT)
    if is_scaled:
        parts += _panel(samples, _WORKERS, kills, [], _HEIGHT + 10, whole)
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    samples: Sequence[Sample],
    curves: Sequence[_Curve],
    kills: Sequence[tuple[float, str]],
    more_names: Sequence[tuple[str, str]],
    top: int,
    foot: int,
) -> list[str]:
    """Return curves over time between ``top`` and ``foot``, with the names of their colours below."""
    last, most = samples[-1].at or 1, max(1, *(curve.value(sample) for sample in samples for curve in curves))
    width, height = _WIDTH - _LEFT - 20, foot - top - 50
    parts = [
        _text(8, top + 8, str(most)),
        _text(8, top + height, "0"),
        _text(_LEFT + width - 60, top + height + 16, f"{last:.0f} s"),
    ]
    for at, what in kills:
        x = _LEFT + width * min(at, last) / last
        parts.append(f'<path d="M{x:.1f} {top}v{height}" stroke="{_KILLS[what]}"/>')
    for curve in curves:
        points = " ".join(
            f"{_LEFT + width * sample.at / last:.1f},{top + height * (1 - curve.value(sample) / most):.1f}"
            for sample in samples
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{curve.colour}" stroke-width="2"/>')
    for number, (colour, name) in enumerate([*((curve.colour, curve.name) for curve in curves), *more_names]):
        x = _LEFT + 190 * number
        parts.append(f'<rect x="{x}" y="{foot - 22}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, foot - 12, name))
    return parts


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{words}</text>'
