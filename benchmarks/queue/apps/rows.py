"""(b) The same with a Postgres row per job and ``acks_late``: the row holds the state and the result."""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os
import uuid
from collections.abc import Iterator
from typing import Annotated

from celery import Celery
from celery.signals import worker_process_init
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

celery = Celery("rows", broker=os.environ["BROKER_URL"])
celery.conf.update(task_acks_late=True, task_ignore_result=True)
# Kinder than the default of 5 and 10 more on demand, with which busy threads open and close connections all the time.
engine = create_engine(os.environ["ROWS_URL"], pool_size=40, max_overflow=0)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "bench_jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    text: Mapped[str]
    result: Mapped[str | None]


class Body(BaseModel):
    text: str


def session() -> Iterator[Session]:
    with Session(engine) as opened:
        yield opened


@worker_process_init.connect
def forget_connections(**_: object) -> None:
    engine.dispose(close=False)


@celery.task
def infer(job_id: str) -> None:
    with Session(engine) as db:
        job = db.get_one(Job, job_id)
        job.status = "running"
        db.commit()
        job.result = job.text.upper()
        job.status = "succeeded"
        db.commit()


@app.post("/jobs", status_code=202)
def submit(body: Body, db: Annotated[Session, Depends(session)]) -> dict[str, str]:
    job_id = str(uuid.uuid4())
    db.add(Job(id=job_id, status="queued", text=body.text))
    db.commit()
    infer.delay(job_id)
    return {"id": job_id}


@app.get("/jobs/{job_id}")
def look(job_id: str, db: Annotated[Session, Depends(session)]) -> dict[str, str | None]:
    job = db.get(Job, job_id)
    if job is None:
        raise HTTPException(404)
    return {"id": job.id, "status": job.status, "result": job.result}


if __name__ == "__main__":
    Base.metadata.create_all(engine)
