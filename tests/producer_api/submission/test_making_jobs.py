"""The jobs that requests make, field by field, and how they are stored and announced. No services."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.features.flows.flow_jobs import FlowSubmissions
from headrace.features.responses.new_response import NewResponse
from headrace.producer_api.access.rate_limits import begin_headers
from headrace.producer_api.submission import enqueue
from headrace.producer_api.submission.draft_job import Origin
from headrace.producer_api.submission.enqueue import Enqueuer, RequestDigests
from headrace.producer_api.submission.prompt_preparation import PromptTemplates
from headrace.producer_api.submission.submit import Submissions
from headrace.producer_api.submission.text_guard import TextGuards
from headrace.prompts.tasks.task_inputs import Prepared
from headrace.store.digests import Digests
from headrace.store.errors import Conflict, Forbidden, InvalidRequest, NotFound, NoWorker, Unavailable
from headrace.store.jobs.jobs import Accepted, NewJob
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.redis.celery_queue import Hint
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.version_states import VersionState
from headrace.store.settings import Settings
from headrace.store.tasks.flow import FlowRequest
from headrace.store.tasks.generate import GeneratePayload, GenerateRequest
from headrace.store.tenants.api_keys import Principal
from headrace.store.tenants.tenant_limits import RequestLimits
from headrace.store.tracing.tracing import TraceContext
from tests.producer_api.submission.making import refused
from tests.refusals import Naming

AT = datetime(2026, 11, 29, tzinfo=UTC)
VERSION = ModelVersion("tiny", 3, "generate", "fake", "fake:tiny", "f00d", "float32", 512, {}, AT, None)
PRINCIPAL = Principal("acme", "key_1", frozenset())
HELD = RequestLimits()
TRACE = TraceContext("1" * 32, "2" * 16, True)
SETTINGS = Settings(database_url="postgresql://x/y", redis_url="redis://x").model_copy(
    update={"default_deadline_s": 77.0, "default_max_attempts": 9, "response_cache": "asked"}
)


class Parts(SimpleNamespace):
    """The parts of a submission, without services. A prompt has a token for each character; an answer has four."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(
            settings=SETTINGS,
            db=SimpleNamespace(seal=SimpleNamespace(is_on=False)),
            rate_limits=SimpleNamespace(held_by=lambda principal: HELD),
            catalog=SimpleNamespace(resolve=self.resolve, pinned=lambda name: self.resolve(name, is_pinned=True)),
            queue_limits=None,
            enqueuer=None,
            metrics=ApiMetrics(),
            guards=TextGuards(),
            templates=PromptTemplates(),
            digests=RequestDigests(Digests([b"key"])),
            live_processes=SimpleNamespace(
                is_unserved=lambda queue: queue in self.unserved, outlook=lambda queue: None
            ),
            preparation=self,
            tenant_threads=None,
        )
        self.unserved: set[str] = set()
        self.resolved: list[str] = []
        self.__dict__.update(changes)

    def resolve(self, name: str, *, is_pinned: bool = False) -> ModelVersion:
        self.resolved.append(f"{name} pinned" if is_pinned else name)
        if name == "rejected":
            return replace(VERSION, state=VersionState.REJECTED, state_reason="damaged")
        return VERSION

    def with_files(self, tenant_id: str, request: Any) -> Any:
        return request

    def check_modalities(self, request: Any, version: ModelVersion) -> None: ...

    def is_quick(self, request: Any, version: ModelVersion) -> bool:
        return True

    def prepare(self, request: GenerateRequest, version: ModelVersion, policy: object) -> Prepared:
        text = request.input.prompt or "".join(str(one.content) for one in request.input.messages or ())
        sampling = {"max_tokens": 4, "temperature": 0.0}
        payload = GeneratePayload.model_validate({"input": request.input.model_dump(), "sampling": sampling})
        return Prepared(payload, len(text), 4)


def request(**changes: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"model": "tiny", "input": {"prompt": "hello"}} | changes)


def submissions(parts: Any) -> Submissions:
    return Submissions(parts)


def shown(job: NewJob, *names: str) -> dict[str, Any]:
    return {name: getattr(job, name) for name in names}


LINE_AS_JOB = {
    "tenant_id": "acme",
    "task": "generate",
    "model": "tiny",
    "model_version": 3,
    "model_digest": "f00d",
    "queue": "tiny@3",
    "service_class": ServiceClass.BATCH,
    "priority": 1,
    "input_tokens": 5,
    "cost_tokens": 9,
    "metadata": {"k": "v"},
    "webhook": {"url": "https://example.com/"},
    "max_attempts": 2,
    "deadline_s": 1.5,
    "idempotency": None,
    "announce": False,
    "fingerprint": None,
    "api_key_id": "key_1",
    "project_id": "p",
    "user_id": "u",
    "is_stored": False,
    "traceparent": TRACE.header,
    "limits": HELD,
    "rollout_id": None,
    "fallback": None,
    "lookup": None,
}


def test_a_line_of_a_batch_is_a_job_with_all_that_it_asks_for() -> None:
    response = NewResponse(None, True, False, [], {})
    asked = request(
        priority=1,
        service_class="batch",
        deadline_ms=1500,
        max_attempts=2,
        user="u",
        metadata={"k": "v"},
        webhook={"url": "https://example.com/"},
    )
    job = submissions(Parts()).make_job(
        PRINCIPAL, asked, VERSION, project_id="p", response=response, is_stored=False, trace=TRACE
    )
    expected = LINE_AS_JOB | {"response": response}
    assert shown(job, *expected) == expected
    assert job.payload["input"] == {"prompt": "hello"}, "what is not set is left out"
    plain = submissions(Parts()).make_job(PRINCIPAL, request(), VERSION)
    assert shown(plain, "deadline_s", "max_attempts", "webhook", "traceparent", "project_id", "is_stored") == {
        "deadline_s": 77.0,
        "max_attempts": 9,
        "webhook": None,
        "traceparent": None,
        "project_id": None,
        "is_stored": None,
    }


def test_lines_that_cannot_be_jobs_are_refused() -> None:
    made = submissions(Parts())
    for field, value in (("retrieval", {"vector_store_ids": ["vs"]}), ("server_tools", {"names": ["a"]})):
        asked = request(input={"messages": [{"role": "user", "content": "x"}]}, **{field: value})
        assert refused(made.make_job, PRINCIPAL, asked, VERSION) == (InvalidRequest, Naming("batches"), field)
    asked = request(webhook={"url": "https://127.0.0.1/"})
    assert refused(made.make_job, PRINCIPAL, asked, VERSION)[2] == "webhook.url"
    rejected = replace(VERSION, state=VersionState.REJECTED, state_reason="damaged")
    assert refused(made.make_job, PRINCIPAL, request(), rejected)[0] is Conflict


def test_a_version_is_resolved_for_those_who_may_use_it() -> None:
    parts = Parts()
    made, limited = submissions(parts), replace(PRINCIPAL, models=frozenset({"other"}))
    assert made.version_of(PRINCIPAL, "tiny") is made.version_of(PRINCIPAL, "tiny@3", is_pinned=True) is VERSION
    assert parts.resolved == ["tiny", "tiny@3 pinned"]
    assert refused(made.version_of, limited, "tiny")[0] is Forbidden
    assert refused(made.count_tokens, limited, request())[0] is Forbidden
    assert refused(made.render, limited, request())[0] is Forbidden


def test_a_policy_is_that_of_the_model_or_of_every_model() -> None:
    asked: list[tuple[str, str]] = []

    def in_force(tenant_id: str, model: str) -> None:
        asked.append((tenant_id, model))

    def resolve(name: str) -> ModelVersion:
        if name == "gone":
            raise NotFound("no model")
        return VERSION

    parts = Parts(guards=SimpleNamespace(in_force=in_force), catalog=SimpleNamespace(resolve=resolve))
    for name in ("tiny@stable", "gone"):
        submissions(parts).guard_for(PRINCIPAL, name)
    assert asked == [("acme", "tiny"), ("acme", "")]


# Jobs with steps.


def flow(**changes: Any) -> FlowRequest:
    first = {"name": "first", "model": "tiny", "input": {"prompt": {"$from": "input.text"}}}
    second = {
        "name": "second",
        "model": "tiny",
        "input": {"prompt": {"$from": "first.output.text"}},
        "needs": ["first"],
    }
    return FlowRequest.model_validate({"input": {"text": "hello"}, "steps": [second, first]} | changes)


def origin(**changes: Any) -> Origin:
    given = {"route": "r", "idempotency_key": "k", "fingerprint": "f", "is_retry": False, "num_bytes": 1}
    return Origin(**given | changes)


def make(parts: Any, asked: FlowRequest, **named: Any) -> tuple[NewJob, list[Any]]:
    given: dict[str, Any] = {"origin": origin(), "response": None, "used": None}
    return FlowSubmissions(parts).make(PRINCIPAL, asked, **given | named)


def test_a_flow_is_a_job_with_its_steps_in_the_order_of_the_request() -> None:
    parts = Parts()
    made, prepared = make(parts, flow(user="u", metadata={"k": "v"}))
    second, first = made.steps
    assert [step.body.name for step in prepared] == ["first", "second"], "each comes after those that it needs"
    assert (first.step, second.step, made.answer_id) == ("first", "second", second.id)
    assert shown(made, "task", "queue", "user_id", "metadata", "limits", "rollout_id", "pipeline_version") == {
        "task": "flow",
        "queue": "cache",
        "user_id": "u",
        "metadata": {"k": "v"},
        "limits": HELD,
        "rollout_id": None,
        "pipeline_version": None,
    }
    assert made.idempotency == parts.digests.idempotency("r", "k", flow(user="u", metadata={"k": "v"}), None)
    assert made.fingerprint == parts.digests.fingerprints("f")[0]
    assert (first.input_tokens, first.cost_tokens, first.queue, first.needs) == (5, 9, "tiny@3", ())
    assert first.payload["input"] == {"prompt": "hello"}
    # The second has a mark of 18 characters, and the output of the first with at most four tokens.
    assert (second.input_tokens, second.cost_tokens, second.queue, second.needs) == (22, 26, "cache", ("first",))
    assert [*second.payload["references"].values()] == ["first.output.text"]
    assert [step["name"] for step in made.payload["steps"]] == ["second", "first"]
    assert made.payload["sampling"]["max_tokens"] == 4
    assert (first.idempotency, first.response, first.webhook) == (None, None, {"events": []})


def test_steps_keep_the_versions_that_are_given_and_others_are_resolved() -> None:
    parts = Parts()
    make(parts, flow(), models={"tiny": "tiny@3"})
    make(parts, flow())
    assert parts.resolved == ["tiny@3 pinned"] * 2 + ["tiny"] * 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "rejected"}, (Conflict, "damaged", "steps[0].model")),
        ({"sampling": {"max_tokens": 0}}, (InvalidRequest, "`echo`", "steps[0].sampling.max_tokens")),
        (
            {"input": {"prompt": {"$from": "input.gone"}}},
            (InvalidRequest, "`input.gone`", "steps[0]"),
        ),
    ],
)
def test_a_wrong_step_is_refused_with_its_place(changes: dict[str, Any], error: tuple[type, str, str]) -> None:
    asked = flow(steps=[{"name": "only", "model": "tiny", "input": {"prompt": "x"}} | changes])
    kind, named, param = error
    assert refused(make, Parts(), asked) == (kind, Naming(named), param)


def test_steps_that_no_worker_serves_are_refused_where_one_is_required() -> None:
    parts = Parts(settings=SETTINGS.model_copy(update={"require_worker": True}))
    make(parts, flow())
    parts.unserved = {"tiny@3"}
    assert refused(make, parts, flow()) == (NoWorker, Naming("tiny@3"), "steps[1].model")
    make(Parts(unserved={"tiny@3"}), flow())
    several = flow(
        steps=[{"name": f"s{n}", "model": "tiny", "input": {"prompt": "x"}, "stream": not n} for n in range(3)]
    )
    few = Parts(settings=SETTINGS.model_copy(update={"max_steps": 2}))
    kind, message, param = refused(make, few, several)
    assert (kind, "3 steps" in message, param) == (InvalidRequest, True, "steps")


class Threads:
    """Runs a call at once, and notes for whom."""

    def __init__(self) -> None:
        self.tenants: list[str] = []

    async def run(self, tenant_id: str, call: Any) -> Any:
        self.tenants.append(tenant_id)
        return call()


async def test_a_flow_is_stored_once_and_its_caller_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[NewJob] = []
    outcomes: list[Any] = []
    spent: list[int] = []

    def accept(job: NewJob, _store: object) -> Any:
        stored.append(job)
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    parts = Parts(
        tenant_threads=Threads(),
        queue_limits=SimpleNamespace(accept=accept),
        enqueuer=SimpleNamespace(accept=None),
        rate_limits=SimpleNamespace(
            held_by=lambda principal: HELD,
            spend_request=lambda principal: {"x-ratelimit-limit-requests": "1"},
            spend_tokens=lambda principal, number: spent.append(number) or {"x-ratelimit-limit-tokens": "2"},
        ),
        unserved={"tiny@3"},
    )
    flows: Any = FlowSubmissions(parts)
    noted = begin_headers()
    outcomes += [Accepted("job_1", replayed=False, announced=False)]
    receipt = await flows.submit(PRINCIPAL, flow(), origin())
    limits = {"x-ratelimit-limit-requests": "1", "x-ratelimit-limit-tokens": "2"}
    assert (receipt.job_id, receipt.replayed) == ("job_1", False)
    assert receipt.headers == limits | {"Headrace-Warning": Naming("tiny@3")} == noted
    assert (spent, parts.tenant_threads.tenants, len(stored)) == ([27], ["acme"], 1)
    outcomes += [Accepted("job_1", replayed=True, announced=False), Unavailable("away")]
    again = await flows.submit(PRINCIPAL, flow(), origin())
    assert again.headers == limits | {"Idempotent-Replayed": "true"}
    with pytest.raises(Unavailable):
        await flows.submit(PRINCIPAL, flow(), origin())
    read = parts.metrics.registry.get_sample_value
    labels = {"model": "tiny", "version": "3", "task": "flow", "class": "standard"}
    assert read("headrace_jobs_accepted_total", labels | {"replayed": "false"}) == 1
    assert read("headrace_jobs_accepted_total", labels | {"replayed": "true"}) == 1
    # A retry without a key finds the job of the first try, for ten minutes.
    asked: list[Any] = []
    monkeypatch.setattr(
        "headrace.features.flows.flow_jobs.jobs.find_duplicate",
        lambda db, *given: asked.append(given) or "job_9",
    )
    retry = await flows.submit(PRINCIPAL, flow(), origin(is_retry=True, idempotency_key=None))
    assert (retry.job_id, retry.replayed, retry.headers["Idempotent-Replayed"]) == ("job_9", True, "true")
    assert asked == [("acme", parts.digests.fingerprints("f"), 600.0)]
    outcomes += [Accepted("job_1", replayed=False, announced=False)] * 2
    await flows.submit(PRINCIPAL, flow(), origin(is_retry=True))
    await flows.submit(PRINCIPAL, flow(), origin(idempotency_key=None))
    assert len(asked) == 1


# How jobs are stored and announced.


class Announcing:
    """Two publishers: of depths, by queue, and of hints."""

    def __init__(self, **depths: int) -> None:
        self.depths, self.is_away = depths, False

    def depth(self, queue: str) -> int:
        if self.is_away:
            raise Unavailable("away")
        return self.depths.get(queue.partition("@")[0], 0)

    def close(self) -> None: ...


class Enqueueing:
    """An enqueuer without services; ``ahead``: the jobs that take the fast lane."""

    def __init__(self, patch: pytest.MonkeyPatch, *, ahead: Sequence[str] = (), is_away: bool = False, **depths: int):
        self.given: list[list[NewJob]] = []
        self.asked: list[Any] = []
        self.hints: list[Hint] = []
        self.depths = Announcing(**depths)
        self.breaker = SimpleNamespace(is_away=is_away, num_failed=0)
        self.breaker.failed = lambda: setattr(self.breaker, "num_failed", self.breaker.num_failed + 1)

        def accept(_db: object, jobs: Sequence[NewJob]) -> list[Accepted]:
            self.given.append([*jobs])
            return [
                Accepted(
                    job.id, False, job.announce, announced_steps=tuple(one.id for one in job.steps if one.announce)
                )
                for job in jobs
            ]

        def within(_db: object, candidates: Sequence[Any], _recent: object) -> set[str]:
            self.asked += candidates
            return {one.job_id for one in candidates if one.job_id in ahead}

        patch.setattr(enqueue, "jobs", SimpleNamespace(accept=accept))
        patch.setattr(enqueue, "within_share", within)
        patch.setattr(enqueue, "HintAnnouncer", lambda _: SimpleNamespace(announce=self.hints.append))
        no_service: Any = None
        depths, breaker = cast(Any, self.depths), cast(Any, self.breaker)
        self.enqueuer = Enqueuer(no_service, depths, no_service, breaker, ready_window=2)


def new_job(
    id_: str, queue: str = "tiny@1", service_class: ServiceClass = ServiceClass.STANDARD, **fields: Any
) -> NewJob:
    return NewJob(
        id=id_,
        tenant_id="acme",
        task="generate",
        model="tiny",
        model_version=1,
        queue=queue,
        service_class=service_class,
        priority=5,
        payload={},
        input_tokens=1,
        cost_tokens=2,
        metadata={},
        webhook=None,
        max_attempts=1,
        deadline_s=1.0,
        idempotency=None,
        announce=False,
        **fields,
    )


def test_jobs_are_announced_where_the_queue_has_room_and_they_are_urgent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Enqueueing(monkeypatch, ahead=["a"], tiny=1, full=2)
    waiting = new_job(
        "parent", queue="cache", steps=(new_job("s1"), new_job("s2", queue="cache"), new_job("s3", "full@1"))
    )
    jobs = [new_job("a"), new_job("b", "full@1"), new_job("c", service_class=ServiceClass.BATCH), new_job("d"), waiting]
    assert [found.enqueuer.accept(job).job_id for job in jobs] == ["a", "b", "c", "d", "parent"]
    given = [one for (one,) in found.given]
    assert {one.id: (one.announce, one.goes_ahead) for one in given} == {
        "a": (True, True),
        "b": (False, False),
        "c": (False, False),
        "d": (True, False),
        "parent": (False, False),
    }
    assert [one.announce for one in given[-1].steps] == [True, False, False]
    assert found.hints == [
        Hint("a", "tiny@1", "generate:tiny@1", True),
        Hint("d", "tiny@1", "generate:tiny@1", False),
        Hint("s1", "tiny@1", "generate:tiny@1", False),
    ]
    assert [(one.job_id, one.queue, one.tenant_id, one.class_rank) for one in found.asked] == [
        ("a", "tiny@1", "acme", 1),
        ("b", "full@1", "acme", 1),
        ("d", "tiny@1", "acme", 1),
    ]


def test_without_redis_nothing_is_announced_and_the_breaker_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Enqueueing(monkeypatch, ahead=["a"], is_away=True)
    away.enqueuer.accept(new_job("a"))
    assert (away.given[0][0].announce, away.hints, away.asked, away.breaker.num_failed) == (False, [], [], 0)
    failing = Enqueueing(monkeypatch)
    failing.depths.is_away = True
    failing.enqueuer.accept(new_job("a"))
    assert (failing.given[0][0].announce, failing.breaker.num_failed) == (False, 1)
