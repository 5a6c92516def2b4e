"""Prints the reason of a job's wait on stderr, and how to return to the job."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer

from headrace.cli.client.http_client import OperatorClient
from headrace.cli.render import say
from headrace.client import ClientError, JobInfo

_FIRST_S = 1.0
_LONGEST_S = 30.0
_WAYS_OUT = {"paused": " (headrace queues resume {name})", "no_worker": " (headrace worker --model {name})"}


@contextmanager
def waiting(client: OperatorClient, job_id: str) -> Iterator[threading.Event]:
    """Print the reason of the job's wait until the yielded event is set, when the answer starts.

    Ctrl-C ends the command with 130, and prints that the job continues and how to return to it.
    """
    has_begun = threading.Event()
    # A daemon thread: an API that does not answer must not delay the end of the command.
    thread = threading.Thread(target=tell, args=(client, job_id, has_begun), name="waiting", daemon=True)
    thread.start()
    try:
        yield has_begun
    except KeyboardInterrupt:
        say(f"{job_id} goes on without you: `headrace watch {job_id}` comes back, `headrace cancel {job_id}` ends it")
        raise typer.Exit(130) from None
    finally:
        has_begun.set()
        thread.join(_FIRST_S)


def tell(client: OperatorClient, job_id: str, has_begun: threading.Event) -> None:
    """Print the reason of the wait, at growing intervals, and only if it has changed."""
    said, pause_s = "", _FIRST_S
    while not has_begun.wait(pause_s):
        pause_s = min(_LONGEST_S, pause_s * 2)
        try:
            job = client.job(job_id)
            if job["status"] != "queued":
                return
            reason = what_for(job, client.live()["state"])
        except (ClientError, RuntimeError):
            continue  # the API does not answer, or the client is closed: the command reports it
        if reason != said and not has_begun.is_set():
            say(f"{job_id} is queued: {reason}")
            said = reason


def what_for(job: JobInfo, state: dict[str, Any]) -> str:
    """Return the reason of a queued job's wait, as the live figures ``state`` give it."""
    name, position = job["queue"]["name"], job["queue"].get("position")
    if (job.get("start_after") or 0) > datetime.now(UTC).timestamp():
        return "its time to start has not come"
    if job.get("parent_id") and not position:
        return f"steps of {job['parent_id']} must end before"
    for problem in state["problems"]:
        if problem["queue"] == name and problem["cause"] is not None:
            return str(problem["cause"]) + _WAYS_OUT.get(problem["kind"], "").format(name=name)
    place = f"place {position} in {name}" if position else f"it waits in {name}"
    queue = next((queue for queue in state["queues"] if queue["name"] == name), None)
    if queue is None:
        return place
    if queue["host"] is not None and queue["host"]["loads_in_s"] is not None:
        return f"a model host loads {name} in about {max(1, round(queue['host']['loads_in_s']))} s"
    return f"{place}, {queue['running']} running on {queue['workers']} workers"
