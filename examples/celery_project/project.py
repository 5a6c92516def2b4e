"""A Celery project with folders ``models``, ``store`` and ``workers`` of its own. See README.md."""

import os

from celery import Celery

BROKER = os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/1")
RESULTS = os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost:6379/2")

app = Celery("reviews", broker=BROKER, include=["workers.tasks", "headrace.celery"])
app.conf.update(
    # Headrace: its address and a key. The backend is the project's own; Headrace is asked for what it does not have.
    headrace_url=os.environ.get("HEADRACE_API_URL"),
    headrace_api_key=os.environ.get("HEADRACE_API_KEY"),
    result_backend=f"headrace.celery:backend+{RESULTS}",
    # So that the project's own tasks survive kills too: a message is acknowledged when its task has ended, comes again
    # after half a minute if its worker died, and is sent until the broker is there (Celery takes no retries without a
    # number as a few of them, for what follows a task).
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"visibility_timeout": float(os.environ.get("VISIBILITY_TIMEOUT_S", "30"))},
    result_backend_always_retry=True,
    task_publish_retry_policy={"max_retries": 1000, "interval_start": 0.1, "interval_max": 1.0},
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    worker_prefetch_multiplier=4,
)
