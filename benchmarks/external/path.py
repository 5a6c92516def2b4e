"""``make bench-engines``: the whole path in front of a vLLM, beside the same vLLM asked directly over HTTP.

One server runs all the time. In each round the same client streams the same 64 chat jobs, all at once, from the server
itself and then from Headrace (one API process, one worker, the dispatcher). At the end single requests arrive once a
second at either, for the time to the first event. Prints a table and, as its last line, JSON.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.external.stream_load import Measured, Plan, read_streams
from benchmarks.external.vllm_server import vllm_python, vllm_server
from benchmarks.queue import headrace
from benchmarks.queue.services import running_services
from benchmarks.workload import ChatJob, chat_jobs

console = Console(stderr=True)
_PATH = "/v1/chat/completions"
_NAME = "through"


def _body(job: ChatJob) -> str:
    return json.dumps(
        {
            "model": _NAME,
            "messages": [{"role": "user", "content": job.text}],
            "max_tokens": job.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    )


def _run(name: str, plan: Plan) -> Measured:
    measured = read_streams(plan)
    if measured.errors:
        raise SystemExit(f"{name}: {measured.errors}")
    return measured


def _measure(direct: Plan, path: Plan, jobs: Sequence[ChatJob], options: argparse.Namespace) -> dict[str, object]:
    plans = {"vLLM asked directly": direct, "through Headrace": path}
    for name, plan in plans.items():
        _run(name, replace(plan, bodies=plan.bodies[:8]))
    num_tokens = sum(job.max_tokens for job in jobs)
    rates: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(options.rounds):
        for name, plan in plans.items():
            console.log(f"round {number + 1} of {options.rounds}: {name}")
            rates[name].append(num_tokens / _run(name, plan).seconds)
    firsts: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(options.rounds):
        for name, plan in plans.items():
            console.log(f"one request a second, {number + 1} of {options.rounds}: {name}")
            single = [_body(replace(job, max_tokens=8)) for job in jobs[: options.singles]]
            firsts[name].append(1000 * _run(name, replace(plan, bodies=tuple(single), gap_s=1.0)).first_event_p50_s)
    theirs, ours = rates.values()
    return {
        "benchmark": "external_path",
        "requests": len(jobs),
        "cpus": os.cpu_count(),
        "tokens_per_s": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "ratios": [round(one / other, 3) for one, other in zip(ours, theirs, strict=True)],
        "first_event_p50_ms": {name: [round(ms, 1) for ms in each] for name, each in firsts.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path(".headrace/models/smollm2"))
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    options = parser.parse_args()
    folder = options.folder.absolute()
    jobs = chat_jobs(options.requests)
    arguments = ("--max-model-len", "2048", "--scheduling-policy", "priority", "--enable-scale-out")
    with vllm_server(vllm_python(options.vllm, console.log), folder, _NAME, *arguments) as (port, _):
        register = (_NAME, "--engine", "vllm", "--url", f"http://127.0.0.1:{port}", "--tokenizer", str(folder))
        with running_services() as services, headrace.running(services, console.log, register=register) as stack:
            bodies = tuple(map(_body, jobs))
            direct = Plan(port, _PATH, bodies)
            path = Plan(stack.port, _PATH, bodies, {"Authorization": f"Bearer {stack.api_key}"})
            found = _measure(direct, path, jobs, options)
    table = Table(title=f"{len(jobs)} chat jobs at once, {os.cpu_count()} CPUs, median of {options.rounds} rounds")
    for heading in ("", "tokens/s", "first event at one request a second, ms"):
        table.add_column(heading)
    rates, firsts = found["tokens_per_s"], found["first_event_p50_ms"]
    assert isinstance(rates, dict)
    assert isinstance(firsts, dict)
    for name in rates:
        table.add_row(name, str(rates[name]), " ".join(map(str, firsts[name])))
    console.print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
