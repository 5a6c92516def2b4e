"""(c) FastAPI + celery-batches: a worker gathers messages and handles them as a list."""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os

from celery import Celery
from celery.result import AsyncResult
from celery_batches import Batches, SimpleRequest
from fastapi import FastAPI
from pydantic import BaseModel

celery = Celery("batches", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
# A batch can only hold prefetched messages.
celery.conf.worker_prefetch_multiplier = 64
app = FastAPI()


class Body(BaseModel):
    text: str


@celery.task(base=Batches, flush_every=64, flush_interval=0.02)
def infer(requests: list[SimpleRequest]) -> None:
    texts = [request.args[0] for request in requests]
    for request, result in zip(requests, [text.upper() for text in texts], strict=True):
        celery.backend.mark_as_done(request.id, result, request=request)


@app.post("/jobs", status_code=202)
def submit(body: Body) -> dict[str, str]:
    return {"id": infer.delay(body.text).id}


@app.get("/jobs/{job_id}")
def look(job_id: str) -> dict[str, str | None]:
    result = AsyncResult(job_id, app=celery)
    return {"id": job_id, "status": result.status, "result": result.result if result.successful() else None}
