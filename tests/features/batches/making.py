"""A batch, its settings and the lines of its input, for tests without services."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from headrace.features.batches.batch_input import RawLine
from headrace.features.batches.batches import Batch
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import Principal

URL = "/v1/completions"
BODY = {"model": "tiny", "prompt": "hi"}
START = datetime.fromtimestamp(1_800_000_000, UTC)
SETTINGS = Settings(database_url="postgresql://x/y", redis_url="redis://x").model_copy(
    update={"max_body_bytes": 1000, "max_batch_lines": 3}
)
PRINCIPAL = Principal("acme", "key_1", frozenset())


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


BATCH = Batch(
    id="batch_1",
    tenant_id="acme",
    status=BatchStatus.FINALIZING,
    url=URL,
    input_file_id="file_1",
    input_digest="d",
    api_key_id="key_1",
    project_id="project",
    completion_window="24h",
    metadata={"k": "v"},
    output_ttl_s=None,
    fingerprint=None,
    model="tiny",
    model_versions={"tiny": "tiny@3"},
    errors=[{"code": "c", "message": "m", "param": "p", "line": 2}],
    next_line=5,
    next_offset=6,
    num_total=7,
    num_completed=3,
    num_failed=2,
    input_tokens=10,
    cached_tokens=4,
    reasoning_tokens=6,
    output_tokens=20,
    output_file_id="file_2",
    error_file_id="file_3",
    created_at=START,
    in_progress_at=at(1),
    expires_at=at(100),
    finalizing_at=at(2),
    completed_at=at(3),
    failed_at=at(4),
    expired_at=at(5),
    cancelling_at=at(6),
    cancelled_at=at(7),
    purged_at=None,
    traceparent=None,
)


def line(custom_id: object = "a", **changes: Any) -> bytes:
    given = {"custom_id": custom_id, "method": "POST", "url": URL, "body": BODY} | changes
    return json.dumps({name: value for name, value in given.items() if value is not ...}).encode()


def raw(text: bytes | None, number: int = 1) -> RawLine:
    return RawLine(number, text, 0)
