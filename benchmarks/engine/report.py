"""From turns to rows, ratios, tables and one JSON object. Pure but for the printing."""

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.engine.contestants import Contestant
from benchmarks.engine.turns import Turn

Found = dict[str, Any]

_FIGURES = ("tokens_per_s", "ttft_mean_s", "ttft_p99_s", "latency_p99_s", "gap_p50_ms", "gap_p99_ms")
# What decides how fast a processor multiplies matrices of 16 and 8 bits.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512_fp16", "amx_bf16", "amx_int8")


def rows(turns: Sequence[Turn], against: str) -> list[Found]:
    """Return a row for each workload, number of slots, load and contestant: the medians of its rounds.

    ``times`` is how many times the tokens a second of this row the contestant ``against`` made, the median of the
    rounds' ratios; each round is compared with itself.
    """
    found: list[Found] = []
    for key in dict.fromkeys(map(_key, turns)):
        mine = [turn for turn in turns if _key(turn) == key]
        row: Found = dict(zip(("workload", "asked_slots", "load", "contestant"), key, strict=True))
        row["slots"] = mine[0].slots
        row |= {figure: round(median(getattr(turn.figures, figure) for turn in mine), 4) for figure in _FIGURES}
        row["peak_mb"] = max(turn.figures.peak_mb for turn in mine)
        row["others_cpus"] = max(turn.others_cpus for turn in mine)
        row["tokens_per_s_all"] = [turn.figures.tokens_per_s for turn in mine]
        theirs = {turn.round.number: turn.figures.tokens_per_s for turn in turns if _key(turn) == (*key[:3], against)}
        ratios = [theirs[turn.round.number] / turn.figures.tokens_per_s for turn in mine if turn.round.number in theirs]
        row["times"] = round(median(ratios), 3) if ratios and key[3] != against else None
        row["times_all"] = [round(ratio, 3) for ratio in ratios] if key[3] != against else []
        found.append(row)
    return found


def _key(turn: Turn) -> tuple[str, int, float | None, str]:
    return turn.round.workload, turn.round.slots, turn.round.load, turn.contestant


def summary(
    found_rows: Sequence[Found],
    contestants: Sequence[Contestant],
    refusals: Mapping[str, str],
    ready: Mapping[str, Mapping[str, object]],
    quality: Mapping[str, float],
    options: Mapping[str, object],
) -> Found:
    """Return everything that is worth keeping of a run."""
    return {
        "benchmark": "engine",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "load_1m_after": round(os.getloadavg()[0], 2),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        "contestants": {
            each.name: {
                "what": each.what,
                "dtype": each.dtype,
                "agreement": quality.get(each.name),
                **ready.get(each.name, {}),
            }
            for each in contestants
        },
        "absent": dict(refusals),
        "rows": list(found_rows),
    }


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Found:
    """Return the processor's name, how many there are, those of its features that matter, and the memory."""
    lines = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
    first = {name.strip(): value.strip() for name, value in reversed(lines)}
    flags = first.get("flags", "").split()
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": first.get("model name", "unknown"),
        "cpus": os.cpu_count(),
        "flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "memory_gb": round(pages * page_bytes / 1e9, 1),
    }


def draw(console: Console, found: Found, *, markdown: bool) -> None:
    """Print a table for each workload and number of slots, for a terminal or to paste into a document."""
    for workload, slots in dict.fromkeys((row["workload"], row["asked_slots"]) for row in found["rows"]):
        some = [row for row in found["rows"] if (row["workload"], row["asked_slots"]) == (workload, slots)]
        table = _table(f"{workload}, {slots} slots", some, found["contestants"])
        if markdown:
            table.box = MARKDOWN
        console.print(table)
    for name, why in found["absent"].items():
        console.print(f"{name} is absent: {why}", markup=False)


def _table(title: str, some: Sequence[Found], contestants: Mapping[str, Found]) -> Table:
    table = Table(title=title)
    for heading in ("", "numbers"):
        table.add_column(heading)
    table.add_column("as fp32", justify="right")
    headings = ("slots", "tokens/s", "rounds", "Headrace is", "TTFT mean / p99 s", "latency p99 s")
    for heading in (*headings, "gap p50 / p99 ms", "peak MB", "load s", "others CPUs"):
        table.add_column(heading, justify="right")
    for row in some:
        who = contestants[row["contestant"]]
        load = "" if row["load"] is None else f", {row['load']:g} requests/s"
        table.add_row(
            who["what"] + load,
            who["dtype"],
            "" if who["agreement"] is None else f"{who['agreement']:.3f}",
            str(row["slots"]),
            f"{row['tokens_per_s']:.0f}",
            f"{min(row['tokens_per_s_all']):.0f}-{max(row['tokens_per_s_all']):.0f}",
            f"{row['times']:.2f} ×" if row["times"] else "",
            f"{row['ttft_mean_s']:.2f} / {row['ttft_p99_s']:.2f}",
            f"{row['latency_p99_s']:.1f}",
            f"{row['gap_p50_ms']:.0f} / {row['gap_p99_ms']:.0f}",
            f"{row['peak_mb']:.0f}",
            f"{who.get('load_s', 0):.1f}",
            f"{row['others_cpus']:.2f}",
        )
    return table
