"""Taskiq with its Redis stream broker, and a thin FastAPI that submits and looks.

From its documents: ``RedisStreamBroker``, the broker with acknowledgements; messages are acknowledged when the result
is saved (the default of the worker), and claimed by others after ``idle_timeout``, here 20 s instead of 10 minutes, as
the longest job takes 10 s; ``SmartRetryMiddleware`` with backoff. It has no cancels and no streams of its own.
"""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from model import have_effect_async, tokens_async
from pydantic import BaseModel
from taskiq import SmartRetryMiddleware
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

URL = os.environ["REDIS_URL"]
broker = (
    RedisStreamBroker(URL, idle_timeout=20_000, unacknowledged_lock_timeout=20, xread_count=1)
    .with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600))
    .with_middlewares(SmartRetryMiddleware(default_retry_count=5, default_delay=1, use_delay_exponent=True))
)


class Order(BaseModel):
    order: str
    tokens: int


@broker.task(retry_on_error=True)
async def generate(order: str, num: int) -> str:
    said = "".join([token async for token in tokens_async(order, num)])
    await have_effect_async(order)
    return said


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    await broker.startup()
    yield
    await broker.shutdown()


app = FastAPI(lifespan=_lifespan)


@app.post("/jobs", status_code=202)
async def submit(body: Order) -> dict[str, str]:
    return {"id": (await generate.kiq(body.order, body.tokens)).task_id}


@app.get("/jobs/{job_id}")
async def look(job_id: str) -> dict[str, str | None]:
    if not await broker.result_backend.is_result_ready(job_id):
        return {"status": "open", "text": None}
    result = await broker.result_backend.get_result(job_id)
    return {"status": "failed" if result.is_err else "succeeded", "text": result.return_value}
