"""Sends a burst to an inference server, directly and through the queue: ``python -m examples.vllm_queue.burst``.

The server takes a few requests at a time and refuses the others. Behind the queue each of them is answered. Without
--model a very small server of this folder stands for vLLM.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from examples.stack import Server, headrace
from examples.vllm_queue.server import SmallServer, small_server
from headrace.client import Client

_HEADRACE = Path(sys.executable).with_name("headrace")
_QUESTION = [{"role": "user", "content": "What does a mill do?"}]


@dataclass(frozen=True)
class Outcome:
    """What became of a burst: the requests that were answered, and the seconds until the last one ended."""

    answered: int
    sent: int
    took_s: float

    def __str__(self) -> str:
        return f"{self.answered} of {self.sent} answered, the last one after {self.took_s:.1f} s"


def directly(url: str, count: int) -> Outcome:
    """Send all requests to the server at once, as callers without a queue do."""

    def ask(_: int) -> bool:
        body = {"model": "small", "messages": _QUESTION}
        return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False).is_success

    began = time.monotonic()
    with ThreadPoolExecutor(count) as callers:
        answered = sum(callers.map(ask, range(count)))
    return Outcome(answered, count, time.monotonic() - began)


def through_the_queue(client: Client, model: str, count: int) -> Outcome:
    """Submit all requests at once, and wait until each has ended."""
    began = time.monotonic()
    jobs = [
        client.submit(model=model, input={"messages": _QUESTION}, sampling={"max_tokens": 32}) for _ in range(count)
    ]
    ended = [client.wait(job["id"])["status"] for job in jobs]
    return Outcome(ended.count("succeeded"), count, time.monotonic() - began)


@contextmanager
def served(url: str, slots: int) -> Iterator[str]:
    """Register the server as a version of the running Headrace, run a worker for it, and yield the version's name."""
    name = "small"
    subprocess.run(
        [_HEADRACE, "register", name, "--engine", "openai", "--url", url, "--context-window", "2048"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    env = os.environ | {"HEADRACE_MAX_SLOTS": str(slots), "HEADRACE_WORKER_METRICS_PORT": "0"}
    worker = subprocess.Popen([_HEADRACE, "worker", "--model", name], env=env, stderr=subprocess.DEVNULL)
    try:
        yield name
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait()


def report(server: Server, small: SmallServer | None, model: str, count: int) -> Iterator[str]:
    """Yield what is worth reading, a line each."""
    if small is not None:
        yield f"directly: {directly(small.url, count)}"
        yield f"  the server refused {small.num_refused}"
        small.num_refused = 0
    with Client(server.url, server.key) as client:
        yield f"through the queue: {through_the_queue(client, model, count)}"
    if small is not None:
        yield f"  the server refused {small.num_refused}, and had at most {small.most_running} at a time"


def main() -> None:
    """Print what becomes of a burst."""
    parser = argparse.ArgumentParser(prog="python -m examples.vllm_queue.burst", description=__doc__)
    parser.add_argument("--model", help="a version on your own server; a worker for it must run")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--slots", type=int, default=4, help="of the very small server")
    options = parser.parse_args()
    if options.model is not None:
        with headrace(options.model) as server:
            lines = report(server, None, options.model, options.requests)
            sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    with headrace("fake") as server, small_server(options.slots) as small, served(small.url, options.slots) as model:
        sys.stdout.writelines(f"{line}\n" for line in report(server, small, model, options.requests))


if __name__ == "__main__":
    main()
