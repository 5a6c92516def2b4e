"""A response as the official client asks for it, and the parts of its events that the tests read."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from tests.processes import wait_for
from tests.producer_api.scripted_worker import Attempt, ScriptedWorker

HELLO = {"model": "tiny", "input": "hi"}
TEXT = "The water 流れる turns the wheel."
PIECES = ["The wat", "er 流", "れる", " turns the", " wheel."]
ORDER = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
ENDING = ["output_text.done", "content_part.done", "output_item.done", "completed"]


def job_of(response_id: str) -> str:
    return response_id.replace("resp_", "job_")


def kinds(events: list[Any]) -> list[str]:
    """The events' types, without repetitions."""
    named = [event.type.removeprefix("response.") for event in events]
    return [kind for kind, before in zip(named, [None, *named], strict=False) if kind != before]


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def only_job(db: Database, tenant: str) -> jobs.Job:
    wait_for(lambda: jobs.list_jobs(db, tenant))
    return jobs.list_jobs(db, tenant)[0]


def rest(client: OpenAI, response_id: str, after: int | None) -> list[Any]:
    options: Any = {} if after is None else {"starting_after": after}
    return list(client.responses.retrieve(response_id, stream=True, **options))


@contextmanager
def obeying(worker: ScriptedWorker, attempt: Attempt, db: Database, tenant: str) -> Iterator[None]:
    """End the attempt as soon as its cancellation is asked for."""

    def obey() -> None:
        wait_for(lambda: jobs.get(db, tenant, attempt.claim.job_id).cancel_requested_at)
        worker.obey_cancel(attempt)

    thread = threading.Thread(target=obey)
    thread.start()
    yield
    thread.join(timeout=60)
