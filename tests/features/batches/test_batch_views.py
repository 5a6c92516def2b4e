"""Batches as they are requested and as they are shown, without services."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.batches.batch_routes import BatchRequest, new_batch
from headrace.features.batches.batch_views import batch_list, batch_object
from headrace.features.batches.message_batch_views import (
    message_batch,
    message_batch_id,
    message_batch_list,
    message_result,
    own_id,
)
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import InvalidRequest
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.tracing.tracing import TraceContext
from tests.features.batches.making import BATCH, URL, at

ADDRESS = "https://headrace.example"


def asked(**changes: Any) -> BatchRequest:
    given = {"input_file_id": "file_1", "endpoint": URL, "completion_window": "24h"}
    return BatchRequest.model_validate(given | changes)


def origin(**changes: Any) -> Origin:
    given = {"route": "r", "idempotency_key": None, "fingerprint": "f", "is_retry": False, "num_bytes": 1}
    return Origin(**given | changes)


def test_a_request_for_a_batch_is_a_row() -> None:
    trace = TraceContext("1" * 32, "2" * 16, True)
    life = {"anchor": "created_at", "seconds": 7200}
    made = new_batch(
        asked(metadata={"k": "v"}, output_expires_after=life),
        origin(idempotency_key="k", project_id="p", trace=trace),
        "key_1",
        ["f"],
    )
    assert (made.url, made.completion_window, made.window_s, made.metadata) == (URL, "24h", 86_400.0, {"k": "v"})
    assert (made.output_ttl_s, made.fingerprints, made.idempotency_key) == (7200, ["f"], "k")
    assert (made.api_key_id, made.project_id, made.traceparent) == ("key_1", "p", trace.header)
    plain = new_batch(asked(), origin(), "key_1", [])
    assert (plain.metadata, plain.output_ttl_s, plain.idempotency_key, plain.traceparent) == (None, None, None, None)


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("1h", 3600), ("168h", 604_800), ("1d", 86_400), ("7d", 604_800), ("0h", None), ("169h", None), ("8d", None)]
    + [(bad, None) for bad in ("", "24", "h", "24m", "1000h", "24h ", "-1h")],
)
def test_a_window_is_an_hour_to_a_week(window: str, seconds: int | None) -> None:
    if seconds is not None:
        assert new_batch(asked(completion_window=window), origin(), "key_1", []).window_s == seconds
        return
    with pytest.raises(InvalidRequest) as caught:
        new_batch(asked(completion_window=window), origin(), "key_1", [])
    assert caught.value.param == "completion_window"
    assert all(bound in caught.value.message for bound in ("1h", "168h", "1d", "7d"))


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_batch_has_a_key_within_its_bounds(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        new_batch(asked(), origin(idempotency_key=key), "key_1", [])
    assert (caught.value.param, "255" in caught.value.message) == ("Idempotency-Key", True)


def test_a_batch_is_shown_whole() -> None:
    assert batch_object(BATCH).model_dump(mode="json") == {
        "id": "batch_1",
        "object": "batch",
        "endpoint": URL,
        "model": "tiny",
        "model_versions": {"tiny": "tiny@3"},
        "errors": {"object": "list", "data": [{"code": "c", "message": "m", "param": "p", "line": 2}]},
        "input_file_id": "file_1",
        "completion_window": "24h",
        "status": "finalizing",
        "output_file_id": "file_2",
        "error_file_id": "file_3",
        "created_at": 1_800_000_000,
        "start_after": None,
        "in_progress_at": 1_800_000_001,
        "expires_at": 1_800_000_100,
        "finalizing_at": 1_800_000_002,
        "completed_at": 1_800_000_003,
        "failed_at": 1_800_000_004,
        "expired_at": 1_800_000_005,
        "cancelling_at": 1_800_000_006,
        "cancelled_at": 1_800_000_007,
        "request_counts": {"total": 7, "completed": 3, "failed": 2},
        "usage": {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 6},
            "total_tokens": 30,
        },
        "metadata": {"k": "v"},
    }
    assert batch_object(replace(BATCH, errors=None)).errors is None
    page = batch_list([BATCH, replace(BATCH, id="batch_2")], 1)
    assert ([one.id for one in page.data], page.first_id, page.last_id, page.has_more) == (
        ["batch_1"],
        "batch_1",
        "batch_1",
        True,
    )
    whole = batch_list([BATCH], 1)
    assert (whole.has_more, batch_list([], 1).model_dump(exclude={"object"})) == (
        False,
        {"data": [], "first_id": None, "last_id": None, "has_more": False},
    )


def test_a_message_batch_is_shown_whole() -> None:
    times = dict.fromkeys(("completed_at", "failed_at", "expired_at", "cancelled_at", "cancelling_at"))
    running = replace(BATCH, status=BatchStatus.IN_PROGRESS, **times)
    shown = message_batch(running, 7, {"failed": 5}, ADDRESS).model_dump()
    assert shown == {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": 7, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "created_at": "2027-01-15T08:00:00Z",
        "expires_at": "2027-01-15T08:01:40Z",
        "ended_at": None,
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": None,
    }
    cancelling = message_batch(replace(running, status=BatchStatus.CANCELLING, cancelling_at=at(6)), 7, {}, ADDRESS)
    assert (cancelling.processing_status, cancelling.cancel_initiated_at) == ("canceling", "2027-01-15T08:00:06Z")
    ended = message_batch(replace(running, status=BatchStatus.COMPLETED, completed_at=at(3)), 7, {}, ADDRESS)
    assert (ended.processing_status, ended.ended_at) == ("ended", "2027-01-15T08:00:03Z")
    assert ended.results_url == f"{ADDRESS}/v1/messages/batches/msgbatch_1/results"
    for name in ("failed_at", "expired_at", "cancelled_at"):
        status = BatchStatus(name.removesuffix("_at"))
        assert (
            message_batch(replace(running, status=status, **{name: at(9)}), 7, {}, ADDRESS).ended_at
            == "2027-01-15T08:00:09Z"
        )


@pytest.mark.parametrize(
    ("status", "outcomes", "counts"),
    [
        (BatchStatus.COMPLETED, {"failed": 1, "refused": 1, "cancelled": 1, "expired": 1}, (3, 2, 1, 1)),
        (BatchStatus.COMPLETED, {}, (3, 4, 0, 0)),
        (BatchStatus.CANCELLED, {"failed": 1, "refused": 1, "expired": 1}, (3, 2, 2, 0)),
        (BatchStatus.EXPIRED, {"failed": 1, "cancelled": 1, "expired": 9}, (3, 1, 1, 2)),
    ],
)
def test_the_requests_of_an_ended_message_batch_are_counted_once(
    status: BatchStatus, outcomes: dict[str, int], counts: tuple[int, ...]
) -> None:
    found = message_batch(replace(BATCH, status=status), 7, outcomes, ADDRESS).request_counts
    assert (found.succeeded, found.errored, found.canceled, found.expired, found.processing) == (*counts, 0)


def test_a_message_batch_has_results_and_ids_of_its_own() -> None:
    assert (message_batch_id("batch_1"), own_id("msgbatch_1"), own_id("batch_1")) == (
        "msgbatch_1",
        "batch_1",
        "batch_1",
    )
    shown = [message_batch(replace(BATCH, id=f"batch_{number}"), 1, {}, ADDRESS) for number in range(2)]
    page = message_batch_list(shown, has_more=True)
    assert (page.first_id, page.last_id, page.has_more) == ("msgbatch_0", "msgbatch_1", True)
    assert message_batch_list([], has_more=False).first_id is None
    answer = {"status_code": 200, "request_id": "job_1", "body": {"id": "msg_1"}}
    error = {"message": "m", "type": "invalid_request_error", "param": None, "code": "c"}
    refusal = {"status_code": 404, "request_id": "job_2", "body": {"error": error}}
    lines = [
        {"custom_id": "a", "response": answer, "error": None},
        {"custom_id": "b", "response": refusal, "error": None},
        {"custom_id": "c", "response": None, "error": {"code": "batch_cancelled"}},
        {"custom_id": "d", "response": None, "error": {"code": "batch_expired"}},
    ]
    told = {"type": "error", "error": error | {"type": "not_found_error"}, "request_id": "job_2"}
    assert [message_result(one) for one in lines] == [
        {"custom_id": "a", "result": {"type": "succeeded", "message": {"id": "msg_1"}}},
        {"custom_id": "b", "result": {"type": "errored", "error": told}},
        {"custom_id": "c", "result": {"type": "canceled"}},
        {"custom_id": "d", "result": {"type": "expired"}},
    ]
