"""One of several servers behind a router is killed while it writes answers: what do the callers see?

``python -m benchmarks.external.lost_servers --url http://ROUTER --model NAME --kill PID --metrics URL URL`` asks each
prompt of the router directly, then starts a Headrace (API, dispatcher, one worker) before it, reads the streams of the
same prompts, and kills the server when all have begun. Then it cancels as many long answers, and waits until
no server runs a request. Prints one JSON object: ``equal`` answers, ``restarted`` streams (their text started anew),
``attempts``, the longest pause of a stream in seconds, the requests that run after the cancels, and since when.

A router spreads answers over its servers as it does: without ``--kill`` nothing is killed.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import httpx2
from rich.console import Console

from benchmarks.queue import headrace
from benchmarks.queue.services import running_services
from headrace.client import Client

console = Console(stderr=True)
_NAME = "behind"
_RUNNING = "vllm:num_requests_running"
_SUBJECTS = ("a river", "a mill", "bread", "an oak", "iron", "a bridge", "rain", "a harbour")
_BEGUN = 5  # deltas of each stream before the kill
_CANCELLED_S = 30.0


@dataclass
class Stream:
    """What one caller has seen."""

    text: str = ""
    num_deltas: int = 0
    restarted: int = 0
    longest_pause_s: float = 0.0
    state: str = ""


def prompts(count: int) -> list[str]:
    return [f"Tell a story about {_SUBJECTS[n % len(_SUBJECTS)]}, number {n}." for n in range(count)]


def directly(options: argparse.Namespace, prompt: str) -> str:
    """Return the router's own answer."""
    body = {"model": options.model, "messages": [{"role": "user", "content": prompt}]}
    body |= {"max_tokens": options.max_tokens, "temperature": 0}
    answer = httpx2.post(f"{options.url}/v1/chat/completions", json=body, timeout=600, trust_env=False)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def submit(client: Client, prompt: str, max_tokens: int) -> str:
    messages = [{"role": "user", "content": prompt}]
    sampling = {"max_tokens": max_tokens, "temperature": 0}
    return client.submit(model=_NAME, input={"messages": messages}, sampling=sampling)["id"]


def read(client: Client, job_id: str, seen: Stream) -> None:
    """Read a stream to its end."""
    last = time.monotonic()
    for event in client.stream(job_id):
        now = time.monotonic()
        if event.name == "job.restarted":
            seen.restarted += 1
            seen.text = ""
        if event.text:
            if seen.num_deltas:
                seen.longest_pause_s = max(seen.longest_pause_s, now - last)
            seen.text += event.text
            seen.num_deltas += 1
            last = now
        seen.state = event.name


def num_running(urls: Sequence[str]) -> int:
    """Return the requests that the servers run, by their metrics; a killed server runs none."""
    total = 0.0
    for url in urls:
        try:
            lines = httpx2.get(url, timeout=10, trust_env=False).text.splitlines()
        except httpx2.TransportError:
            continue
        total += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(_RUNNING))
    return int(total)


def lose(client: Client, options: argparse.Namespace) -> tuple[list[Stream], list[int]]:
    """Read all streams; kill when all have begun. Returns them, and how many attempts each job had."""
    jobs = [submit(client, prompt, options.max_tokens) for prompt in prompts(options.jobs)]
    streams = [Stream() for _ in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        reading = [*map(pool.submit, repeat(read), repeat(client), jobs, streams)]
        while any(one.num_deltas < _BEGUN for one in streams) and not all(one.done() for one in reading):
            time.sleep(0.01)
        for pid in options.kill:
            (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)
        console.log(f"killed after {sum(one.num_deltas for one in streams)} deltas")
        for one in reading:
            one.result(600)
    return streams, [client.job(job).get("attempt") for job in jobs]


def cancel(client: Client, options: argparse.Namespace) -> dict[str, object]:
    """Cancel long answers that have begun, and wait until the servers run none."""
    jobs = [submit(client, prompt, 2000) for prompt in prompts(options.jobs)]
    end = time.monotonic() + 60
    while (before := num_running(options.metrics)) < len(jobs) and time.monotonic() < end:
        time.sleep(0.05)
    for job in jobs:
        client.cancel(job)
    began = time.monotonic()
    while (left := num_running(options.metrics)) and time.monotonic() - began < _CANCELLED_S:
        time.sleep(0.02)
    return {"running_before": before, "running_after": left, "after_s": round(time.monotonic() - began, 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the router's address")
    parser.add_argument("--model", required=True, help="the model's name there")
    parser.add_argument(
        "--kill", type=int, nargs="*", default=[], help="the server's process; its group too if it leads one"
    )
    parser.add_argument("--metrics", nargs="*", default=[], help="addresses of the servers' metrics; none: no cancels")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--tokenizer", help="its folder: by the engine vllm with --router, and not openai")
    parser.add_argument("--starts-anew", action="store_true", help="register without --continues")
    options = parser.parse_args()
    register = [_NAME, "--url", options.url, "--served-model", options.model, "--context-window", "4096"]
    if options.tokenizer:
        register += ["--engine", "vllm", "--router", "--tokenizer", options.tokenizer]
    else:
        register += ["--engine", "openai", *([] if options.starts_anew else ["--continues"])]
    with ThreadPoolExecutor(options.jobs) as pool:
        wanted = [*pool.map(directly, repeat(options), prompts(options.jobs))]
    console.log("asked directly; Headrace starts")
    with running_services() as services, headrace.running(services, console.log, register=tuple(register)) as stack:
        client = Client(f"http://127.0.0.1:{stack.port}", stack.api_key)
        streams, attempts = lose(client, options)
        found = {
            "jobs": len(streams),
            "succeeded": sum(one.state == "job.succeeded" for one in streams),
            "equal": sum(one.text == text for one, text in zip(streams, wanted, strict=True)),
            "restarted": sum(one.restarted > 0 for one in streams),
            "attempts": attempts,
            "longest_pause_s": [round(one.longest_pause_s, 2) for one in streams],
        }
        if options.metrics:
            found["cancelled"] = cancel(client, options)
        for one, text in zip(streams, wanted, strict=True):
            if one.text != text:
                console.log(f"wanted {text!r}\nfound  {one.text!r}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
