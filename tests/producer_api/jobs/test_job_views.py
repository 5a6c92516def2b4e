"""Jobs, approvals, timelines and streams as the native API shows them: whole objects. No services."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.producer_api.jobs.approval_views import approval_list
from headrace.producer_api.jobs.job_views import body_object, job_list, job_object, timeline
from headrace.producer_api.jobs.stream_routes import stream_events
from headrace.producer_api.server.sse import EventStream
from headrace.producer_api.streaming.job_events import (
    Ended,
    Event,
    KeptText,
    Queued,
    Restarted,
    Started,
    StepHappened,
    TextPiece,
)
from headrace.store.errors import Gone
from headrace.store.jobs.jobs import Job, JobEvent
from headrace.store.payloads.tool_approval import Approval, ApprovalState
from headrace.store.scheduling.backlog import QueuePosition
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import ChoiceEnd, ChoiceMark
from headrace.store.streams.stream_log import StreamCursor
from headrace.store.tenants.api_keys import Principal
from tests.producer_api.jobs.start_time import START, at

JOB = Job(
    id="job_1",
    tenant_id="acme",
    task="generate",
    state=JobState.SUCCEEDED,
    model="tiny",
    model_version=3,
    queue="tiny@1",
    class_rank=2,
    priority=4,
    payload={
        "input": {"prompt": "hi"},
        "sampling": {"max_tokens": 4, "seed": None},
        "truncated": {"strategy": "left", "tokens": 2, "turns": 1},
        "template": {"id": "p", "name": "n", "version": 1, "digest": "d"},
        "policy": {"model": "", "version": 7, "flagged": [{"rule": "r", "kind": "k", "action": "flag", "count": 2}]},
        "unknown": 1,
    },
    input_tokens=5,
    metadata={"a": "b"},
    webhook={"url": "https://example.com/", "events": None},
    epoch=2,
    attempt=1,
    max_attempts=6,
    owner="w",
    lease_expires_at=at(9),
    announced_at=at(1),
    cancel_requested_at=at(5),
    deadline_at=at(60.5),
    created_at=START,
    started_at=at(2),
    completed_at=at(4),
    output={"text": "ho"},
    error=None,
    usage={
        "input_tokens": 5,
        "output_tokens": 2,
        "cached_tokens": 3,
        "reasoning_tokens": 1,
        "queue_ms": 1.23456,
        "first_token_ms": None,
        "compute_ms": 7.0,
        "cost": 0.5,
    },
    output_purged_at=at(7),
    num_deltas=8,
    cache="shared",
    model_digest="f00d",
    parent_id="job_0",
    step="only",
    needs=["a"],
)
USAGE = {
    "input_tokens": 5,
    "output_tokens": 2,
    "total_tokens": 7,
    "cached_tokens": 3,
    "reasoning_tokens": 1,
    "queue_ms": 1.235,
    "first_token_ms": None,
    "compute_ms": 7.0,
    "cost": 0.5,
}
APPROVAL = Approval(
    id="apr_1",
    job_id="job_1",
    step="call",
    step_id="job_2",
    tool="weather",
    arguments="{}",
    state=ApprovalState.PENDING,
    created_at=at(1),
    expires_at=at(2),
    decided_at=at(3),
    decided_by="key_1",
    reason="why",
)
APPROVAL_SHOWN = {
    "id": "apr_1",
    "object": "approval",
    "status": "pending",
    "job_id": "job_1",
    "step": "call",
    "tool": "weather",
    "arguments": "{}",
    "created_at": 1_800_000_001,
    "expires_at": 1_800_000_002,
    "decided_at": 1_800_000_003,
    "decided_by": "key_1",
    "reason": "why",
}


def test_a_job_is_shown_whole() -> None:
    place = QueuePosition(3, at(30.9))
    shown = job_object(JOB, place=place, steps=[JOB], waiting_for=[APPROVAL]).model_dump(mode="json")
    of_both = {"model": "tiny", "model_version": 3, "model_digest": "f00d", "task": "generate", "status": "succeeded"}
    of_both |= {"started_at": 1_800_000_002, "completed_at": 1_800_000_004, "attempt": 1, "usage": USAGE}
    of_both |= {"output": {"text": "ho"}, "error": None}
    assert shown == of_both | {
        "id": "job_1",
        "object": "job",
        "service_class": "batch",
        "priority": 4,
        "created_at": 1_800_000_000,
        "start_after": None,
        "progress": None,
        "expires_at": 1_800_000_060,
        "cancel_requested_at": 1_800_000_005,
        "queue": {"name": "tiny@3", "position": 3, "estimated_start_at": 1_800_000_030},
        "max_attempts": 6,
        "last_event_id": "2-9",
        "metadata": {"a": "b"},
        "purged_at": 1_800_000_007,
        "cache": "shared",
        "truncated": {"strategy": "left", "tokens": 2, "turns": 1},
        "template": {"id": "p", "name": "n", "version": 1, "digest": "d"},
        "pipeline": None,
        "policy": {
            "model": None,
            "version": 7,
            "flagged": [{"rule": "r", "kind": "k", "action": "flag", "count": 2}],
        },
        "parent_id": "job_0",
        "steps": [of_both | {"name": "only", "job_id": "job_1", "needs": ["a"]}],
        "waiting_for": [APPROVAL_SHOWN],
        "links": {
            "self": "/v1/jobs/job_1",
            "events": "/v1/jobs/job_1/events",
            "timeline": "/v1/jobs/job_1/timeline",
            "cancel": "/v1/jobs/job_1/cancel",
        },
    }


def test_what_a_job_does_not_have_is_null() -> None:
    running = replace(
        JOB,
        state=JobState.RUNNING,
        payload={"pipeline": {"id": "p", "name": "n", "version": 1, "digest": "d"}},
        cache=None,
        usage={"input_tokens": 1, "output_tokens": 0},
        output_purged_at=None,
        deadline_at=None,
    )
    shown = job_object(running).model_dump(mode="json")
    names = ("last_event_id", "cache", "purged_at", "expires_at", "truncated", "template", "policy", "steps")
    assert {name: shown[name] for name in names} == dict.fromkeys(names)
    assert (shown["waiting_for"], shown["queue"]) == (
        None,
        {"name": "tiny@3", "position": None, "estimated_start_at": None},
    )
    assert shown["pipeline"] == {"id": "p", "name": "n", "version": 1, "digest": "d"}
    least = dict.fromkeys(USAGE) | {"input_tokens": 1, "output_tokens": 0, "total_tokens": 1}
    assert shown["usage"] == least | {"cached_tokens": 0, "reasoning_tokens": 0}
    assert job_object(replace(running, usage=None)).usage is None


def test_a_page_has_one_entry_less_than_was_read() -> None:
    others = [replace(JOB, id=f"job_{number}") for number in range(3)]
    for limit, ids, has_more in ((2, ["job_0", "job_1"], True), (3, ["job_0", "job_1", "job_2"], False)):
        page = job_list(others, limit)
        assert ([one.id for one in page.data], page.has_more) == (ids, has_more)
        assert (page.first_id, page.last_id) == (ids[0], ids[-1])
    approvals = approval_list([APPROVAL, replace(APPROVAL, id="apr_2", decided_at=None)], 1)
    assert approvals.model_dump(mode="json") == {
        "object": "list",
        "data": [APPROVAL_SHOWN],
        "first_id": "apr_1",
        "last_id": "apr_1",
        "has_more": True,
    }
    ended_early = job_list(others[:1], 2, "job_9")
    assert ([one.id for one in ended_early.data], ended_early.last_id, ended_early.has_more) == (
        ["job_0"],
        "job_9",
        True,
    )
    empty = job_list([], 1), approval_list([], 1)
    assert [(one.first_id, one.last_id, one.has_more) for one in empty] == [(None, None, False)] * 2


def test_a_body_makes_the_same_job_again() -> None:
    assert body_object(JOB).model_dump(mode="json") == {
        "job_id": "job_1",
        "object": "job.request",
        "body": {
            "task": "generate",
            "model": "tiny@3",
            "input": {"prompt": "hi"},
            "sampling": {"max_tokens": 4},
            "service_class": "batch",
            "priority": 4,
            "deadline_ms": 60_500,
            "max_attempts": 6,
            "webhook": {"url": "https://example.com/"},
            "metadata": {"a": "b"},
        },
    }
    plain = body_object(replace(JOB, metadata={}, webhook=None, deadline_at=None, payload={"ingest": {"file": 1}})).body
    assert sorted(plain) == ["input", "max_attempts", "model", "priority", "service_class", "task"]
    assert plain["input"] == {"file": 1}
    flow = body_object(replace(JOB, task="flow", payload={"steps": [{"name": "a"}], "input": {"b": 1}})).body
    assert flow["steps"] == [{"name": "a"}]
    assert not flow.keys() & {"task", "model", "input"}
    for task in ("generate", "flow"):
        with pytest.raises(Gone, match="input of job job_1"):
            body_object(replace(JOB, task=task, payload={}))


def test_a_timeline_has_an_attempt_for_each_start() -> None:
    events = [
        JobEvent("queued", 0, START, {}),
        JobEvent("started", 1, at(1.5), {"attempt": 1, "worker": "w1", "engine": "vllm"}),
        JobEvent("cancel_requested", 1, at(2), {}),
        JobEvent("lease_expired", 1, at(3), {"first_token_ms": 1.23456}),
        JobEvent("queued", 1, at(3), {}),
        JobEvent("started", 2, at(4), {}),
        JobEvent("queued", 2, at(5), {}),
    ]
    shown = timeline("job_1", events).model_dump()
    assert (shown["object"], shown["job_id"], len(shown["events"])) == ("job.timeline", "job_1", 7)
    assert shown["events"][1] == {
        "kind": "started",
        "at": 1_800_000_001.5,
        "epoch": 1,
        "detail": {"attempt": 1, "worker": "w1", "engine": "vllm"},
    }
    first, second = shown["attempts"]
    assert first == {
        "epoch": 1,
        "attempt": 1,
        "worker": "w1",
        "engine": "vllm",
        "started_at": 1_800_000_001.5,
        "ended_at": 1_800_000_003.0,
        "outcome": "lease_expired",
        "first_token_ms": 1.235,
    }
    assert second == dict.fromkeys(first) | {"epoch": 2, "started_at": 1_800_000_004.0}


async def sent(*events: Event | None, logprobs: bool = False) -> list[bytes]:
    """Return what the native stream sends for these events."""

    async def follow(*_: object) -> AsyncGenerator[Event | None]:
        for one in events:
            yield one

    async def get(*_: object) -> Job:
        return replace(JOB, state=JobState.RUNNING, payload={})

    async def enter(_: object) -> None: ...

    settings = SimpleNamespace(stream_ping_s=0.0)
    streams: Any = SimpleNamespace(
        reader=SimpleNamespace(get=get),
        streams=SimpleNamespace(enter=enter),
        settings=settings,
        metrics=SimpleNamespace(streams_open=SimpleNamespace(track_inprogress=None)),
    )
    request: Any = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace.producer_api.jobs.stream_routes.follow", follow)
        made = await stream_events(request, streams, Principal("acme", "key_1", frozenset()), "job_1", "1-0", "9-9")
        assert isinstance(made, EventStream)
        assert (made.headers["x-job-id"], made.headers["x-model-version"]) == ("job_1", "3")
        return [chunk async for chunk in made.chunks]


async def test_the_native_stream_has_the_fields_of_each_event() -> None:
    place = StreamCursor(1, 2)

    def step(kind: str, **detail: Any) -> StepHappened:
        return StepHappened(replace(place, steps=4), JobEvent(kind, 0, START, {"step": "a", "job": "job_2"} | detail))

    end = ChoiceEnd("stop", 1, 2)
    found = await sent(
        Queued(StreamCursor(), JOB),
        Started(StreamCursor(1, 0), 1),
        TextPiece(place, "a"),
        TextPiece(place, "b", mark=ChoiceMark(1)),
        TextPiece(place, "", mark=ChoiceMark(0, end)),
        Restarted(place, 2, 1, "a"),
        Restarted(place, 2, 1, "a", choices={0: KeptText("a"), 2: KeptText("c")}),
        step("step_started", attempt=2),
        step("step_started"),
        step("step_finished", state="failed", usage={"a": 1}, code="x"),
        step("step_finished", state="succeeded"),
        step("approval_requested", approval="apr_1", tool="weather"),
        step("approval_decided", approval="apr_1", tool="weather", state="approved"),
        None,
    )
    of_step = '"name":"a","job_id":"job_2"'
    assert [one.decode() for one in found] == [
        'id: 0-0\nevent: job.queued\ndata: {"id":"job_1","created_at":1800000000}\n\n',
        'id: 1-0\nevent: job.started\ndata: {"attempt":1}\n\n',
        'id: 1-2\nevent: job.delta\ndata: {"text":"a"}\n\n',
        'id: 1-2\nevent: job.delta\ndata: {"text":"b","choice":1}\n\n',
        'id: 1-2\nevent: job.delta\ndata: {"text":"","choice":0,"finish_reason":"stop"}\n\n',
        'id: 1-2\nevent: job.restarted\ndata: {"attempt":2,"kept":1,"text":"a"}\n\n',
        'id: 1-2\nevent: job.restarted\ndata: {"attempt":2,"kept":1,"text":"a","choices":{"0":"a","2":"c"}}\n\n',
        f'id: 1-2.4\nevent: step.started\ndata: {{{of_step},"attempt":2}}\n\n',
        f'id: 1-2.4\nevent: step.started\ndata: {{{of_step},"attempt":1}}\n\n',
        f'id: 1-2.4\nevent: step.finished\ndata: {{{of_step},"state":"failed","usage":{{"a":1}},"code":"x"}}\n\n',
        f'id: 1-2.4\nevent: step.finished\ndata: {{{of_step},"state":"succeeded","usage":null}}\n\n',
        f'id: 1-2.4\nevent: approval.requested\ndata: {{{of_step},"approval_id":"apr_1","tool":"weather"}}\n\n',
        f'id: 1-2.4\nevent: approval.decided\ndata: {{{of_step},"approval_id":"apr_1","tool":"weather",'
        '"state":"approved"}\n\n',
        ": ping\n\n",
    ]
    (ended,) = await sent(Ended(place, JOB))
    assert ended.startswith(b'id: 1-2\nevent: job.succeeded\ndata: {"id":"job_1","object":"job"')
