"""The table and the drawing of ``benchmarks.scoreboard``. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.scoreboard.contestants import Contestant

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 900, 230, 20, 26, 46
_PANELS = (
    ("lost", "#c1121f"),
    ("failed", "#e9a23b"),
    ("doubled", "#7b5ea7"),
    ("holes", "#4aa3c7"),
    ("not_stopped", "#888888"),
)
_SHOWN = {"holes": "streams with holes", "not_stopped": "cancels ignored"}

Rows = Mapping[Contestant, Mapping[str, Any]]
Cell = Callable[[Contestant, Mapping[str, Any]], str]


def _streams(_contestant: Contestant, row: Mapping[str, Any]) -> str:
    return f"{row['holes']} of {row['streams']}" if row["streams"] else "no stream"


def _cancels(_contestant: Contestant, row: Mapping[str, Any]) -> str:
    if not row["cancels"]:
        return "no cancel"
    if not row["cancel_s"]:
        return f"never ({row['not_stopped']})"
    ignored = f", {row['not_stopped']} not" if row["not_stopped"] else ""
    return f"{row['cancel_p50_s']:g} / {row['cancel_s'][-1]:g}{ignored}"


_COLUMNS: dict[str, Cell] = {
    "accepted": lambda _, row: str(row["accepted"]),
    "refused": lambda _, row: str(row["refused"]),
    "**lost**": lambda _, row: f"**{row['lost']}**",
    "failed": lambda _, row: str(row["failed"]),
    "**doubled**": lambda contestant, row: f"**{row['doubled']}**" if contestant.has_effect else "–",
    "computed twice": lambda _, row: str(row["computed_twice"]),
    "wrong": lambda _, row: str(row["wrong"]),
    "streams with holes": _streams,
    "s until a cancel stops the work, p50 / max": _cancels,
    "s to the last end": lambda _, row: " / ".join(f"{seconds:g}" for seconds in row["last_end_s"]),
}


def table(rows: Rows) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| | " + " | ".join(_COLUMNS) + " |", "|---|" + "---:|" * len(_COLUMNS)]
    for contestant, row in rows.items():
        cells = [cell(contestant, row) for cell in _COLUMNS.values()]
        lines.append(f"| {contestant.what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drawing(rows: Rows) -> str:
    """Return a drawing: a column for each thing that goes wrong, a bar for each contestant; no bar is none."""
    height = _TOP + _ROW * len(rows) + 14
    column = (_WIDTH - _LEFT - _RIGHT) / len(_PANELS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, contestant in enumerate(rows):
        parts.append(_text(8, _TOP + _ROW * number + 15, contestant.what))
    for place, (key, colour) in enumerate(_PANELS):
        left = _LEFT + column * place
        most = max(max(row[key] for row in rows.values()), 1)
        parts.append(f'<text x="{left:.0f}" y="22" font-weight="bold">{_SHOWN.get(key, key)}</text>')
        parts.append(f'<line x1="{left}" y1="{_TOP - 12}" x2="{left}" y2="{height - 10}" stroke="#999"/>')
        for number, (contestant, row) in enumerate(rows.items()):
            y = _TOP + _ROW * number
            if not _applies(key, contestant, row):
                parts.append(_text(left + 5, y + 15, "no such thing", "#999"))
                continue
            width = row[key] / most * (column - 42)
            parts.append(f'<rect x="{left:.1f}" y="{y + 3}" width="{width:.1f}" height="15" fill="{colour}"/>')
            parts.append(_text(left + width + 5, y + 15, str(row[key])))
    return "\n".join([*parts, "</svg>\n"])


def _applies(key: str, contestant: Contestant, row: Mapping[str, Any]) -> bool:
    if key == "doubled":
        return contestant.has_effect
    return bool({"holes": row["streams"], "not_stopped": row["cancels"]}.get(key, True))


def _text(x: float, y: float, words: str, colour: str = "#333") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}">{words}</text>'
