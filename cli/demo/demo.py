"""``headrace demo``: a burst of jobs through a real stack, with comments.

Chat jobs of different lengths run in one batch of one model. One of them is streamed here while the others run. Their
ends arrive as signed webhooks. Exit code 0 means that all parts worked.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from headrace.cli import render
from headrace.cli.client.http_client import OperatorClient
from headrace.cli.demo import charts
from headrace.cli.demo.charts import Span
from headrace.cli.demo.receiver import Receiver, running_receiver
from headrace.cli.demo.sampler import Occupancy, sampled
from headrace.cli.local.stack import Stack, running_stack
from headrace.cli.local.stopping import hear_stop_signals, run_until_stopped
from headrace.cli.render import say
from headrace.client import JobInfo
from headrace.store.child_process import descendants, still_alive
from headrace.store.errors import Unavailable
from headrace.store.settings import load_settings

Json = dict[str, Any]

_WEBHOOKS_S = 20.0

# The demo's receiver is on this machine and without TLS; a stack started by `headrace up` refuses both.
_SETTINGS = {"HEADRACE_WEBHOOK_ALLOW_HTTP": "true", "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8"}

_STREAMED = ("Tell me a short story about a miller.", 112)
_BESIDE = (
    ("What is the capital of France?", 16),
    ("Name three primary colours.", 24),
    ("Write a haiku about a river.", 32),
    ("Why is the sky blue?", 64),
    ("Give me one tip for sleeping well.", 48),
    ("What does a mill do?", 40),
    ("Count from one to ten.", 40),
    ("Translate 'good morning' into French.", 16),
    ("What is a queue in computing?", 72),
    ("Explain how a water wheel turns a stream into work.", 96),
    ("Which planet is the largest?", 20),
    ("What is the boiling point of water?", 24),
    ("Describe the sea in two sentences.", 56),
    ("Why do leaves change colour in autumn?", 80),
    ("What is bread made of?", 32),
)


def demo(
    model: Annotated[str, typer.Option(help="smollm2, or fake: no neural model, in seconds.")] = "smollm2",
) -> None:
    """Show the whole path at work on this machine, and end; exit 1 with one sentence if a part of it did not work."""
    began = time.monotonic()
    settings = load_settings()
    hear_stop_signals()
    with running_stack(settings, [model], say, _SETTINGS) as stack:
        say(f"ready after {time.monotonic() - began:.1f} s")
        # On a thread, because signals do not interrupt HTTP calls; they fail when the API stops.
        run_until_stopped(lambda: _run(stack, model, began))
        _show_addresses(stack)
        say("stopping: API, worker, dispatcher, Flower, Valkey, PostgreSQL")
        processes = descendants(os.getpid())
    left = descendants(os.getpid()) | still_alive(processes)
    if left:
        raise Unavailable(f"processes left running: {sorted(left)}")
    say(f"{len(processes)} processes stopped, none left; {time.monotonic() - began:.1f} s in all")


def _run(stack: Stack, model: str, began: float) -> None:
    occupancy = Occupancy()
    with (
        OperatorClient(stack.api_url, stack.api_key) as client,
        running_receiver() as receiver,
        registered(client, receiver),
    ):
        with sampled(stack.worker_metrics_urls[0], occupancy):
            jobs = _burst(client, model, began)
        _show_jobs(client, jobs)
        _show_occupancy(occupancy)
        check(jobs, receiver)


def _burst(client: OperatorClient, model: str, began: float) -> list[JobInfo]:
    """Submit all jobs at once, stream the first, and return all of them after their end."""
    with ThreadPoolExecutor(len(_BESIDE) + 1) as pool:
        streamed = _submit(client, model, *_STREAMED)
        beside = [pool.submit(_submit, client, model, prompt, size) for prompt, size in _BESIDE]
        say(f"{len(beside) + 1} jobs submitted; streaming {streamed} while the others run beside it\n")
        _stream(client, streamed, began)
        return list(pool.map(client.wait, [streamed, *(future.result() for future in beside)]))


def _submit(client: OperatorClient, model: str, prompt: str, max_tokens: int) -> str:
    job = client.submit(
        model=model,
        input={"messages": [{"role": "user", "content": prompt}]},
        sampling={"max_tokens": max_tokens, "temperature": 0},
        metadata={"demo": prompt},
    )
    return job["id"]


def _stream(client: OperatorClient, job_id: str, began: float) -> None:
    render.out.print(_STREAMED[0], style="bold", soft_wrap=True)
    first_after_s: float | None = None
    for event in client.stream(job_id):
        if event.text:
            first_after_s = first_after_s or time.monotonic() - began
            render.write_text(event.text)
    render.write_text("\n\n")
    if first_after_s is not None:
        say(f"first token {first_after_s:.1f} s after the command")


def _show_jobs(client: OperatorClient, jobs: Sequence[JobInfo]) -> None:
    """Draw the stored timelines of all jobs on one axis, which starts when the first was accepted."""
    timelines = [client.timeline(job["id"]) for job in jobs]
    origin = min(events[0]["at"] for events in timelines)
    spans = [span_of(job, events, origin) for job, events in zip(jobs, timelines, strict=True)]
    render.out.print(charts.timeline(spans))
    seconds = max(span.ended_s for span in spans)
    tokens = sum(job["usage"]["output_tokens"] for job in jobs if job["usage"])
    say(f"{len(jobs)} jobs, {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s")


def span_of(job: JobInfo, events: Sequence[Json], origin: float) -> Span:
    """Return the bar of a job. ``events``: its timeline; ``origin``: the time where the axis starts."""
    at = {event["kind"]: event["at"] - origin for event in events}
    queued_s, ended_s = events[0]["at"] - origin, events[-1]["at"] - origin
    usage = job["usage"]
    first_token_ms = usage["first_token_ms"] if usage else None
    return Span(
        label=job["metadata"]["demo"],
        note=f"{usage['output_tokens'] if usage else 0} tokens",
        queued_s=queued_s,
        started_s=at.get("started", ended_s),
        first_token_s=ended_s if first_token_ms is None else queued_s + first_token_ms / 1000,
        ended_s=ended_s,
    )


def _show_occupancy(occupancy: Occupancy) -> None:
    if occupancy.running:
        render.out.print(charts.occupancy(occupancy.running), soft_wrap=True)
        say(f"batch: {occupancy.peak} jobs at most in one step, {occupancy.mean:.1f} on average")


def check(jobs: Sequence[JobInfo], receiver: Receiver) -> None:
    """Raise Unavailable unless all jobs succeeded and all webhooks arrived with valid signatures."""
    failed = [job for job in jobs if job["status"] != "succeeded"]
    if failed:
        raise Unavailable(f"{len(failed)} of {len(jobs)} jobs did not succeed, first: {render.summary(failed[0])}")
    expected = {job["id"] for job in jobs}
    missing = expected - receiver.wait_for(expected, _WEBHOOKS_S)
    if missing or receiver.num_refused:
        raise Unavailable(f"webhooks: {len(missing)} missing, {receiver.num_refused} with a bad signature")
    say(f"{len(expected)} webhooks received, every signature verified")


@contextmanager
def registered(client: OperatorClient, receiver: Receiver) -> Iterator[None]:
    """Register the receiver for the time of the burst."""
    endpoint = client.create_webhook_endpoint(receiver.url, ["job.succeeded", "job.failed"])
    receiver.trust(endpoint["secret"])
    try:
        yield
    finally:
        client.delete_webhook_endpoint(endpoint["id"])


def _show_addresses(stack: Stack) -> None:
    rows = {
        "API": f"{stack.api_url}/docs",
        "metrics": f"{stack.api_url}/metrics",
        "Flower": f"{stack.flower_url} (user {stack.flower_user}, password {stack.flower_password})",
    }
    render.out.print("\nthese served during the demo; `headrace up` keeps them running:")
    for name, value in rows.items():
        render.out.print(f"  {name:<8}{value}", soft_wrap=True)
