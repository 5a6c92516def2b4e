"""Procrastinate 3 on Postgres, and a thin FastAPI that submits, looks and cancels.

From its documents: a periodic task that retries stalled jobs, found by their workers' heartbeats (how-to: retry stalled
jobs), here after 10 s instead of 30, with heartbeats each 3 s; a retry strategy with backoff; ``abort`` for running
jobs, which cancels the asyncio task. It stores no results: the task writes its answer to its own table. No streams.
"""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from model import have_effect_async, tokens_async
from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy
from pydantic import BaseModel

_TABLE = "CREATE TABLE IF NOT EXISTS answers (job_id bigint PRIMARY KEY, text text NOT NULL)"
_STORE = "INSERT INTO answers VALUES (%(job_id)s, %(text)s) ON CONFLICT (job_id) DO UPDATE SET text = excluded.text"
_READ = (
    "SELECT j.status::text, a.text FROM procrastinate_jobs j LEFT JOIN answers a ON a.job_id = j.id WHERE j.id = %(id)s"
)
_STATES = {"succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled", "aborted": "cancelled"}

queue = App(
    connector=PsycopgConnector(conninfo=os.environ["ROWS_URL"], min_size=1, max_size=8),
    worker_defaults={"concurrency": 8, "update_heartbeat_interval": 3, "stalled_worker_timeout": 10},
)


class Order(BaseModel):
    order: str
    tokens: int


@queue.task(pass_context=True, retry=RetryStrategy(max_attempts=6, exponential_wait=2))
async def generate(context: JobContext, order: str, num: int) -> None:
    said = "".join([token async for token in tokens_async(order, num)])
    await have_effect_async(order)
    await queue.connector.execute_query_async(_STORE, job_id=context.job.id, text=said)


@queue.periodic(cron="* * * * * */5")
@queue.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:
    for job in await queue.job_manager.get_stalled_jobs(seconds_since_heartbeat=10):
        await queue.job_manager.retry_job(job)


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with queue.open_async():
        await queue.connector.execute_query_async(_TABLE)
        yield


app = FastAPI(lifespan=_lifespan)


@app.post("/jobs", status_code=202)
async def submit(body: Order) -> dict[str, str]:
    return {"id": str(await generate.defer_async(order=body.order, num=body.tokens))}


@app.get("/jobs/{job_id}")
async def look(job_id: int) -> dict[str, Any]:
    row = await queue.connector.execute_query_one_async(_READ, id=job_id)
    return {"status": _STATES.get(row["status"], "open"), "text": row["text"]}


@app.post("/jobs/{job_id}/cancel", status_code=202)
async def cancel(job_id: int) -> None:
    await queue.job_manager.cancel_job_by_id_async(job_id, abort=True)
