"""Quality reports for people: the rows of a table, and bars as SVG. Pure: reports as JSON objects in, text out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

_PANEL_WIDTH, _NAME_WIDTH, _BAR_WIDTH, _ROW = 340, 120, 135, 22
_COLUMNS, _TOP, _PANEL_TOP = 2, 34, 24
_REFERENCE, _VERSION = "#8a949e", "#1b6ca8"


@dataclass(frozen=True, slots=True)
class _Bars:
    """One panel: a figure of each version. ``known``: what it is for a reference; None: one of its own figures."""

    title: str
    value: Callable[[Json], float | None]
    text: Callable[[float], str]
    known: float | None = None


def report_rows(report: Json) -> list[tuple[str, str, str]]:
    """Return the rows of a report's table: what it is, the version's figure, the reference's."""
    one, other = report["version"], report["reference"]
    rows = [
        ("number format", one["dtype"], other["dtype"]),
        ("perplexity", *(_or_none(each["perplexity"], lambda value: f"{value:.3f}") for each in (one, other))),
        ("KL divergence", _or_none(report["kl"], lambda value: f"{value:.5f}"), "0"),
        ("top-1 agreement", _or_none(report["agreement"], lambda value: f"{value:.4f}"), "1"),
        ("same continuations", f"{report['same_answers']} of {report['num_answers']}", ""),
        ("load", *(_or_none(each["load_s"], lambda value: f"{value:.1f} s") for each in (one, other))),
        ("memory at load", *(_or_none(each["memory_bytes"], _megabytes) for each in (one, other))),
        ("tokens/s", *(_or_none(each["tokens_per_s"], lambda value: f"{value:.0f}") for each in (one, other))),
        ("first token", *(_or_none(each["first_token_s"], _milliseconds) for each in (one, other))),
        *([("not measured", report["missing"], "")] if report.get("missing") else []),
        ("weights on the disk", *[_or_none(report["disk_bytes"], _megabytes)] * 2),
    ]
    return [(str(name), str(mine), str(its)) for name, mine, its in rows]


def report_line(report: Json) -> str:
    """Return a report in one line."""
    ratio = _ratio(report)
    if report["agreement"] is None or report["kl"] is None or ratio is None:
        return f"{report['same_answers']} of {report['num_answers']} continuations as {report['against']}"
    return (
        f"{report['agreement']:.1%} of the next tokens of {report['against']}, KL {report['kl']:.4f}, "
        f"perplexity × {ratio:.3f}"
    )


def quality_svg(title: str, reports: Mapping[str, Json]) -> str:
    """Return the drawing of the reports of a model's versions, by the name of the version: bars for each figure."""
    rows = _rows(reports)
    height = _PANEL_TOP + _ROW * len(rows) + 14
    width, total = _PANEL_WIDTH * _COLUMNS, _TOP + height * -(-len(_PANELS) // _COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" viewBox="0 0 {width} {total}" '
        'font-family="sans-serif" font-size="12" role="img"><rect width="100%" height="100%" fill="white"/>'
        + _text(12, 18, title)
    ]
    for number, panel in enumerate(_PANELS):
        x, y = _PANEL_WIDTH * (number % _COLUMNS), _TOP + height * (number // _COLUMNS)
        parts += _panel(panel, rows, x, y)
    return "\n".join([*parts, "</svg>\n"])


def _rows(reports: Mapping[str, Json]) -> list[tuple[str, Json, bool]]:
    """Return each reference that is no version of its own, then the versions: name, report, whether it is a version."""
    known = {report["against"]: report for report in reports.values() if report["against"] not in reports}
    return [
        *((name, report, False) for name, report in sorted(known.items())),
        *((name, report, True) for name, report in sorted(reports.items())),
    ]


def _panel(panel: _Bars, rows: Sequence[tuple[str, Json, bool]], x: float, y: float) -> list[str]:
    values = [
        panel.value(report)
        if is_version
        else (panel.known if panel.known is not None else panel.value({**report, "version": report["reference"]}))
        for _, report, is_version in rows
    ]
    most = max((value for value in values if value is not None), default=0.0) or 1.0
    parts = [_text(x + 12, y + 14, panel.title)]
    for number, ((name, report, is_version), value) in enumerate(zip(rows, values, strict=True)):
        top = y + _PANEL_TOP + _ROW * number
        dtype = report["version" if is_version else "reference"]["dtype"]
        label = name if name == dtype else f"{name} {dtype}"
        parts.append(_text(x + 12 + _NAME_WIDTH, top + 11, label[-20:], "end"))
        if value is None:
            continue
        width, colour = _BAR_WIDTH * max(0.0, value) / most, _VERSION if is_version else _REFERENCE
        left = x + 20 + _NAME_WIDTH
        parts.append(f'<rect x="{left}" y="{top}" width="{width:.1f}" height="14" fill="{colour}"/>')
        parts.append(_text(left + width + 5, top + 11, panel.text(value)))
    return parts


def _ratio(report: Json) -> float | None:
    own, its = report["version"]["perplexity"], report["reference"]["perplexity"]
    return None if own is None or its is None else float(own / its)


def _differing(report: Json) -> float | None:
    return None if report["agreement"] is None else 1 - report["agreement"]


def _or_none(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms"


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


_PANELS = (
    _Bars("KL divergence, nats", lambda one: one["kl"], lambda value: f"{value:.4f}", 0.0),
    _Bars("tokens/s, continuations together", lambda one: one["version"]["tokens_per_s"], lambda value: f"{value:.0f}"),
    _Bars("next tokens that differ", _differing, lambda value: f"{value:.1%}", 0.0),
    _Bars("time to the first token", lambda one: one["version"]["first_token_s"], _milliseconds),
    _Bars("perplexity, as a part of the reference's", _ratio, lambda value: f"{value:.3f}", 1.0),
    _Bars("memory at load", lambda one: one["version"]["memory_bytes"], _megabytes),
)
