"""Charts of a burst: a bar for each job on a common time axis, and the size of the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from headrace.cli.bars import sparkline

_WIDTH = 48
_LABEL = 30


@dataclass(frozen=True)
class Span:
    """The times of one job, in seconds on the common axis."""

    label: str
    note: str
    queued_s: float
    started_s: float
    first_token_s: float
    ended_s: float


def timeline(spans: Sequence[Span]) -> Table:
    """A bar for each job: waiting, running until its first token, and producing tokens."""
    seconds = max([*(span.ended_s for span in spans), 0.001])
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_footer=True, header_style="bold")
    table.add_column("job", no_wrap=True)
    key = Text.assemble(("░", "yellow"), " queued  ", ("▒", "cyan"), " reading  ", ("█", "green"), " answering")
    scale = f"0{f'{seconds:.1f} s':>{_WIDTH - 1}}"
    table.add_column(key, no_wrap=True, footer=Text(scale, style="dim"))
    table.add_column("first token", justify="right", no_wrap=True)
    table.add_column("answer", justify="right", no_wrap=True)
    for span in spans:
        label = span.label if len(span.label) <= _LABEL else f"{span.label[: _LABEL - 1]}…"
        table.add_row(label, _bar(span, seconds), f"{span.first_token_s - span.queued_s:.2f} s", span.note)
    return table


def _bar(span: Span, seconds: float) -> Text:
    edges = [_column(at_s, seconds) for at_s in (span.queued_s, span.started_s, span.first_token_s, span.ended_s)]
    queued, started, first, ended = edges
    bar = Text(" " * queued)
    bar.append("░" * (started - queued), "yellow")
    bar.append("▒" * (first - started), "cyan")
    bar.append("█" * max(1, ended - first), "green")
    return bar


def _column(at_s: float, seconds: float) -> int:
    return round(min(max(at_s, 0.0), seconds) / seconds * _WIDTH)


def occupancy(running: Sequence[int]) -> Text:
    """The number of jobs in the batch over time, as a row of blocks."""
    peak = max([*running, 1])
    bars = sparkline(running, _WIDTH, peak)
    return Text.assemble("jobs in the batch over time  ", (bars, "green"), f"  (top: {peak})")
