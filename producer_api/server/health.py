"""Health checks of Postgres and Redis, with their own connections and threads.

An exhausted connection pool or a blocked thread pool must neither block the answer nor make it `ok`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from headrace.store.db.database import Database, check_schema
from headrace.store.errors import HeadraceError, Unavailable
from headrace.store.redis import connection as redis_store
from headrace.store.settings import Settings

ANSWER_WITHIN_S = 6.0
_REDIS_TIMEOUT_S = 2.0
OK = "ok"


@dataclass(frozen=True, slots=True)
class HealthReport:
    """``ok`` or an error message for each service."""

    postgres: str
    redis: str

    @property
    def is_ready(self) -> bool:
        """True if Postgres is available: jobs are accepted and finish without Redis."""
        return self.postgres == OK


class Health:
    """Probes Postgres and Redis."""

    def __init__(self, settings: Settings) -> None:
        self._db = Database(settings.database_url, pool_size=2, application_name="headrace-api-health")
        self._redis = redis_store.connect(settings.redis_url, timeout_s=_REDIS_TIMEOUT_S)
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="health")

    async def report(self) -> HealthReport:
        """Probe both services, for at most six seconds."""
        postgres, redis = await asyncio.gather(
            self._within("Postgres", self.postgres), self._within("Redis", self.redis)
        )
        return HealthReport(postgres, redis)

    async def _within(self, name: str, probe: Callable[[], str]) -> str:
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, probe), ANSWER_WITHIN_S)
        except TimeoutError:
            return f"{name} gave no answer within {ANSWER_WITHIN_S:g} s"

    def postgres(self) -> str:
        """Return ``ok`` if Postgres answers and has the schema of this version, else an error message."""
        try:
            check_schema(self._db)
        except Unavailable as error:
            return error.message
        return OK

    def redis(self) -> str:
        """Return ``ok`` if Redis answers, else an error message."""
        try:
            redis_store.ping(self._redis)
        except HeadraceError as error:
            return error.message
        return OK

    def close(self) -> None:
        """Close the probes' connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._redis.close()
        self._db.close()
