"""``python -m benchmarks.traces PICTURE.svg``: the trace of a job whose worker is killed twice, as a collector gets it.

A whole local stack with the fake model and a receiver of webhooks. Each time the job's answer has begun, its worker is
killed with SIGKILL; the supervisor starts another one.
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from benchmarks.traces.collector import SpanStore, collecting
from benchmarks.traces.drawing import svg
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True)

_KILLS = 2
_MODEL = "fake"
_BODY = {"model": _MODEL, "input": {"messages": [{"role": "user", "content": "Tell me of the mill."}]}}
_SETTINGS = {
    "HEADRACE_FAKE_STEP_MS": "150",
    "HEADRACE_LEASE_S": "2",
    "HEADRACE_SWEEP_S": "0.5",
    "HEADRACE_WEBHOOK_ALLOW_HTTP": "true",
    "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
}
_WAIT_S = 180.0


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, collecting() as store, receiving() as hook:
        settings = load_settings().model_copy(update={"home": Path(home), "api_port": 0, "flower_port": 0})
        with running_stack(settings, [_MODEL], console.log, {**_SETTINGS, **store.environment}) as stack:
            _kill_twice(stack, hook)
            _wait(lambda: any(span.name == "webhook" for span in store.spans), "the webhook's span", stack)
    options.picture.write_text(svg("A job that was killed twice", _trace(store)))
    console.log(f"{len(store.spans)} spans came; {options.picture} is written")


def _kill_twice(stack: Stack, hook: str) -> None:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with httpx2.Client(base_url=stack.api_url, headers=headers, timeout=30, trust_env=False) as client:
        body = {**_BODY, "sampling": {"max_tokens": 40, "ignore_eos": True}, "webhook": {"url": hook}}
        job_id = client.post("/v1/jobs", json=body).raise_for_status().json()["id"]

        def read(path: str = "") -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}{path}").raise_for_status().json()
            return found

        for number in range(1, _KILLS + 1):
            pid = _wait(partial(lambda one: _worker_of(read("/timeline"), one), number), f"attempt {number}", stack)
            time.sleep(0.3)
            os.kill(pid, signal.SIGKILL)
            console.log(f"worker {pid} is killed")
        _wait(lambda: read()["status"] == "succeeded", "the job ends", stack)


def _worker_of(timeline: dict[str, Any], attempt: int) -> int | None:
    """Return the process id of the worker that began this attempt; None if none did yet."""
    begun = [one["worker"] for one in timeline["attempts"]]
    # NAME@HOST:PROCESS:BOOT
    return int(begun[attempt - 1].split(":")[-2]) if len(begun) >= attempt else None


def _wait(condition: Callable[[], Any], what: str, stack: Stack) -> Any:
    until = time.monotonic() + _WAIT_S
    while not (value := condition()):
        if time.monotonic() > until:
            raise SystemExit(f"not within {_WAIT_S:g} s: {what}")
        stack.supervisor.tend()
        time.sleep(0.02)
    return value


def _trace(store: SpanStore) -> list[Any]:
    trace_id = next(span.trace_id for span in store.spans if span.name == "webhook")
    return [span for span in store.spans if span.trace_id == trace_id]


@contextmanager
def receiving() -> Iterator[str]:
    """Run a receiver of webhooks; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
