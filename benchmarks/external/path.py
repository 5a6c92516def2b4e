"""``make bench-engines``: the whole path in front of a vLLM, beside the same vLLM asked directly over HTTP.

One server runs all the time. In each round the same client streams the same chat jobs from the server itself and from
Headrace (one API process, one worker, the dispatcher): first single requests, ``--gap-s`` apart, for the time to the
first event; then all at once, for tokens a second. Each round has prompts of its own. Prints each measurement when it
is made, then a table and, as its last line, JSON. Rounds are left out if there is no time for them.

``phases_ms``: when a single request had come so far, from the spans of Headrace, which is traced.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.external.phases import phases
from benchmarks.external.stream_load import Measured, Plan, read_streams
from benchmarks.external.vllm_server import vllm_python, vllm_server
from benchmarks.queue import headrace
from benchmarks.queue.services import running_services
from benchmarks.traces.collector import DrawnSpan, collecting
from benchmarks.workload import ChatJob, chat_jobs

console = Console(stderr=True)
_PATH = "/v1/chat/completions"
_NAME = "through"
_EXPORT_S = 1.0  # after which the last spans have come


def _bodies(jobs: Sequence[ChatJob], max_tokens: int | None = None) -> tuple[str, ...]:
    fixed = {"model": _NAME, "temperature": 0, "ignore_eos": True, "stream": True}
    return tuple(
        json.dumps(
            {
                **fixed,
                "messages": [{"role": "user", "content": job.text}],
                "max_tokens": job.max_tokens if max_tokens is None else max_tokens,
            }
        )
        for job in jobs
    )


class _Budget:
    """Measures pairs, one of each contestant, while there is time for another pair; at least one."""

    def __init__(self, minutes: float, started: float) -> None:
        self._until = started + 60 * minutes
        self._longest_s = 0.0

    def pairs(self, most: int, what: str, plans: Mapping[str, Sequence[Plan]]) -> list[dict[str, Measured]]:
        """Return what was measured of each contestant, by pair. Every other pair begins with the other one."""
        found: list[dict[str, Measured]] = []
        self._longest_s = 0.0
        while len(found) < most and (not found or time.monotonic() + self._longest_s < self._until):
            began = time.monotonic()
            order = list(plans)[:: -1 if len(found) % 2 else 1]
            number = len(found)
            found.append({name: _run(name, plans[name][number], f"{what} {number + 1} of {most}") for name in order})
            self._longest_s = max(self._longest_s, time.monotonic() - began)
        return found


def _run(name: str, plan: Plan, what: str) -> Measured:
    measured = read_streams(plan)
    if measured.errors:
        raise SystemExit(f"{name}: {measured.errors}")
    console.log(f"{what}: {name}, {measured.seconds:.1f} s, first event {1000 * measured.first_event_p50_s:.0f} ms")
    return measured


def _measure(
    plans: Mapping[str, Plan], spans: list[DrawnSpan], options: argparse.Namespace, started: float
) -> dict[str, object]:
    # Prompts that were not asked before, so that no cache answers them; both contestants get the same.
    rounds = [chat_jobs(options.requests, seed=number) for number in range(options.rounds)]
    singles = [chat_jobs(options.singles, seed=100 + number) for number in range(options.rounds)]
    for name, plan in plans.items():
        _run(name, replace(plan, bodies=_bodies(chat_jobs(4, seed=200))), "warm-up")
    budget = _Budget(options.minutes, started)
    first_plans = {
        name: [replace(plan, bodies=_bodies(jobs, max_tokens=8), gap_s=options.gap_s) for jobs in singles]
        for name, plan in plans.items()
    }
    spans.clear()
    firsts = budget.pairs(options.rounds, "single requests", first_plans)
    time.sleep(_EXPORT_S)
    of_singles = phases(spans)
    all_plans = {name: [replace(plan, bodies=_bodies(jobs)) for jobs in rounds] for name, plan in plans.items()}
    alls = budget.pairs(options.rounds, "all at once", all_plans)
    tokens = [sum(job.max_tokens for job in jobs) for jobs in rounds]
    rates = {name: [n / each[name].seconds for n, each in zip(tokens, alls, strict=False)] for name in plans}
    theirs, ours = rates.values()
    return {
        "benchmark": "external_path",
        "requests": options.requests,
        "cpus": os.cpu_count(),
        "tokens_per_s": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
        "ratios": [round(one / other, 3) for one, other in zip(ours, theirs, strict=True)],
        "first_event_p50_ms": {
            name: [round(1000 * each[name].first_event_p50_s, 1) for each in firsts] for name in plans
        },
        "gap_s": options.gap_s,
        "phases_ms": of_singles,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=12)
    parser.add_argument("--gap-s", type=float, default=1.0, help="from one single request to the next")
    parser.add_argument("--minutes", type=float, default=7.0, help="no further round begins that would end later")
    parser.add_argument("--folder", type=Path, default=Path(".headrace/models/smollm2"))
    parser.add_argument("--vllm", help="an environment with vLLM, or its Python")
    options = parser.parse_args()
    started = time.monotonic()
    folder = options.folder.absolute()
    arguments = ("--max-model-len", "2048", "--scheduling-policy", "priority", "--enable-scale-out")
    console.log("vLLM starts")
    with vllm_server(vllm_python(options.vllm, console.log), folder, _NAME, *arguments) as (port, _):
        console.log(f"vLLM is ready after {time.monotonic() - started:.0f} s; Headrace starts")
        register = (_NAME, "--engine", "vllm", "--url", f"http://127.0.0.1:{port}", "--tokenizer", str(folder))
        with (
            running_services() as services,
            collecting() as store,
            headrace.running(services, console.log, store.environment, register=register) as stack,
        ):
            plans = {
                "vLLM asked directly": Plan(port, _PATH, ()),
                "through Headrace": Plan(stack.port, _PATH, (), {"Authorization": f"Bearer {stack.api_key}"}),
            }
            found = _measure(plans, store.spans, options, started)
    console.print(_table(found))
    print(json.dumps({**found, "seconds": round(time.monotonic() - started)}))


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(title=f"{found['requests']} chat jobs at once, {found['cpus']} CPUs, by round")
    for heading in ("", "tokens/s", f"first event of single requests {found['gap_s']} s apart, ms"):
        table.add_column(heading)
    for name, rates in found["tokens_per_s"].items():
        table.add_row(name, " ".join(map(str, rates)), " ".join(map(str, found["first_event_p50_ms"][name])))
    table.add_row("ratio, median", str(statistics.median(found["ratios"])))
    table.add_row(
        "phases of single requests, ms", "", ", ".join(f"{name} {ms}" for name, ms in found["phases_ms"].items())
    )
    return table


if __name__ == "__main__":
    main()
