"""Celery 5.7 with Redis as broker and result backend, and a thin FastAPI that submits, looks and cancels.

From Celery's documents: ``acks_late`` with ``reject_on_worker_lost`` and a prefetch of 1 for long tasks (user guide:
optimizing, tasks); a visibility timeout above the longest task, and with a low one the two options that make the
transport look for lost messages more often (brokers: Redis; kombu's Redis transport); tasks of a lost connection are
cancelled, as they are delivered again (configuration); automatic retries with backoff (tasks); ``AbortableTask``
for cancels, as ``terminate`` is "for administrators" only (workers).

Celery has no streams. With STREAMS, tokens are written by hand: a Redis stream per job, which the API reads from
``Last-Event-ID``; a run that begins tells readers to drop what they have.
"""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import json
import os
from collections.abc import Iterator
from typing import Annotated, Any

import redis
from celery import Celery
from celery.contrib.abortable import AbortableAsyncResult, AbortableTask
from celery.exceptions import Ignore
from fastapi import FastAPI, Header
from fastapi.responses import StreamingResponse
from model import have_effect, tokens
from pydantic import BaseModel

STREAMS = bool(os.environ.get("STREAMS"))
celery = Celery("scoreboard", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
celery.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    result_backend_always_retry=True,
    broker_connection_max_retries=None,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": 20,
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
    },
)
store = redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=30, decode_responses=True)
app = FastAPI()
_STATES = {"SUCCESS": "succeeded", "FAILURE": "failed", "REVOKED": "cancelled", "ABORTED": "cancelled"}


class Order(BaseModel):
    order: str
    tokens: int


@celery.task(bind=True, base=AbortableTask, autoretry_for=(Exception,), retry_backoff=1, max_retries=5)
def generate(self: Any, order: str, num: int) -> str:
    said = ""
    _publish(self.request.id, "restart", "")
    for token in tokens(order, num):
        if self.is_aborted():
            raise Ignore
        said += token
        _publish(self.request.id, "token", token)
    have_effect(order)
    _publish(self.request.id, "end", "")
    return said


def _publish(job_id: str, event: str, text: str) -> None:
    if STREAMS:
        store.xadd(f"tokens:{job_id}", {"event": event, "text": text})
        store.expire(f"tokens:{job_id}", 3600)


@app.post("/jobs", status_code=202)
def submit(body: Order) -> dict[str, str]:
    return {"id": generate.delay(body.order, body.tokens).id}


@app.get("/jobs/{job_id}")
def look(job_id: str) -> dict[str, str | None]:
    result = AbortableAsyncResult(job_id, app=celery)
    state = _STATES.get(result.state, "open")
    return {"status": state, "text": result.result if state == "succeeded" else None}


@app.post("/jobs/{job_id}/cancel", status_code=202)
def cancel(job_id: str) -> None:
    AbortableAsyncResult(job_id, app=celery).abort()
    celery.control.revoke(job_id)


@app.get("/jobs/{job_id}/stream")
def stream(job_id: str, last_event_id: Annotated[str, Header()] = "0") -> StreamingResponse:
    def events(last: str) -> Iterator[str]:
        while True:
            for place, entry in _entries(job_id, last):
                last = place
                yield f"id: {last}\nevent: {entry['event']}\ndata: {json.dumps({'text': entry['text']})}\n\n"
                if entry["event"] == "end":
                    return

    return StreamingResponse(events(last_event_id), media_type="text/event-stream")


def _entries(job_id: str, last: str) -> list[Any]:
    found: Any = store.xread({f"tokens:{job_id}": last}, block=5000)
    return found[0][1] if found else []
