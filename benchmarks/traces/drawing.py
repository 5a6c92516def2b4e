"""Draws a trace as SVG: a row for each span, children below their parent, links as arrows. Spans in, text out."""

from collections.abc import Iterator, Sequence
from html import escape

from benchmarks.traces.collector import DrawnSpan

_ROW, _NAMES, _WIDTH, _TOP, _LEAST = 24, 330, 1100, 40, 3.0
_COLOURS = {"headrace-api": "#1b6ca8", "headrace-worker": "#2e933c", "headrace-dispatcher": "#8f5bb5"}
_ERROR, _OTHER, _LINK = "#d1495b", "#3c3c3c", "#e08e1b"


def svg(title: str, spans: Sequence[DrawnSpan]) -> str:
    """Return the drawing of one trace."""
    rows = list(_rows(spans))
    begin, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
    height = _TOP + _ROW * (len(rows) + 1) + 10
    places = {span.span_id: number for number, (span, _) in enumerate(rows)}

    def x(at_ns: int) -> float:
        return _NAMES + (_WIDTH - _NAMES - 20) * (at_ns - begin) / max(1, end - begin)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{_LINK}"/></marker></defs>',
        _text(12, 20, title),
        *_legend(height - 14),
    ]
    for number, (span, depth) in enumerate(rows):
        y = _TOP + _ROW * number
        colour = _ERROR if span.is_error else _COLOURS.get(span.service, _OTHER)
        wide = max(_LEAST, x(span.end_ns) - x(span.start_ns))
        parts += [
            f'<line x1="0" y1="{y + _ROW}" x2="{_WIDTH}" y2="{y + _ROW}" stroke="#eee"/>',
            _text(12 + 18 * depth, y + 16, span.name),
            f'<rect x="{x(span.start_ns):.1f}" y="{y + 5}" width="{wide:.1f}" height="14" rx="2" fill="{colour}"/>',
            _length(span, x(span.start_ns) + wide + 5, x(span.start_ns) - 20, y + 16),
        ]
    for number, (span, _) in enumerate(rows):
        parts += [
            f'<path d="M{x(span.start_ns) - 1:.1f},{_TOP + _ROW * number + 12} L{x(span.start_ns) - 14:.1f},'
            f"{_TOP + _ROW * number + 12} L{x(span.start_ns) - 14:.1f},{_TOP + _ROW * places[link] + 21}"
            f'" fill="none" stroke="{_LINK}" stroke-width="1.5" marker-end="url(#tip)"/>'
            for link in span.links
            if link in places
        ]
    return "\n".join([*parts, "</svg>\n"])


def _rows(spans: Sequence[DrawnSpan]) -> Iterator[tuple[DrawnSpan, int]]:
    """Yield the spans as a tree, each with its depth, siblings by their start."""
    known = {span.span_id for span in spans}
    left = sorted(spans, key=lambda span: (span.start_ns, span.end_ns))

    def below(parent_id: str, depth: int) -> Iterator[tuple[DrawnSpan, int]]:
        for span in left:
            if span.parent_id == parent_id:
                yield span, depth
                yield from below(span.span_id, depth + 1)

    for root in (span for span in left if span.parent_id not in known):
        yield root, 0
        yield from below(root.span_id, 1)


def _length(span: DrawnSpan, right: float, left: float, y: float) -> str:
    took_ms = (span.end_ns - span.start_ns) / 1e6
    said = f"{took_ms / 1000:.2f} s" if took_ms >= 1000 else f"{took_ms:.1f} ms"
    return _text(right, y, said) if right < _WIDTH - 60 else _text(left, y, said, anchor="end")


def _legend(y: float) -> list[str]:
    named = {**_COLOURS, "error": _ERROR, "link to the attempt before": _LINK}
    parts, at = [], 12.0
    for name, colour in named.items():
        parts += [f'<rect x="{at}" y="{y - 10}" width="12" height="12" fill="{colour}"/>', _text(at + 17, y, name)]
        at += 40 + 7 * len(name)
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'
