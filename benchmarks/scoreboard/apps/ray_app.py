"""Ray Serve: a ``@task_consumer`` of two replicas behind a FastAPI deployment; its queue is Celery on Redis.

From its document "Asynchronous inference": the Celery adapter, which sets ``acks_late`` and ``reject_on_worker_lost``
itself; retries of the task processor; the broker's visibility timeout, here as for Celery. Its cancel is Celery's
``revoke``, which does not stop a running task. No streams from a consumer. Replicas that die are started by Serve.
"""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os
import sys
import time

import ray
from fastapi import FastAPI
from model import have_effect, tokens
from pydantic import BaseModel
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

PROCESSOR = TaskProcessorConfig(
    queue_name="scoreboard",
    adapter_config=CeleryAdapterConfig(
        broker_url=os.environ["BROKER_URL"],
        backend_url=os.environ["RESULT_URL"],
        app_custom_config={
            "worker_prefetch_multiplier": 1,
            "result_backend_always_retry": True,
            "broker_connection_max_retries": None,
        },
        broker_transport_options={
            "visibility_timeout": 20,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
        },
    ),
    max_retries=5,
)
app = FastAPI()
_STATES = {"SUCCESS": "succeeded", "FAILURE": "failed", "REVOKED": "cancelled"}


class Order(BaseModel):
    order: str
    tokens: int


@serve.deployment(num_replicas=2, max_ongoing_requests=8, ray_actor_options={"num_cpus": 0.5})
@task_consumer(task_processor_config=PROCESSOR)
class Consumer:
    @task_handler(name="generate")
    def generate(self, order: str, num: int) -> str:
        said = "".join(tokens(order, num))
        have_effect(order)
        return said


@serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256)
@serve.ingress(app)
class Api:
    def __init__(self, consumer: object) -> None:
        self._consumer = consumer
        self._adapter = instantiate_adapter_from_config(PROCESSOR)

    @app.post("/jobs", status_code=202)
    def submit(self, body: Order) -> dict[str, str]:
        return {"id": self._adapter.enqueue_task_sync("generate", args=[body.order, body.tokens]).id}

    @app.get("/jobs/{job_id}")
    def look(self, job_id: str) -> dict[str, str | None]:
        job = self._adapter.get_task_status_sync(job_id)
        state = _STATES.get(job.status, "open")
        return {"status": state, "text": job.result if state == "succeeded" else None}

    @app.post("/jobs/{job_id}/cancel", status_code=202)
    def cancel(self, job_id: str) -> None:
        self._adapter.cancel_task_sync(job_id)


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=os.environ["RAY_FOLDER"])
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])))
    serve.run(Api.bind(Consumer.bind()))
    while True:
        time.sleep(60)
