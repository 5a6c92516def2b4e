"""The parts of one API process, in the order of construction: database, Redis, hub, and the parts built on them.

The constructor opens nothing; ``start`` does, and ``stop`` closes everything. ``draining`` is set when the process gets
its stop signal, before connections are closed, so that streams and waits end.
"""

import asyncio
from dataclasses import replace
from functools import partial

import anyio.to_thread

from headrace.producer_api.access.auth import Authenticator, RefusalLog
from headrace.producer_api.access.rate_limits import LimitCache, RateLimits, StreamLimits
from headrace.producer_api.caches.live_processes import LiveProcesses
from headrace.producer_api.caches.model_catalog import ModelCatalog
from headrace.producer_api.caches.ttl_cache import REFRESH_EVERY_S
from headrace.producer_api.reads.job_loader import JobLoader
from headrace.producer_api.reads.list_queries import ListQueries
from headrace.producer_api.server.health import Health
from headrace.producer_api.server.loop_lag import LoopLag
from headrace.producer_api.server.metrics_page import MetricsPage
from headrace.producer_api.submission.enqueue import Enqueuer, RequestDigests
from headrace.producer_api.submission.prompt_preparation import PromptPreparation
from headrace.producer_api.submission.queue_limits import QueueLimits
from headrace.producer_api.submission.submission_hook import SubmissionParts, open_guards, open_templates
from headrace.producer_api.submission.submit import Submissions
from headrace.producer_api.submission.text_guard import TextGuards
from headrace.prompts.sandbox.turns import Turns
from headrace.store.db.database import Database
from headrace.store.db.seal_part import open_seal
from headrace.store.digests import open_digests
from headrace.store.keeper import run_parts
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.periodic import Periodic
from headrace.store.redis import connection as redis_store
from headrace.store.redis.celery_queue import HintPublisher, celery_app
from headrace.store.redis.rate_limiter import Limiter
from headrace.store.seal import Seal
from headrace.store.settings import Settings
from headrace.store.streams.hub import Hub
from headrace.store.streams.stream_log import StreamPublisher
from headrace.store.tenants.quotas import fold_for_the_dispatcher
from headrace.store.tracing.tracing import OFF, Tracing

API_THREADS = 96
_POOL_SIZE = 16
# The lead, the batches, mirrors, and three of files. They are opened when they are needed.
_DUTIES_POOL_SIZE = 6
# A batch reads files, possibly over the network, within a transaction.
_DUTIES_IDLE_S = 30.0
# The most tenants whose calls that may take long are made at the same time.
_TENANT_THREADS = 8
# A request can do without Redis, so it waits only this long, without a retry.
_REDIS_TIMEOUT_S = 0.5


class Runtime:
    """The parts of one API process."""

    def __init__(self, settings: Settings, tracing: Tracing = OFF) -> None:
        self.settings = settings
        self.tracing = tracing
        self.draining = asyncio.Event()
        self.metrics = ApiMetrics(tracing)
        self.loop_lag = LoopLag(self.metrics.loop_lag.observe)
        self.refusal_log = RefusalLog()
        self.health = Health(settings)
        seal = open_seal(settings)
        self.db = Database(settings.database_url, pool_size=_POOL_SIZE, application_name="headrace-api", seal=seal)
        # Of the duties (``producer_api.api_keeper``): no request waits for their connections.
        self.duties_db = Database(
            settings.database_url,
            pool_size=_DUTIES_POOL_SIZE,
            application_name="headrace-batches",
            seal=seal,
            idle_timeout_s=_DUTIES_IDLE_S,
        )
        self.metrics_page = MetricsPage(self.db, self.metrics)
        self._connect_redis(seal)
        self.catalog = ModelCatalog(self.db)
        self.reader = JobLoader(self.db, self.metrics.commits.observer("read"))
        self.live_processes = LiveProcesses(self.db, at_each_beat=partial(fold_for_the_dispatcher, self.db))
        self.limits = LimitCache(settings, self.db)
        limiter = Limiter(self.redis, breaker=self.redis_breaker, num_processes=self.live_processes.num_alive)
        self.rate_limits = RateLimits(self.limits, limiter)
        self.streams = StreamLimits(self.limits)
        self.lists = ListQueries(settings, self.rate_limits)
        self._build_submissions(seal)

    def _connect_redis(self, seal: Seal) -> None:
        settings = self.settings
        self.redis = redis_store.connect(settings.redis_url, timeout_s=_REDIS_TIMEOUT_S, retries=0)
        self.redis_breaker = redis_store.CircuitBreaker(settings.redis_url)
        self.authenticator = Authenticator(self.db)
        self.hub = Hub(
            settings.redis_url,
            seal,
            on_key_changed=self.authenticator.forget,
            on_error=lambda what: self.metrics.hub_errors.labels(what).inc(),
        )
        self.metrics.hub_connected.set_function(lambda: float(self.hub.is_connected))
        # For notifications alone, which carry no data.
        self.frames = StreamPublisher(self.redis, ttl_s=settings.stream_ttl_s)

    def _build_submissions(self, seal: Seal) -> None:
        settings = self.settings
        self.queue_limits = QueueLimits(settings, self.db)
        celery = celery_app(settings)
        self.enqueuer = Enqueuer(
            self.db,
            HintPublisher(celery),
            HintPublisher(celery),
            self.redis_breaker,
            ready_window=settings.ready_window,
            on_batch=self.metrics.commits.observer("accept"),
        )
        digests = open_digests(settings, seal)
        self.digests = RequestDigests(digests)
        self.templates = open_templates(self.db)
        parts = SubmissionParts(
            settings=settings,
            db=self.db,
            rate_limits=self.rate_limits,
            catalog=self.catalog,
            queue_limits=self.queue_limits,
            enqueuer=self.enqueuer,
            metrics=self.metrics,
            guards=TextGuards(),
            templates=self.templates,
            digests=self.digests,
            live_processes=self.live_processes,
            preparation=PromptPreparation(self.catalog, self.live_processes, settings, self.db, self.templates),
            tenant_threads=Turns(_TENANT_THREADS, most_of_one=1),
        )
        self.guards = open_guards(parts)
        self.refresher = Periodic("cache-refresh", self._refresh, REFRESH_EVERY_S)
        self.submissions = Submissions(replace(parts, guards=self.guards), tracing=self.tracing)

    async def start(self) -> None:
        """Start the background threads and the hub. An unavailable Redis does not prevent it."""
        anyio.to_thread.current_default_thread_limiter().total_tokens = API_THREADS
        self.redis_breaker.start()
        self.live_processes.start()
        self.enqueuer.start()
        self.refresher.start()
        await self.hub.start()
        self.loop_lag.start()

    async def stop(self) -> None:
        """Close everything."""
        self.draining.set()
        self.loop_lag.stop()
        await self.hub.stop()
        await anyio.to_thread.run_sync(self._close)

    def _refresh(self) -> None:
        refreshes = self.catalog.refresh, self.limits.refresh, self.guards.refresh
        run_parts(zip(("models", "limits", "guards"), refreshes, strict=True))

    def _close(self) -> None:
        self.refresher.stop()
        self.enqueuer.stop()
        self.live_processes.stop(5)
        self.redis_breaker.stop()
        self.health.close()
        self.redis.close()
        self.lists.close()
        self.tracing.stop()
        self.duties_db.close()
        self.db.close()
