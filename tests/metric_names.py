"""The tables of docs/metrics.md, as tests and the alerts' checks read them."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
EVERY = "Every process"


@dataclass(frozen=True)
class Row:
    """One row: the kind of process (the heading), the metrics, and the alerts that use them."""

    process: str
    names: tuple[str, ...]
    alerts: tuple[str, ...]


def rows() -> list[Row]:
    """Return the rows of all tables."""
    found = []
    process = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            process = line.removeprefix("## ")
        elif line.startswith("| `"):
            names, *_, alerts = [re.findall(r"`(\w+)`", cell) for cell in line.strip("|").split("|")]
            found.append(Row(process, tuple(names), tuple(alerts)))
    return found


def documented(process: str) -> set[str]:
    """Return the metrics that a process exports, by the tables."""
    return {name for row in rows() if row.process in (EVERY, process) for name in row.names}


def used_in(expression: str) -> set[str]:
    """Return the metrics that an expression of Prometheus uses, without the suffixes of histograms."""
    names = re.findall(r"\b(?:headrace|process)_\w+", expression)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}
