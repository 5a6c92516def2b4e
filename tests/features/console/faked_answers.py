"""Made-up answers of the API that several pages of the console show: a job, and the events of the live stream."""

from typing import Any

from tests.features.console.faked_api import NOW

JOB_ID = "job_0197f0c2a3b47d518e9a2b6c7d8e9f01"
JOB: dict[str, Any] = {
    "id": JOB_ID, "status": "succeeded", "model": "m", "model_version": 3, "task": "generate",
    "service_class": "batch", "priority": 4, "created_at": NOW - 100, "started_at": NOW - 90,
    "expires_at": NOW + 3600, "attempt": 2, "max_attempts": 3,
    "usage": {
        "queue_ms": 10_000, "compute_ms": 5_000, "first_token_ms": 11_000, "input_tokens": 12_345,
        "output_tokens": 21, "cached_tokens": 7, "cost": 0.00123456,
    },
    "metadata": {"a": "b"}, "error": None, "waiting_for": None, "steps": None, "parent_id": "job_parent",
    "cache": "miss", "truncated": {"tokens": 5, "turns": 1}, "queue": None,
    "output": {"text": "Hi", "finish_reason": "stop", "tool_calls": [{"id": "c"}]}, "purged_at": None,
}  # fmt: skip
RUNNING = JOB | {"status": "running", "usage": None, "attempt": 1, "output": None, "metadata": {}}

LOAD = {"jobs": 3, "tokens": 12_000}
QUEUE: dict[str, Any] = {
    "name": "m@3", "paused_at": None, "workers": 2, "running": 4, "host": None,
    "scaling": {"workers": 3, "reason": "it is late"},
    "queued": LOAD, "by_class": {"interactive": {"jobs": 1}, "standard": {"jobs": 2}, "batch": {"jobs": 0}},
    "oldest_age_s": 61.0, "rate": {"tokens_per_s": 1234.5}, "clears_in_s": 9.7,
    "tenants": [{"id": "ten_1", "name": "acme", "jobs": 2}, {"id": "ten_2", "name": None, "jobs": 1}],
}  # fmt: skip
EMPTY = {"jobs": 0, "tokens": 0}
IDLE = QUEUE | {
    "queued": EMPTY,
    "by_class": dict.fromkeys(("interactive", "standard", "batch"), EMPTY),
    "tenants": [],
    "rate": None,
}
QUEUES = [
    QUEUE,
    IDLE | {"name": "a@1", "paused_at": 5, "clears_in_s": None, "scaling": None},
    IDLE | {"name": "b@1", "workers": 0, "scaling": None},
    QUEUE | {"name": "c@1", "workers": 0, "clears_in_s": None, "scaling": None},
    IDLE | {"name": "d@1", "workers": 0, "host": {"loads_in_s": 0.2, "reason": None}},
    IDLE | {"name": "e@1", "workers": 0, "host": {"loads_in_s": None, "reason": "too large"}},
    IDLE | {"name": "f@1", "workers": 1, "scaling": None},
]
HELD = {
    "id": JOB_ID,
    "class_rank": 1,
    "attempt": 2,
    "age_s": 2.5,
    "input_tokens": 9,
    "output_tokens": 5,
    "max_tokens": 20,
}
WORKER: dict[str, Any] = {
    "id": "celery@mill:7:boot", "queue": "m@3", "engine": "own", "health": "late", "seen_age_s": 6.0, "slots": 3,
    "running": 1, "waiting": 2, "free_blocks": 10, "total_blocks": 40, "lease_s": 10,
    "lease_age_s": 8.0, "is_reserved": True,
    "jobs": [HELD, HELD | {"id": "job_b", "output_tokens": 0, "attempt": 1, "class_rank": 0}],
}  # fmt: skip
HOST = {
    "name": "h1", "num_swaps": 2, "needed_bytes": 2**30, "budget_bytes": 3 * 2**30, "used_bytes": 2**29,
    "places": [{"queue": "m@3", "state": "serving"}, {"queue": "n@1", "state": "loading"}], "asleep": ["s@1"],
    "events": [{"at": NOW - number, "queue": f"q{number}", "kind": "loaded", "reason": "asked"} for number in range(6)],
}  # fmt: skip
LIVE: dict[str, Any] = {
    "at": NOW, "share": "all", "missing": ["redis"], "queues": QUEUES, "hosts": [HOST], "cache_hit_rate": 0.256,
    "workers": [WORKER, WORKER | {"id": "w2", "health": "lost", "jobs": [HELD], "is_reserved": False, "waiting": 0}],
    "problems": [
        {"kind": "not_taken", "queue": "m@3", "worker": None, "cause": "nobody takes it", "text": "Nobody takes it."},
        {"kind": "worker_late", "queue": "m@3", "worker": "w", "cause": None, "text": "It is late."},
    ],
}  # fmt: skip
POINT = {"tokens_per_s": 10, "first_token_p50_ms": 5.0, "first_token_p95_ms": 5.0, "occupancy": 0.1}
LAST = {"tokens_per_s": 123.4, "first_token_p50_ms": 80.0, "first_token_p95_ms": 950.0, "occupancy": 0.5}
HISTORY = {
    "points": [{"at": NOW - 5, **POINT}, {"at": NOW, **LAST}],
    "speeds": [{"queue": "m@3", "tokens_per_s": 55.5, "first_token_p50_ms": 70.0, "first_token_p95_ms": 900.0}],
}
