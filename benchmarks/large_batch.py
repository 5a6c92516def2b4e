"""``make bench-large-batch``: one batch of many lines on the model without weights, from its upload to its results.

A whole local stack. The input is made as it is sent, in parts, so that no copy lies on this disk. For each phase of the
batch it measures seconds, lines a second, and CPU time a line for each kind of process. For the API, whose keeper reads
the lines, it also measures the memory in the first and in the last tenth of the phase. Prints a table and, as its last
line, JSON; exits 1 if a line is missing.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from headrace.cli.local.stack import running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True)

MODEL = "fake"
URL = "/v1/chat/completions"
_PART_BYTES = 32 << 20
_TAIL = "]}}}\n"
_KINDS = {"producer_api": "api", "workers.dispatcher": "dispatcher", "workers": "worker", "postgres": "postgres"}


def line(number: int) -> str:
    """Return a line of the input."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 4}
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": URL, "body": body}) + "\n"


def parts(num_lines: int) -> Iterator[bytes]:
    """Yield the input in parts."""
    part = bytearray()
    for number in range(num_lines):
        part += line(number).encode()
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)


def upload(client: httpx2.Client, num_lines: int) -> str:
    """Send the input in parts; return the file's id."""
    num_bytes = sum(map(len, parts(num_lines)))
    begun = {"filename": "in.jsonl", "purpose": "batch", "bytes": num_bytes, "mime_type": "application/jsonl"}
    made = _ok(client.post("/v1/uploads", json=begun))
    ids = [
        _ok(client.post(f"/v1/uploads/{made['id']}/parts", files={"data": ("part", part)}))["id"]
        for part in parts(num_lines)
    ]
    return str(_ok(client.post(f"/v1/uploads/{made['id']}/complete", json={"part_ids": ids}))["file"]["id"])


@dataclass
class Phase:
    """What was seen of one phase. ``cpu_s``: by kind of process. ``api_mb``: at each look."""

    seconds: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    api_mb: list[float] = field(default_factory=list)

    def figures(self, num_lines: int) -> dict[str, Any]:
        """Return the figures for the report."""
        tenth = max(1, len(self.api_mb) // 10)
        first, last = self.api_mb[:tenth] or [0.0], self.api_mb[-tenth:] or [0.0]
        return {
            "seconds": round(self.seconds, 1),
            "lines_per_s": round(num_lines / self.seconds) if self.seconds else None,
            "us_per_line": {kind: round(1e6 * used / num_lines) for kind, used in sorted(self.cpu_s.items())},
            "api_mb": [round(sum(each) / len(each)) for each in (first, last)],
            "api_most_mb": round(max(self.api_mb, default=0.0)),
        }


def _processes() -> Iterator[tuple[str, psutil.Process]]:
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        found = next(
            (kind for name, kind in _KINDS.items() if f"headrace.{name}" in command or command.startswith(name)), None
        )
        if found or command.split(" ")[0].endswith("/postgres"):
            yield found or "postgres", process


def _used() -> tuple[dict[str, float], float]:
    """Return the CPU seconds by kind of process so far, and the API's memory in MB."""
    used: dict[str, float] = defaultdict(float)
    api_mb = 0.0
    for kind, process in _processes():
        try:
            times = process.cpu_times()
            used[kind] += times.user + times.system
            if kind == "api":
                api_mb += process.memory_info().rss / 1e6
        except psutil.Error:
            continue
    return used, api_mb


def follow(client: httpx2.Client, batch_id: str, look_s: float) -> tuple[dict[str, Any], dict[str, Phase]]:
    """Look at the batch until it has ended; return it, and its phases by their status."""
    phases: dict[str, Phase] = defaultdict(Phase)
    before, at = _used()[0], time.monotonic()
    while True:
        time.sleep(look_s)
        batch = _ok(client.get(f"/v1/batches/{batch_id}"))
        used, api_mb = _used()
        now = time.monotonic()
        phase = phases[batch["status"]]
        phase.seconds += now - at
        phase.api_mb.append(api_mb)
        for kind, seconds in used.items():
            phase.cpu_s[kind] += max(0.0, seconds - before.get(kind, 0.0))
        before, at = used, now
        console.log(batch["status"], batch["request_counts"], f"{api_mb:.0f} MB")
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            return batch, phases


def count_results(client: httpx2.Client, file_id: str) -> int:
    """Return the number of answers, each counted once."""
    with client.stream("GET", f"/v1/files/{file_id}/content") as response:
        return sum(1 for one in response.iter_lines() if one)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_batch", description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slots", type=int, default=32, help="of a worker")
    parser.add_argument("--look-s", type=float, default=2.0)
    options = parser.parse_args()
    many = str(2**40)
    changes = {"HEADRACE_FAKE_STEP_MS": "2", "HEADRACE_BATCH_SHARE": "1", "HEADRACE_MAX_SLOTS": str(options.slots)}
    changes |= {"HEADRACE_MAX_BATCH_LINES": many, "HEADRACE_MAX_FILE_BYTES": many, "HEADRACE_TENANT_STORED_BYTES": many}
    changes |= {"HEADRACE_STREAM_DELTAS_PER_S": "20"}
    with running_stack(load_settings(), [MODEL] * options.workers, console.log, changes) as stack:
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        with httpx2.Client(base_url=stack.api_url, headers=headers, timeout=600) as client:
            began = time.monotonic()
            file_id = upload(client, options.lines)
            uploaded_s = time.monotonic() - began
            body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "168h"}
            made = _ok(client.post("/v1/batches", json=body))
            batch, phases = follow(client, made["id"], options.look_s)
            num_results = count_results(client, batch["output_file_id"]) if batch["output_file_id"] else 0
    found = {name: phase.figures(options.lines) for name, phase in phases.items()}
    table = Table(title=f"{options.lines} lines, {options.workers} workers, uploaded in {uploaded_s:.0f} s")
    for heading in ("", "s", "lines/s", "µs of CPU a line", "API, MB, first and last tenth", "most"):
        table.add_column(heading, justify="right")
    for name, figures in found.items():
        table.add_row(name, *(str(value) for value in figures.values()))
    console.print(table)
    print(json.dumps({"benchmark": "large batch", "lines": options.lines, "results": num_results, "phases": found}))
    sys.exit(0 if num_results == options.lines else 1)


def _ok(response: httpx2.Response) -> Any:
    if response.status_code != httpx2.codes.OK:
        raise RuntimeError(f"{response.status_code} {response.text[:500]}")
    return response.json()


if __name__ == "__main__":
    main()
