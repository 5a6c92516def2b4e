"""The one Celery task: its message carries only a job id, and it has no result."""

from collections.abc import Callable

from celery import Celery

from store.redis.celery_queue import TASK


def register(app: Celery, run: Callable[[str], object]) -> None:
    """Add the task to ``app``; ``run`` takes the job id and raises nothing."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator]  # celery ships no annotations
    def headrace_run(job_id: str) -> None:
        run(job_id)
