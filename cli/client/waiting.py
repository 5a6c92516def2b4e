"""Prints the reason of a job's wait on stderr, and how to return to the job."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from cli.client.http_client import OperatorClient
from cli.render import say
from headrace.client import ClientError, JobInfo

_FIRST_S = 1.0
_LONGEST_S = 30.0


@contextmanager
def waiting(client: OperatorClient, job_id: str) -> Iterator[threading.Event]:
    """Print the reason of the job's wait until the yielded event is set, when the answer starts.

    Ctrl-C ends the command with 130, and prints that the job continues and how to return to it.
    """
    has_begun = threading.Event()
    # A daemon thread: an API that does not answer must not delay the end of the command.
    thread = threading.Thread(target=_tell, args=(client, job_id, has_begun), name="waiting", daemon=True)
    thread.start()
    try:
        yield has_begun
    except KeyboardInterrupt:
        say(f"{job_id} goes on without you: `headrace watch {job_id}` comes back, `headrace cancel {job_id}` ends it")
        raise typer.Exit(130) from None
    finally:
        has_begun.set()
        thread.join(_FIRST_S)


def _tell(client: OperatorClient, job_id: str, has_begun: threading.Event) -> None:
    """Print the reason of the wait, at growing intervals, and only if it has changed."""
    said, pause_s = "", _FIRST_S
    while not has_begun.wait(pause_s):
        pause_s = min(_LONGEST_S, pause_s * 2)
        try:
            job = client.job(job_id)
            if job["status"] != "queued":
                return
            reason = what_for(job, client.queues())
        except (ClientError, RuntimeError):
            continue  # the API does not answer, or the client is closed: the command reports it
        if reason != said and not has_begun.is_set():
            say(f"{job_id} is queued: {reason}")
            said = reason


def what_for(job: JobInfo, queues: list[dict[str, Any]]) -> str:
    """Return the reason of a queued job's wait."""
    name, position = job["queue"]["name"], job["queue"].get("position")
    queue = next((queue for queue in queues if queue["name"] == name), None)
    if queue and queue["paused_at"]:
        return f"the queue {name} is paused (headrace queues resume {name})"
    if queue and queue.get("workers") == 0 and (host := queue.get("host")) is not None:
        if host["loads_in_s"] is not None:
            return f"a model host loads {name} in about {max(1, round(host['loads_in_s']))} s"
        return f"no worker serves {name}, and no model host starts one: {host['reason']}"
    if queue and queue.get("workers") == 0:
        return f"no worker serves {name}; it waits until one starts (headrace worker --model {name})"
    place = f"place {position} in {name}" if position else f"it waits in {name}"
    return (
        f"{place}, {queue['running']} running on {queue['workers']} workers" if queue and "workers" in queue else place
    )
