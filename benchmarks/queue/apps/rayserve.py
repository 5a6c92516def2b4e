"""(e) Ray Serve: a ``@task_consumer`` behind a FastAPI deployment; its queue is Celery on Redis."""

# ruff: noqa: TID251 - written as people write it, and run where our settings cannot be imported
import os
import sys
import time

import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

PROCESSOR = TaskProcessorConfig(
    queue_name="bench",
    adapter_config=CeleryAdapterConfig(
        broker_url=os.environ["BROKER_URL"], backend_url=os.environ["RESULT_URL"], worker_concurrency=16
    ),
)
app = FastAPI()


class Body(BaseModel):
    text: str


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
@task_consumer(task_processor_config=PROCESSOR)
class Consumer:
    @task_handler(name="infer")
    def infer(self, text: str) -> str:
        return text.upper()


@serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256)
@serve.ingress(app)
class Api:
    def __init__(self, consumer: object) -> None:
        self._consumer = consumer
        self._adapter = instantiate_adapter_from_config(PROCESSOR)

    @app.post("/jobs", status_code=202)
    def submit(self, body: Body) -> dict[str, str]:
        return {"id": self._adapter.enqueue_task_sync("infer", args=[body.text]).id}

    @app.get("/jobs/{job_id}")
    def look(self, job_id: str) -> dict[str, str]:
        return {"id": job_id, "status": self._adapter.get_task_status_sync(job_id).status}


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=os.environ["RAY_FOLDER"])
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])))
    serve.run(Api.bind(Consumer.bind()))
    while True:
        time.sleep(60)
