"""Stock Celery as the comparison's contestant: FastAPI in front, Redis as broker and result backend.

``COMPARE_LATE`` turns on the options that are recommended for reliability: ``acks_late``, ``reject_on_worker_lost`` and
a short visibility timeout. A task writes its id to ``COMPARE_LOG`` when it begins and when it ends.
"""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os
import time
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from fastapi import FastAPI
from pydantic import BaseModel

celery = Celery("stock", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
if os.environ.get("COMPARE_LATE"):
    celery.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_transport_options={"visibility_timeout": float(os.environ["COMPARE_LATE"])},
    )
app = FastAPI()


class Body(BaseModel):
    steps: int


@celery.task(bind=True)
def work(self: Any, steps: int) -> int:
    _write("start", self.request.id)
    for _ in range(steps):
        time.sleep(0.02)
    _write("end", self.request.id)
    return steps


def _write(what: str, job_id: str) -> None:
    with open(os.environ["COMPARE_LOG"], "a") as log:
        log.write(f"{what} {job_id}\n")


@app.post("/jobs", status_code=202)
def submit(body: Body) -> dict[str, str]:
    return {"id": work.delay(body.steps).id}


@app.get("/jobs/{job_id}")
def look(job_id: str) -> dict[str, str]:
    return {"id": job_id, "status": AsyncResult(job_id, app=celery).status}
