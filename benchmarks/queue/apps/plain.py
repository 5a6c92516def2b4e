"""(a) FastAPI + Celery + Redis as people write it: the result backend is Redis, nothing else is stored."""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os

from celery import Celery
from celery.result import AsyncResult
from fastapi import FastAPI
from pydantic import BaseModel

celery = Celery("plain", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
app = FastAPI()


class Body(BaseModel):
    text: str


@celery.task
def infer(text: str) -> str:
    return text.upper()


@app.post("/jobs", status_code=202)
def submit(body: Body) -> dict[str, str]:
    return {"id": infer.delay(body.text).id}


@app.get("/jobs/{job_id}")
def look(job_id: str) -> dict[str, str | None]:
    result = AsyncResult(job_id, app=celery)
    return {"id": job_id, "status": result.status, "result": result.result if result.successful() else None}
