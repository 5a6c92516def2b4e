"""The states that columns hold, their transitions, and the names of events, as stored rows have them."""

import pytest

from headrace.store.errors import InvalidRequest
from headrace.store.schema.batch_states import NEXT, BatchStatus
from headrace.store.schema.event_types import (
    APPROVAL_REQUIRED,
    ENDPOINT_DISABLED,
    EVENT_TYPES,
    EVERY_EVENT,
    JOB_EVENTS,
    REGISTRY_EVENTS,
    RESPONSE_EVENTS,
    TEST,
    check_events,
)
from headrace.store.schema.job_states import FLOW_TASK, TRANSITIONS, UNSERVED_QUEUE, CacheResult, JobState
from headrace.store.schema.version_states import VersionState
from tests.refusals import Naming


def test_a_job_moves_only_so() -> None:
    assert {state.value: sorted(following) for state, following in TRANSITIONS.items()} == {
        "queued": ["cancelled", "expired", "failed", "running", "succeeded"],
        "running": ["cancelled", "expired", "failed", "queued", "succeeded"],
        "succeeded": [],
        "failed": [],
        "cancelled": [],
        "expired": [],
    }
    assert [state for state in JobState if not state.is_terminal] == ["queued", "running"]
    assert FLOW_TASK == "flow"


def test_a_batch_moves_only_so() -> None:
    assert {status.value: sorted(following) for status, following in NEXT.items()} == {
        "validating": ["cancelling", "expired", "failed", "in_progress"],
        "in_progress": ["cancelling", "finalizing"],
        "finalizing": ["completed", "expired"],
        "cancelling": ["cancelled"],
        "failed": [],
        "completed": [],
        "expired": [],
        "cancelled": [],
    }
    assert [status.value for status in BatchStatus if status.is_terminal] == [
        "failed",
        "completed",
        "expired",
        "cancelled",
    ]


def test_stored_words_stay_as_they_are() -> None:
    assert [state.value for state in VersionState] == ["registered", "verifying", "ready", "rejected", "retired"]
    assert ([result.value for result in CacheResult], UNSERVED_QUEUE) == (["miss", "shared", "hit"], "cache")


def test_an_endpoint_subscribes_to_known_events() -> None:
    assert sorted(RESPONSE_EVENTS) == [
        "response.cancelled",
        "response.completed",
        "response.failed",
        "response.incomplete",
    ]
    of_jobs = {"job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.approval_required"}
    assert RESPONSE_EVENTS | of_jobs == JOB_EVENTS
    of_models = {"rollout.started", "rollout.promoted", "rollout.rolled_back", "rollout.aborted", "version.rejected"}
    assert of_models == REGISTRY_EVENTS
    of_batches = {"batch.failed", "batch.completed", "batch.expired", "batch.cancelled"}
    assert JOB_EVENTS | of_models | of_batches | {"webhook_endpoint.disabled"} == EVENT_TYPES
    assert (APPROVAL_REQUIRED, ENDPOINT_DISABLED, EVERY_EVENT, TEST) == (
        "job.approval_required",
        "webhook_endpoint.disabled",
        "*",
        "webhook.test",
    )
    assert check_events(["job.failed", "*", "batch.failed", "job.failed"]) == ["*", "batch.failed", "job.failed"]
    for given, said in (
        ([], Naming("*")),
        (
            ["job.queued", TEST, "*"],
            Naming(f"job.queued, {TEST}: ", f"*, {', '.join(sorted(EVENT_TYPES))}"),
        ),
    ):
        with pytest.raises(InvalidRequest) as refused:
            check_events(given)
        assert (refused.value.message, refused.value.param) == (said, "events")
