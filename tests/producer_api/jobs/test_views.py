"""What the native API shows of jobs, queues, hosts, models and rollouts: whole objects, field by field. No services."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from producer_api.jobs.approval_views import approval_list
from producer_api.jobs.host_views import host_object
from producer_api.jobs.job_views import body_object, job_list, job_object, timeline
from producer_api.jobs.model_views import (
    anthropic_model,
    anthropic_models,
    model_objects,
    reasoning_abilities,
)
from producer_api.jobs.queue_views import queue_object
from producer_api.jobs.rollout_views import RolloutRequest, new_rollout, rollout_object, rollout_summary
from producer_api.jobs.stream_routes import stream_events
from producer_api.jobs.version_registration import VersionRequest, new_version
from producer_api.server.sse import EventStream
from producer_api.streaming.job_events import (
    Ended,
    Event,
    KeptText,
    Queued,
    Restarted,
    Started,
    StepHappened,
    TextPiece,
)
from store.calls.approvals import Approval, ApprovalState
from store.errors import Conflict, Gone, InvalidRequest
from store.hosts.host_reports import HostReport
from store.jobs.jobs import Job, JobEvent
from store.payloads.job_payload import ServiceClass
from store.payloads.reasoning import ReasoningEffort
from store.registry.engine_spec import EngineKind, EngineSpec
from store.registry.models import ModelSummary, ModelVersion
from store.rollouts.changes import NewRollout
from store.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, RolloutState, Step, StickyKey
from store.scheduling.backlog import Load, QueuePosition
from store.scheduling.queues import QueueView
from store.scheduling.scale_decisions import StoredDecision
from store.scheduling.service_rate import Rate
from store.schema.job_states import JobState
from store.streams.choices import ChoiceEnd, ChoiceMark
from store.streams.stream_log import StreamCursor
from store.tenants.api_keys import Principal

START = datetime.fromtimestamp(1_800_000_000, UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


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
        with pytest.raises(Gone, match=r"^the input of job job_1 is no longer kept$"):
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
        patch.setattr("producer_api.jobs.stream_routes.follow", follow)
        made = await stream_events(request, streams, Principal("acme", "key_1", frozenset()), "job_1", "1-0", "9-9")
        assert isinstance(made, EventStream)
        assert (made.headers["x-job-id"], made.headers["x-model-version"]) == ("job_1", "3")
        return [chunk async for chunk in made._chunks]


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


def test_a_queue_is_shown_whole() -> None:
    queue = QueueView(
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
    host = HostReport.model_validate(
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
    shown = queue_object(queue, share="own", hosts=[host]).model_dump(mode="json")
    assert shown == {
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
    served = queue_object(replace(queue, workers=1, rate=None, scaling=None), share="all", hosts=[host])
    assert (served.host, served.rate, served.scaling) == (None, None, None)
    assert host_object(host).model_dump(mode="json") == {
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


SUMMARY = ModelSummary(
    name="tiny",
    task="generate",
    created_at=at(0.9),
    aliases={"stable": 1, "default": 2, "old": 9},
    versions=[2, 1],
    engines={2: "vllm"},
    bases={1: "base@4"},
    context_windows={1: 512, 2: 1024, 9: 8},
)


def test_a_model_is_listed_by_name_alias_and_version() -> None:
    found = model_objects(SUMMARY)
    versions = {"tiny": 2, "tiny@default": 2, "tiny@stable": 1, "tiny@2": 2, "tiny@1": 1}
    assert {one.id: one.version for one in found} == versions
    assert [one.id for one in found] == [*versions]
    assert found[2].model_dump() == {
        "id": "tiny@stable",
        "object": "model",
        "created": 1_800_000_000,
        "owned_by": "headrace",
        "task": "generate",
        "version": 1,
        "aliases": SUMMARY.aliases,
        "versions": [2, 1],
        "root": "tiny",
        "parent": "base@4",
        "max_model_len": 512,
        "context_length": 512,
        "engine": "native",
    }
    assert (found[0].engine, found[0].parent, found[0].max_model_len) == ("vllm", None, 1024)
    assert [one.id for one in model_objects(replace(SUMMARY, aliases={}))] == ["tiny@2", "tiny@1"]


@pytest.mark.parametrize(
    ("limit", "after", "before", "ids", "has_more"),
    [
        (2, None, None, ["tiny", "tiny@default"], True),
        (5, None, None, ["tiny", "tiny@default", "tiny@stable", "tiny@2", "tiny@1"], False),
        (2, "tiny@default", None, ["tiny@stable", "tiny@2"], True),
        (2, "tiny@stable", None, ["tiny@2", "tiny@1"], False),
        (2, None, "tiny@2", ["tiny@default", "tiny@stable"], True),
        (3, None, "tiny@2", ["tiny", "tiny@default", "tiny@stable"], False),
        (2, "none", None, [], False),
        (2, None, "none", [], False),
        (2, None, "tiny", [], False),
    ],
)
def test_anthropic_s_pages_go_on_after_and_before_an_id(
    limit: int, after: str | None, before: str | None, ids: list[str], has_more: bool
) -> None:
    page = anthropic_models(model_objects(SUMMARY), limit, after, before)
    assert ([one.id for one in page.data], page.has_more) == (ids, has_more)
    assert (page.first_id, page.last_id) == ((ids[0], ids[-1]) if ids else (None, None))


def test_a_model_in_anthropic_s_format() -> None:
    assert anthropic_model(model_objects(SUMMARY)[0]).model_dump() == {
        "type": "model",
        "id": "tiny",
        "display_name": "tiny",
        "created_at": "2027-01-15T08:00:00Z",
        "lifecycle": "active",
    }
    assert reasoning_abilities(None) is None
    support: Any = SimpleNamespace(is_default=True, efforts=(ReasoningEffort.LOW,), levels=(ReasoningEffort.HIGH,))
    abilities = reasoning_abilities(support)
    assert abilities is not None
    assert abilities.model_dump(mode="json") == {"default": True, "efforts": ["low"], "levels": ["high"]}


ROLLOUT = Rollout(
    id="rollout_1",
    model="tiny",
    kind=RolloutKind.MODEL,
    alias="stable",
    stable_version=1,
    candidate_version=2,
    mode=RolloutMode.CANARY,
    sticky_key=StickyKey.TENANT,
    steps=(Step(1.0, 600.0, 0), Step(50.0, 0.0, 5)),
    bounds={},
    state=RolloutState.RUNNING,
    current_step=1,
    step_since=at(1),
    started_at=at(2),
    started_by="key_1",
    paused_at=None,
    ended_at=at(3),
    reason="why",
    evidence={},
    revision=4,
)


def test_a_rollout_is_shown_whole() -> None:
    shown = rollout_summary(ROLLOUT).model_dump(mode="json")
    warning = shown.pop("warning")
    assert warning.startswith("with the sticky key `tenant` longer or shorter answers are practically never found")
    assert shown.pop("bounds").keys() == RolloutRequest.model_fields["bounds"].default_factory().model_dump().keys()  # type: ignore[misc, call-arg, union-attr] # the bounds
    assert shown == {
        "id": "rollout_1",
        "object": "rollout",
        "model": "tiny",
        "kind": "model",
        "alias": "stable",
        "stable_version": 1,
        "candidate_version": 2,
        "mode": "canary",
        "sticky_key": "tenant",
        "steps": [
            {"percent": 1.0, "hold_s": 600.0, "min_jobs": 0},
            {"percent": 50.0, "hold_s": 0.0, "min_jobs": 5},
        ],
        "state": "running",
        "current_step": 1,
        "percent": 50.0,
        "step_since": 1_800_000_001,
        "started_at": 1_800_000_002,
        "started_by": "key_1",
        "ended_at": 1_800_000_003,
        "reason": "why",
        "revision": 4,
    }
    for other in (replace(ROLLOUT, mode=RolloutMode.SHADOW), replace(ROLLOUT, sticky_key=StickyKey.USER)):
        assert rollout_summary(other).warning is None
    check = {"name": "errors", "stable": 0.1, "candidate": 0.2, "bound": 0.3, "num_pairs": 4, "log_e": 0.5}
    check |= {"needed": 2.0, "decision": "good", "text": "fine"}
    judged = rollout_object(replace(ROLLOUT, evidence={"checks": [check], "at": 7}))
    assert ([one.model_dump() for one in judged.checks], judged.judged_at) == ([check], 7)
    assert (rollout_object(ROLLOUT).checks, rollout_object(ROLLOUT).judged_at) == ([], None)


def test_a_rollout_is_started_on_the_terms_of_the_body() -> None:
    step = {"percent": 1, "hold_s": 600, "min_jobs": 7}
    body = RolloutRequest.model_validate(
        {"model": "tiny", "version": 3, "steps": [step], "mode": "shadow", "force": True}
    )
    made = new_rollout(body, model="tiny", alias="stable", sticky_key=StickyKey.JOB, require_worker=True)
    assert made == NewRollout(
        model="tiny",
        candidate=3,
        steps=[Step(1.0, 600.0, 7)],
        alias="stable",
        mode=RolloutMode.SHADOW,
        sticky_key=StickyKey.JOB,
        bounds={},
        force=True,
        require_worker=True,
    )
    defaults = RolloutRequest.model_validate({"model": "tiny", "version": 3, "steps": [{"percent": 1}]})
    assert (defaults.alias, defaults.sticky_key, defaults.mode, defaults.force) == ("default", "user", "canary", False)
    assert defaults.require_worker is None


SOURCE = ModelVersion(
    "tiny", 1, "generate", "torch", "/models", "0" * 64, "float32", 512, {"tokenizer.json": "1"}, START, None
)
SERVER = {"kind": "vllm", "url": "http://vllm:8000"}
OWN = {
    "model": "tiny",
    "runner": "torch",
    "source": "/models",
    "digest": "0" * 64,
    "context_window": 512,
    "kept_files": {"tokenizer.json": "1"},
}


def body(**given: Any) -> VersionRequest:
    return VersionRequest.model_validate(given)


def test_a_version_has_the_files_of_another() -> None:
    files = {"files_of": "tiny@1"}
    made = new_version("tiny", body(**files, dtype="int8"), SOURCE)
    assert made == OWN | {"dtype": "int8", "golden": [], "quantized_from": "tiny@1"}
    assert new_version("other", body(**files), SOURCE) == OWN | {
        "model": "other",
        "dtype": "auto",
        "golden": [],
        "quantized_from": None,
    }
    shared = replace(SOURCE, version=5, base_model="tiny", base_version=4)
    assert new_version("tiny", body(**files, dtype="int8"), shared)["quantized_from"] == "tiny@4"
    alone = OWN | {"dtype": "float32", "engine": SOURCE.engine, "quantized_from": "tiny@9"}
    source = replace(SOURCE, quantized_from="tiny@9")
    assert new_version("tiny", body(**files, prompt=None), source) == alone
    for differs in ({"dtype": "auto"}, {"golden": []}):
        assert "golden" in new_version("tiny", body(**files, prompt=None, **differs), source)
    assert "golden" in new_version("other", body(**files, prompt=None), source)


def test_a_version_is_run_by_a_server() -> None:
    made = new_version("tiny", body(files_of="tiny@1", engine=SERVER), SOURCE)
    digest = made.pop("digest")
    engine = EngineSpec(kind=EngineKind.VLLM, url="http://vllm:8000", served_model="tiny")
    served = OWN | {"runner": "vllm", "source": "http://vllm:8000", "dtype": "auto", "engine": engine}
    assert made == {name: value for name, value in served.items() if name != "digest"}
    assert digest != SOURCE.digest
    named = new_version("tiny", body(files_of="tiny@1", engine=SERVER | {"served_model": "up"}), SOURCE)
    assert named["engine"].served_model == "up"
    chat = new_version("chat", body(engine=SERVER | {"kind": "openai", "context_window": 64}), None)
    assert (chat["context_window"], chat["kept_files"], chat["runner"]) == (64, {}, "openai")
    smaller = new_version("tiny", body(files_of="tiny@1", engine=SERVER | {"context_window": 64}), SOURCE)
    assert smaller["context_window"] == 64


NOTHING = (
    "give files_of, a version whose files the new one has, or engine, a server; a folder is registered on its machine: "
    "`headrace register NAME FOLDER`"
)


@pytest.mark.parametrize(
    ("given", "source", "expected"),
    [
        ({}, None, (InvalidRequest, NOTHING, "files_of")),
        (
            {"prompt": {"id": "p"}},
            replace(SOURCE, task="embed"),
            (InvalidRequest, "only a model that generates text has a default template", "prompt"),
        ),
        (
            {"golden": [{"prompt": "a", "tokens": [1]}]},
            replace(SOURCE, task="embed"),
            (InvalidRequest, "only a model that generates text has golden answers", "golden"),
        ),
        (
            {"prompt": None},
            replace(SOURCE, base_model="other", base_version=1),
            (Conflict, "files_of is a LoRA adapter, which has no default template", "files_of"),
        ),
        *(
            (
                {},
                replace(SOURCE, **changes),
                (
                    Conflict,
                    "files_of names no version with weights of its own that Headrace's engine runs",
                    "files_of",
                ),
            )
            for changes in (
                {"runner": "fake"},
                {"engine": EngineSpec(kind=EngineKind.VLLM, url="http://vllm:8000", served_model="x")},
                {"base_model": "other", "base_version": 1},
            )
        ),
        *(
            (
                {"engine": SERVER} | changes,
                SOURCE,
                (
                    InvalidRequest,
                    "the server decides its number format and its answers: leave out dtype and golden",
                    None,
                ),
            )
            for changes in ({"dtype": "int8"}, {"golden": [{"prompt": "a", "tokens": [1]}]})
        ),
        (
            {"engine": SERVER},
            replace(SOURCE, files={}),
            (InvalidRequest, "give files_of, a version that has the model's tokenizer", "files_of"),
        ),
        (
            {"engine": SERVER | {"kind": "openai"}},
            None,
            (InvalidRequest, "give engine.context_window, the tokens that the server takes", "engine"),
        ),
    ],
)
def test_a_version_that_cannot_be_made_is_refused(
    given: dict[str, Any], source: ModelVersion | None, expected: Any
) -> None:
    with pytest.raises((InvalidRequest, Conflict)) as caught:
        new_version("tiny", body(**given), source)
    assert (type(caught.value), caught.value.message, caught.value.param) == expected
