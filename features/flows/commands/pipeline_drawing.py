"""Draws a pipeline: as lines of text, and as SVG with a box for each step. Pure."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Steps = Sequence[Mapping[str, Any]]

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 180, 56, 60, 24, 20


def answer_of(steps: Steps) -> str:
    """Return the step with the answer: the one that is marked, else the one that no other step needs."""
    needed = {name for step in steps for name in step.get("needs", ())}
    marked = [step["name"] for step in steps if step.get("stream")]
    return str((marked or [step["name"] for step in steps if step["name"] not in needed])[0])


def layers(steps: Steps) -> list[list[Mapping[str, Any]]]:
    """Return the steps in layers: each is one behind the last of those that it needs."""
    left = {step["name"]: step for step in steps}
    found: list[list[Mapping[str, Any]]] = []
    while left:
        ready = [step for step in left.values() if not left.keys() & set(step.get("needs", ()))]
        if not ready:
            raise ValueError("the steps wait for each other")
        found.append(ready)
        for step in ready:
            del left[step["name"]]
    return found


def text_lines(steps: Steps) -> list[str]:
    """Return a line for each step: what it needs, its name, what runs it."""
    answer = answer_of(steps)
    rows = [
        (", ".join(step.get("needs", ())) or "input", step["name"], _runs(step), step["name"] == answer)
        for layer in layers(steps)
        for step in layer
    ]
    before, name = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [
        f"{row[0]:>{before}} ─▶ {row[1]:<{name}}  {row[2]}{'  the answer' if row[3] else ''}".rstrip() for row in rows
    ]


def svg(title: str, steps: Steps) -> str:
    """Return the drawing: layers from left to right, arrows from what is needed."""
    columns = layers(steps)
    places = {
        step["name"]: (_MARGIN + column * (_WIDTH + _ACROSS), _MARGIN + 20 + row * (_HEIGHT + _DOWN))
        for column, layer in enumerate(columns)
        for row, step in enumerate(layer)
    }
    width = 2 * _MARGIN + len(columns) * (_WIDTH + _ACROSS) - _ACROSS
    height = 2 * _MARGIN + 20 + max(map(len, columns)) * (_HEIGHT + _DOWN) - _DOWN
    answer = answer_of(steps)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN}" font-weight="bold">{escape(title)}</text>',
    ]
    parts += [_arrow(places[name], places[step["name"]]) for step in steps for name in step.get("needs", ())]
    parts += [_box(places[step["name"]], step, is_answer=step["name"] == answer) for step in steps]
    return "\n".join([*parts, "</svg>\n"])


def _runs(step: Mapping[str, Any]) -> str:
    return f"{step.get('task', 'generate')}, {step['model']}"


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    from_x, from_y, to_x, to_y = start[0] + _WIDTH, start[1] + _HEIGHT // 2, end[0], end[1] + _HEIGHT // 2
    middle = (from_x + to_x) // 2
    path = f"M{from_x} {from_y}C{middle} {from_y} {middle} {to_y} {to_x} {to_y}"
    return f'<path d="{path}" fill="none" stroke="#666" marker-end="url(#end)"/>'


def _box(place: tuple[int, int], step: Mapping[str, Any], *, is_answer: bool) -> str:
    x, y = place
    colours = 'fill="#e3f1e6" stroke="#2f7d46" stroke-width="2"' if is_answer else 'fill="#f4f6f8" stroke="#8a94a0"'
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" {colours}/>'
        f'<text x="{x + 10}" y="{y + 23}" font-weight="bold">{escape(_short(step["name"]))}</text>'
        f'<text x="{x + 10}" y="{y + 43}" fill="#555">{escape(_short(_runs(step)))}</text>'
    )


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"
