"""Queues and hosts as the API shows them."""

from dataclasses import replace

from headrace.features.hosts.host_views import host_object
from headrace.producer_api.jobs.queue_views import queue_object
from headrace.store.hosts.host_reports import HostReport
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling.backlog import Load
from headrace.store.scheduling.queues import QueueView
from headrace.store.scheduling.scale_decisions import StoredDecision
from headrace.store.scheduling.service_rate import Rate
from tests.producer_api.jobs.start_time import at

QUEUE = QueueView(
    name="tiny@1",
    workers=0,
    running=2,
    by_class={ServiceClass.STANDARD: Load(3, 30), ServiceClass.BATCH: Load(1, 5)},
    announced=1,
    oldest_age_s=1.23456,
    paused_at=at(1),
    paused_by="key_1",
    rate=Rate(0.12345, 9.87654),
    scaling=StoredDecision("tiny@1", 4, "because", at(2)),
)
HOST = HostReport.model_validate(
    {
        "name": "h1",
        "started_at": at(1),
        "budget_bytes": 100,
        "places": [
            {"queue": "a@1", "state": "serving", "since": at(2), "memory_bytes": 30, "used_bytes": 20},
            {"queue": "b@1", "state": "starting", "since": at(3), "memory_bytes": 4, "used_bytes": 3},
        ],
        "outlooks": [{"queue": "tiny@1", "in_s": None, "text": "too large"}],
        "num_swaps": 5,
        "asleep": ["c@1"],
        "events": [{"at": at(4), "queue": "a@1", "kind": "started", "reason": "work"}],
    }
)
QUEUE_SHOWN = {
    "name": "tiny@1",
    "object": "queue",
    "share": "own",
    "workers": 0,
    "running": 2,
    "queued": {"jobs": 4, "tokens": 35},
    "by_class": {"standard": {"jobs": 3, "tokens": 30}, "batch": {"jobs": 1, "tokens": 5}},
    "announced": 1,
    "oldest_age_s": 1.235,
    "paused_at": 1_800_000_001,
    "rate": {"jobs_per_s": 0.123, "tokens_per_s": 9.877},
    "host": {"loads_in_s": None, "reason": "too large"},
    "scaling": {"workers": 4, "reason": "because", "decided_at": 1_800_000_002},
}
HOST_SHOWN = {
    "name": "h1",
    "object": "host",
    "started_at": 1_800_000_001,
    "budget_bytes": 100,
    "needed_bytes": 34,
    "used_bytes": 23,
    "num_swaps": 5,
    "asleep": ["c@1"],
    "places": [
        {"queue": "a@1", "state": "serving", "since": 1_800_000_002, "memory_bytes": 30, "used_bytes": 20},
        {"queue": "b@1", "state": "starting", "since": 1_800_000_003, "memory_bytes": 4, "used_bytes": 3},
    ],
    "events": [{"at": 1_800_000_004, "queue": "a@1", "kind": "started", "reason": "work"}],
}


def test_a_queue_is_shown_whole() -> None:
    assert queue_object(QUEUE, share="own", hosts=[HOST]).model_dump(mode="json") == QUEUE_SHOWN
    served = queue_object(replace(QUEUE, workers=1, rate=None, scaling=None), share="all", hosts=[HOST])
    assert (served.host, served.rate, served.scaling) == (None, None, None)
    assert host_object(HOST).model_dump(mode="json") == HOST_SHOWN
