"""The drawing: jobs under way and requests inside the servers over the day, with a line for each kill. Pure."""

from collections.abc import Sequence

_WIDTH, _HEIGHT, _LEFT, _TOP = 820, 260, 50, 30
_CURVES = ((1, "#9cc5b5", "jobs under way"), (2, "#1d3557", "requests in the servers"))
_KILLS = {"server": "#e5989b", "router": "#c1121f"}


def svg(samples: Sequence[tuple[float, int, int]], kills: Sequence[tuple[float, str]]) -> str:
    """Return the drawing. ``samples``: seconds, jobs under way, requests in servers; ``kills``: seconds and what."""
    last, most = samples[-1][0] or 1, max(1, *(max(sample[1:]) for sample in samples))
    width, height = _WIDTH - _LEFT - 20, _HEIGHT - _TOP - 50

    def place(at: float, value: float) -> str:
        return f"{_LEFT + width * at / last:.1f},{_TOP + height * (1 - value / most):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        _text(8, _TOP + 8, str(most)),
        _text(8, _TOP + height, "0"),
        _text(_LEFT + width - 60, _TOP + height + 16, f"{last:.0f} s"),
    ]
    for at, what in kills:
        x = _LEFT + width * min(at, last) / last
        parts.append(f'<path d="M{x:.1f} {_TOP}v{height}" stroke="{_KILLS[what]}"/>')
    for column, colour, _ in _CURVES:
        points = " ".join(place(sample[0], sample[column]) for sample in samples)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    legend = [(colour, name) for _, colour, name in _CURVES]
    legend += [(colour, f"a {what} is killed") for what, colour in _KILLS.items()]
    for number, (colour, name) in enumerate(legend):
        x = _LEFT + 190 * number
        parts.append(f'<rect x="{x}" y="{_HEIGHT - 22}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, _HEIGHT - 12, name))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{words}</text>'
