"""Cancels, replays, waits and conditions of the native API, without services: each notice and its time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from starlette.requests import Request

from headrace.producer_api.jobs import cancel as cancels
from headrace.producer_api.jobs import job_routes, replay, version_routes
from headrace.producer_api.jobs.cancel import abandon, announce_cancelled, cancel
from headrace.producer_api.jobs.replay import ReplayedJob, replay_many
from headrace.producer_api.streaming.job_events import has_everything, logprob_formatter, wait_until_ended
from headrace.store.errors import Conflict, Forbidden, HeadraceError, InvalidRequest, NotFound, RateLimited, Unavailable
from headrace.store.jobs.jobs import Accepted, Idempotency, Job, NewJob
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.versions import ANY
from headrace.store.schema.job_states import JobState
from headrace.store.schema.version_states import VersionState
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import Frame, StreamCursor
from headrace.store.tenants.api_keys import Principal
from headrace.store.tenants.tenant_limits import RequestLimits
from headrace.store.tracing.tracing import OFF
from tests.refusals import Naming
from tests.stand_ins import stand_in

START = datetime(2026, 11, 29, tzinfo=UTC)
PRINCIPAL = Principal("acme", "key_1", frozenset())
VERSION = ModelVersion("tiny", 3, "generate", "fake", "fake:tiny", "0" * 64, "float32", 512, {}, START, None)
HELD = RequestLimits()


def job(id_: str = "job_1", state: JobState = JobState.RUNNING, **fields: Any) -> Job:
    names = dict.fromkeys(Job.__slots__)
    given = {
        "id": id_,
        "tenant_id": "acme",
        "task": "generate",
        "state": state,
        "model": "tiny",
        "model_version": 3,
        "queue": "tiny@3",
        "class_rank": 1,
        "priority": 4,
        "payload": {"input": {"prompt": "hi"}, "sampling": {"max_tokens": 7}},
        "input_tokens": 5,
        "metadata": {"k": "v"},
        "webhook": {"url": "https://x/"},
        "epoch": 1,
        "attempt": 1,
        "max_attempts": 6,
        "created_at": START,
        "deadline_at": START + timedelta(seconds=90),
        "num_deltas": 0,
    }
    return Job(**names | given | fields)


# Cancels.


class Told(SimpleNamespace):
    """A runtime that notes the workers that get a cancel."""

    def __init__(self, is_away: bool = False, fails: bool = False) -> None:
        self.told: list[Any] = []
        self.draining = asyncio.Event()

        def nudge(ids: list[str]) -> None:
            if fails:
                raise Unavailable("away")
            self.told.append([*ids])

        super().__init__(db=None, redis=None, frames=SimpleNamespace(nudge=nudge))
        self.redis_breaker = SimpleNamespace(is_away=is_away, failed=lambda: self.told.append("failed"))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[Told], None]:
    """Let a runtime note the jobs whose workers get a notice."""

    def note(runtime: Told) -> None:
        monkeypatch.setattr(cancels, "publish_cancel", lambda _, job_id: runtime.told.append(job_id))

    return note


def test_workers_and_streams_are_told_of_cancels(published: Callable[[Told], None]) -> None:
    cases: list[tuple[Any, list[str], list[str], list[Any]]] = [
        (Told(), ["a", "b"], ["c"], [["c"], "a", "b"]),
        (Told(), ["a"], [], ["a"]),
        (Told(), [], ["c"], [["c"]]),
        (Told(is_away=True), ["a"], ["c"], []),
        (Told(fails=True), ["a"], ["c"], ["failed"]),
    ]
    for runtime, running, ended, told in cases:
        published(runtime)
        announce_cancelled(runtime, running, ended)
        assert runtime.told == told


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (job(state=JobState.RUNNING), ["job_1"]),
        (job(state=JobState.CANCELLED), [["job_1"]]),
        (job(state=JobState.CANCELLED, task="flow"), [["job_1", "s3"], "s1"]),
        (job(state=JobState.RUNNING, task="flow"), [["s3"], "s1"]),
    ],
)
def test_a_cancel_reaches_the_steps_that_run_and_those_that_ended(
    published: Callable[[Told], None], monkeypatch: pytest.MonkeyPatch, found: Job, told: list[Any]
) -> None:
    steps = [job("s1"), job("s2", JobState.QUEUED), job("s3", JobState.CANCELLED)]
    asked: list[Any] = []

    def request_cancel(_db: object, tenant_id: str, job_id: str) -> Job:
        asked.append((tenant_id, job_id))
        return found

    store = SimpleNamespace(request_cancel=request_cancel, list_steps=lambda _, tenant, job_id: steps)
    monkeypatch.setattr(cancels, "jobs", store)
    runtime: Any = Told()
    published(runtime)
    assert cancel(runtime, "acme", "job_1") is found
    assert (runtime.told, asked) == (told, [("acme", "job_1")])


async def test_a_client_that_is_gone_leaves_its_job(
    published: Callable[[Told], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Any] = [
        job(state=JobState.CANCELLED),
        None,
        Conflict("ended"),
        NotFound("gone"),
        Unavailable("away"),
    ]

    def leave(_db: object, tenant_id: str, job_id: str) -> Job | None:
        assert (tenant_id, job_id) == ("acme", "job_1")
        if isinstance(outcome := outcomes.pop(0), HeadraceError):
            raise outcome
        return outcome

    monkeypatch.setattr(cancels, "jobs", SimpleNamespace(leave=leave))
    runtime: Any = Told()
    published(runtime)
    runtime.draining.set()
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            await abandon(runtime, job(), after_s=60.0)  # a drain does not wait
    assert (runtime.told, outcomes) == ([["job_1"]], [])
    assert [(line["event"], line["job_id"], line["reason"]) for line in logs] == [
        ("abandoned_job_not_cancelled", "job_1", "away")
    ]


# Replays.


class Replaying(SimpleNamespace):
    """A runtime with dead letters that notes replays, spends and stored jobs."""

    def __init__(self, patch: pytest.MonkeyPatch, dead: Job, steps: list[Job] | None = None) -> None:
        self.spent: list[Any] = []
        self.stored: list[NewJob] = []
        self.noted: list[Any] = []
        self.outcome: Any = None
        self.replayed_as: str | None = None
        self.version: Any = VERSION

        def resolve(name: str) -> ModelVersion:
            if isinstance(self.version, Exception):
                raise self.version
            return self.version

        def accept(job: NewJob, _store: object) -> Any:
            self.stored.append(job)
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome or Accepted(job.id, replayed=False, announced=False)

        limits = SimpleNamespace(
            spend_tokens=lambda principal, number: self.spent.append(number),
            spend_request=lambda principal: self.spent.append("request"),
            held_by=lambda principal: HELD,
        )
        super().__init__(
            db=None,
            catalog=SimpleNamespace(resolve=resolve),
            rate_limits=limits,
            queue_limits=SimpleNamespace(accept=accept),
            enqueuer=SimpleNamespace(accept=None),
            metrics=ApiMetrics(),
            tracing=OFF,
            settings=Settings(database_url="postgresql://x/y", redis_url="redis://x", default_deadline_s=77.0),
        )
        letters = SimpleNamespace(
            get_dead_letter=lambda db, tenant, job_id: SimpleNamespace(replayed_as=self.replayed_as),
            note_replay=lambda db, *given, **named: self.noted.append((*given, named)),
        )
        store = SimpleNamespace(get=lambda db, tenant, job_id: dead, list_steps=lambda db, tenant, job_id: steps or [])
        patch.setattr(replay, "dead_letters", letters)
        patch.setattr(replay, "jobs", store)


def test_a_replay_has_new_attempts_and_the_time_of_the_first_job(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = Replaying(monkeypatch, job(state=JobState.FAILED))
    done = replay.replay(runtime, PRINCIPAL, "job_1")
    (made,) = runtime.stored
    assert done == ReplayedJob("job_1", made.id, replayed=False)
    expected = {
        "tenant_id": "acme",
        "task": "generate",
        "model": "tiny",
        "model_version": 3,
        "queue": "tiny@3",
        "service_class": "standard",
        "priority": 4,
        "payload": {"input": {"prompt": "hi"}, "sampling": {"max_tokens": 7}},
        "input_tokens": 5,
        "cost_tokens": 12,
        "metadata": {"k": "v"},
        "webhook": {"url": "https://x/"},
        "max_attempts": 6,
        "deadline_s": 90.0,
        "idempotency": Idempotency("POST /v1/dead_letters/{job_id}/replay", "job_1", "replay"),
        "announce": False,
        "api_key_id": "key_1",
        "limits": HELD,
        "traceparent": None,
        "steps": (),
    }
    assert {name: getattr(made, name) for name in expected} == expected
    assert (runtime.spent, runtime.noted) == ([5], [("acme", "job_1", made.id, {"actor": "key_1"})])
    labels = {"model": "tiny", "version": "3", "task": "generate", "class": "standard", "replayed": "false"}
    assert runtime.metrics.registry.get_sample_value("headrace_jobs_accepted_total", labels) == 1
    plain: Any = Replaying(monkeypatch, job(state=JobState.FAILED, deadline_at=None, payload={}))
    replay.replay(plain, PRINCIPAL, "job_1")
    assert (plain.stored[0].deadline_s, plain.stored[0].cost_tokens) == (77.0, 5)


def test_a_flow_is_replayed_with_the_steps_that_it_was_accepted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    body = [{"name": "a", "needs": [], "stream": False}, {"name": "b", "needs": ["a"], "stream": False}]
    dead = job(state=JobState.FAILED, task="flow", payload={"steps": body}, answer_id="s9", queue="cache")
    a, b = job("s1", step="a", needs=[]), job("s2", step="b", needs=["a"], input_tokens=8, queue="cache")
    runtime: Any = Replaying(monkeypatch, dead, [a, b, job("s9", step="b:1", input_tokens=99)])
    replay.replay(runtime, PRINCIPAL, "job_1")
    (made,) = runtime.stored
    first, second = made.steps
    assert (runtime.spent, made.answer_id) == ([13], second.id), "the answer is the accepted step before those added"
    assert (first.queue, first.needs, second.queue, second.needs) == ("tiny@3", (), "cache", ("a",))
    assert [(one.step, one.parent_id, one.idempotency, one.metadata) for one in made.steps] == [
        ("a", made.id, None, {}),
        ("b", made.id, None, {}),
    ]
    assert [(one.input_tokens, one.cost_tokens, one.webhook) for one in made.steps] == [
        (5, 12, a.webhook),
        (8, 15, b.webhook),
    ]
    streamed = [body[0] | {"stream": True}, body[1] | {"needs": []}]
    again: Any = Replaying(monkeypatch, replace(dead, payload={"steps": streamed}), [a, b])
    replay.replay(again, PRINCIPAL, "job_1")
    assert again.stored[0].answer_id == again.stored[0].steps[0].id
    streams_last = [body[0], body[1] | {"stream": True, "needs": []}]
    other: Any = Replaying(monkeypatch, replace(dead, payload={"steps": streams_last}), [a, b])
    replay.replay(other, PRINCIPAL, "job_1")
    assert other.stored[0].answer_id == other.stored[0].steps[1].id
    named: Any = Replaying(monkeypatch, replace(dead, payload={"steps": streamed}, answer_id="s2"), [a, b])
    replay.replay(named, PRINCIPAL, "job_1")
    assert named.stored[0].answer_id == named.stored[0].steps[1].id


def test_what_cannot_be_replayed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = Replaying(monkeypatch, job(state=JobState.FAILED))
    runtime.version = NotFound("no model tiny@3")
    with pytest.raises(Conflict, match="tiny@3"):
        replay.replay(runtime, PRINCIPAL, "job_1")
    runtime.version = replace(VERSION, state=VersionState.REJECTED, state_reason="damaged")
    with pytest.raises(Conflict) as caught:
        replay.replay(runtime, PRINCIPAL, "job_1")
    assert caught.value.code == "model_rejected"
    assert all(named in caught.value.message for named in ("tiny@3", "damaged"))
    with pytest.raises(Forbidden):
        replay.replay(runtime, replace(PRINCIPAL, models=frozenset({"other"})), "job_1")
    runtime.replayed_as = "job_9"
    assert replay.replay(runtime, PRINCIPAL, "job_1") == ReplayedJob("job_1", "job_9", replayed=True)
    assert (runtime.spent, runtime.stored, runtime.noted) == ([], [], [])
    runtime.replayed_as, runtime.version, runtime.outcome = None, VERSION, RateLimited("full", retry_after_s=1)
    with pytest.raises(RateLimited):
        replay.replay(runtime, PRINCIPAL, "job_1")
    assert runtime.noted == [], "it was not stored"


@pytest.mark.parametrize(
    ("outcomes", "limit", "expected"),
    [
        (["a", "b"], 2, (["a", "b"], False)),
        (["a", "b", "c"], 2, (["a", "b"], True)),
        (["a", Conflict("gone"), "c"], 3, (["a", "c"], False)),
        (["a", RateLimited("full", retry_after_s=1), "c"], 3, (["a"], True)),
        (["a", Unavailable("away"), "c"], 3, (["a"], True)),
        ([RateLimited("full", retry_after_s=1)], 3, None),
    ],
)
def test_many_are_replayed_until_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[Any], limit: int, expected: Any
) -> None:
    asked: dict[str, Any] = {}
    spent: list[Principal] = []

    def listed(_db: object, tenant_id: str, **given: Any) -> list[Any]:
        asked.update(given, tenant_id=tenant_id)
        return [SimpleNamespace(job_id=str(number)) for number in range(len(outcomes))][: given["limit"]]

    def replayed(_runtime: object, _principal: Principal, job_id: str, *, trace: object) -> ReplayedJob:
        outcome = outcomes[int(job_id)]
        if isinstance(outcome, Exception):
            raise outcome
        return ReplayedJob(job_id, outcome, replayed=False)

    monkeypatch.setattr(replay, "dead_letters", SimpleNamespace(list_dead_letters=listed))
    monkeypatch.setattr(replay, "replay", replayed)
    runtime: Any = SimpleNamespace(db=None, rate_limits=SimpleNamespace(spend_request=spent.append))
    principal = replace(PRINCIPAL, models=frozenset({"tiny"}))
    if expected is None:
        with pytest.raises(RateLimited):
            replay_many(runtime, principal, queue=None, code=None, limit=limit)
        return
    done, has_more = replay_many(runtime, principal, queue="tiny@3", code="poison", limit=limit)
    assert ([one.job_id for one in done], has_more) == expected
    assert asked == {
        "tenant_id": "acme",
        "queue": "tiny@3",
        "code": "poison",
        "replayed": False,
        "models": frozenset({"tiny"}),
        "limit": limit + 1,
        "descending": False,
    }
    assert len(spent) <= limit - 1, "the first is the request itself"


# Waits.


class Rows:
    """The row of a job as each look finds it; the last one stays."""

    def __init__(self, *rows: Job) -> None:
        self.rows = list(rows)

    async def get(self, tenant_id: str, job_id: str) -> Job:
        assert (tenant_id, job_id) == ("acme", "job_1")
        return self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]


def waiting(rows: Rows, *frames: Frame | None, is_draining: bool = False) -> Any:
    followed: list[str] = []

    async def follow(job_id: str) -> AsyncGenerator[Frame | None]:
        followed.append(job_id)
        for frame in frames:
            yield frame
        await asyncio.Event().wait()

    draining = asyncio.Event()
    if is_draining:
        draining.set()
    return SimpleNamespace(reader=rows, hub=SimpleNamespace(follow=follow), draining=draining, followed=followed)


async def test_a_wait_ends_with_its_job_or_its_time_or_the_process() -> None:
    queued, ended = job(state=JobState.QUEUED), job(state=JobState.SUCCEEDED)
    text, end = Frame("job_1", 1, 1, "a"), Frame("job_1", 1, 2, None)
    runtime = waiting(Rows(queued, ended), text, None, end)
    assert await wait_until_ended(runtime, queued, 60.0) is ended
    assert runtime.followed == ["job_1"]
    untouched = waiting(Rows(queued))
    assert await wait_until_ended(untouched, ended, 60.0) is ended
    assert await wait_until_ended(untouched, queued, 0.0) is queued
    draining = waiting(Rows(queued), is_draining=True)
    assert (await wait_until_ended(draining, queued, 0.2), draining.followed) == (queued, [])
    running = job(state=JobState.RUNNING)
    assert await wait_until_ended(waiting(Rows(running)), queued, 0.0) is running, "the row as it is then"


@pytest.mark.parametrize(
    ("found", "after", "expected"),
    [
        (job(state=JobState.SUCCEEDED, epoch=2, num_deltas=3), StreamCursor(2, 4), True),
        (job(state=JobState.SUCCEEDED, epoch=2, num_deltas=3), StreamCursor(2, 3), False),
        (job(state=JobState.SUCCEEDED, epoch=2, num_deltas=3), StreamCursor(1, 4), False),
        (job(state=JobState.SUCCEEDED, epoch=2, num_deltas=3), None, False),
        (job(state=JobState.SUCCEEDED, epoch=2, num_deltas=0), StreamCursor(2, 1), False),
        (job(state=JobState.RUNNING, epoch=2, num_deltas=3), StreamCursor(2, 4), False),
    ],
)
def test_a_reader_has_everything_with_the_id_of_the_end(found: Job, after: StreamCursor | None, expected: bool) -> None:
    assert has_everything(found, after) is expected


async def test_logprobs_are_formatted_for_jobs_that_ask_for_them() -> None:
    nothing: Any = None
    assert await logprob_formatter(nothing, job()) is None
    assert await logprob_formatter(nothing, job(payload={})) is None


# Conditions and preferences.


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        (None, None),
        ("", None),
        ("respond-async", None),
        ("wait=5", 5.0),
        ("respond-async, WAIT=10 ", 10.0),
        ("wait=0", 0.0),
        ("wait=1, wait=2", 1.0),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=1234567", None),
        ("xwait=1", None),
    ],
)
async def test_a_caller_may_prefer_to_wait(prefer: str | None, expected: float | None) -> None:
    queued = job(state=JobState.QUEUED)
    waited: list[float] = []

    async def submit(*_: object) -> Any:
        return SimpleNamespace(job=queued, job_id="job_1", headers={"X-Cache": "miss"})

    async def try_enter(_: object) -> bool:
        return True

    async def wait(_runtime: object, found: Job, wait_s: float) -> Job:
        waited.append(wait_s)
        return found

    async def connected() -> Any:
        await asyncio.Event().wait()

    runtime: Any = SimpleNamespace(
        settings=SimpleNamespace(max_wait_s=1e9),
        submissions=SimpleNamespace(submit=submit),
        streams=SimpleNamespace(try_enter=try_enter),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_routes, "wait_until_ended", wait)
        nothing: Any = None
        answer = await job_routes.submitted(
            Request({"type": "http"}, connected), runtime, PRINCIPAL, nothing, nothing, prefer
        )
    told = {} if expected is None else {"preference-applied": f"wait={expected:g}"}
    fixed = {"content-type": "application/json", "content-length": str(len(answer.body))}
    assert waited == ([] if expected is None else [expected])
    assert (answer.status_code, dict(answer.headers)) == (
        202,
        fixed
        | told
        | {
            "x-cache": "miss",
            "location": "/v1/jobs/job_1",
            "x-job-id": "job_1",
            "x-model-version": "3",
            "retry-after": "1",
        },
    )


class Changing:
    """Notes the conditions under which an alias is changed."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def set_alias(self, _db: object, *given: Any, **named: Any) -> None:
        self.asked.append((*given, named))


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "expected"),
    [
        (None, None, ANY),
        ('"3"', None, 3),
        (" 3 ", None, 3),
        (None, " * ", 0),
        ("3", "*", ("If-None-Match", "If-Match")),
        ("0", None, ("version", "If-Match")),
        ("1234567890", None, ("version", "If-Match")),
        (None, '"3"', ("`*`", "If-None-Match")),
    ],
)
async def test_an_alias_is_set_on_a_condition(
    monkeypatch: pytest.MonkeyPatch, if_match: str | None, if_none_match: str | None, expected: Any
) -> None:
    changing, runtime = Changing(), stand_in(db=None)
    monkeypatch.setattr("headrace.producer_api.jobs.version_routes.versions.set_alias", changing.set_alias)
    body = version_routes.AliasRequest(version=2, force=True)

    async def ask() -> Any:
        return await version_routes.set_alias(body, runtime, PRINCIPAL, "tiny", "stable", if_match, if_none_match)

    if isinstance(expected, tuple):
        with pytest.raises(InvalidRequest) as caught:
            await ask()
        assert (caught.value.message, caught.value.param) == (Naming(expected[0]), expected[1])
        return
    answer = await ask()
    named = {"expected": expected, "force": True, "tenant_id": "acme"}
    assert (changing.asked, answer.headers["etag"]) == ([("tiny", "stable", 2, "key_1", named)], '"2"')
