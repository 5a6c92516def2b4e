"""A job from its claim to its outcome, with a table of claims and an engine that do as a test says."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.models.engine.requests import EmittedOutput, EngineStopped, FinishReason, RequestTooLong, StepFailed
from headrace.prompts.sandbox.turns import tenant_at_work
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.jobs.claims import Finish, Release
from headrace.store.metrics.worker_metrics import Served, WorkerMetrics
from headrace.store.schema.job_states import JobState
from headrace.workers.runs import outcome
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt, InFlightAttempts
from headrace.workers.runs.job_runner import EngineClient, JobRunner
from headrace.workers.runs.outcome import Retry
from tests.features.flows.tools.test_tool_caller import value_of
from tests.workers.engine_stub import EngineStub
from tests.workers.runs.test_outcome import CLAIM

LEASE_S = 10.0
STEP = replace(CLAIM, parent_id="job_0", is_source=True, queued_s=2.0)
HITS = [{"action": "mask", "count": 3}, {"action": "flag", "count": 1}]
DONE = Finish(
    "job_1", 4, JobState.SUCCEEDED, {"text": "x", "policy": HITS}, None, {"first_token_ms": 1500.0}, tenant_id="ten_1"
)


class Office:
    """The claims of a worker: its leases, its releases, and the frames behind it."""

    def __init__(self) -> None:
        self.claimed: Attempt | None = Attempt(STEP, 100.0, None, 100.5)
        self.is_owned = True
        self.error: Exception | None = None
        self.told: list[tuple[Any, ...]] = []
        self.metrics = WorkerMetrics(Served("fake", "1", "generate"))
        self.in_flight = InFlightAttempts()
        self.admission = EngineAdmission(EngineStub(), max_jobs=4, max_slots=4)

    def claim(self, job_id: str, *, urgent: bool = False) -> Attempt | None:
        self.told.append(("claim", job_id, urgent))
        return self.claimed

    def release(self, attempts: list[Attempt], *, charge: bool, crashed: bool = False) -> set[str]:
        self.told.append(("release", [one.job_id for one in attempts], charge, crashed))
        return set()

    def finish(self, finish: Finish, *, until: Callable[[], float]) -> bool:
        return self._written("finish", finish, until())

    def give_back(self, release: Release, *, until: Callable[[], float]) -> bool:
        return self._written("give back", release, until())

    def _written(self, verb: str, row: Finish | Release, until: float) -> bool:
        self.told.append((verb, row, until))
        if self.error is not None:
            raise self.error
        return self.is_owned

    def put_end(self, attempt_id: Any) -> None:
        self.told.append(("end", attempt_id))

    def forget(self, attempt_id: Any) -> None:
        self.told.append(("forget", attempt_id))

    def runner(self, compute: Callable[[Attempt], Finish | Retry]) -> JobRunner:
        work: Any = type("Work", (), {"compute": staticmethod(compute)})()
        this: Any = self
        return JobRunner(
            claim_client=this,
            in_flight=self.in_flight,
            work=work,
            admission=self.admission,
            frames=this,
            lease_s=LEASE_S,
            metrics=self.metrics,
            spans=AttemptSpans(),
        )

    def count(self, name: str, **labels: str) -> float:
        return value_of(self.metrics, f"headrace_{name}", **labels)


@pytest.fixture
def office() -> Office:
    return Office()


def raising(error: Exception) -> Callable[[Attempt], Finish | Retry]:
    def compute(_attempt: Attempt) -> Finish | Retry:
        raise error

    return compute


def test_an_outcome_is_written_then_the_stream_ends_and_it_is_counted(office: Office) -> None:
    written = replace(DONE, is_source=True, parent_id="job_0")
    with capture_logs() as logs:
        assert office.runner(lambda _attempt: DONE).run("job_1", urgent=True) is not None
    own = STEP.job_id, STEP.epoch
    assert office.told == [
        ("claim", "job_1", True),
        ("finish", written, 100.0 + 2 * LEASE_S),
        ("end", own),
        ("forget", own),
    ]
    assert [line["event"] for line in logs] == ["job_finished"]
    standard = {"class": "standard"}
    assert office.count("jobs_finished_total", **standard, state="succeeded") == 1
    assert office.count("time_to_first_token_seconds_sum", **standard) == 1.5
    assert office.count("job_seconds_count", **standard) == 1
    assert office.count("job_seconds_sum", **standard) >= 2.0
    actions = [office.count("output_policy_actions_total", action=name) for name in ("mask", "flag", "redact")]
    assert actions == [3, 1, 0]
    assert len(office.in_flight) == 0


def test_what_a_job_computes_is_done_on_behalf_of_its_tenant(office: Office) -> None:
    seen: list[str] = []

    def compute(_attempt: Attempt) -> Finish:
        seen.append(tenant_at_work())
        return DONE

    office.runner(compute).run("job_1")
    assert (seen, tenant_at_work()) == ([CLAIM.tenant_id], "")


def test_the_findings_of_a_policy_are_counted_in_each_choice(office: Office) -> None:
    output = {"text": "x", "choices": [{"text": "x", "policy": HITS}, {"text": "y"}, {"text": "z", "policy": HITS[:1]}]}
    assert office.runner(lambda _attempt: replace(DONE, output=output)).run("job_1") is not None
    assert [office.count("output_policy_actions_total", action=name) for name in ("mask", "flag")] == [6, 1]


def test_only_a_job_that_succeeded_has_a_whole_time_and_an_error_has_its_code(office: Office) -> None:
    failed = office.runner(raising(RequestTooLong("too long"))).run("job_1")
    assert isinstance(failed, Finish)
    assert (failed.error or {})["code"] == RequestTooLong.code
    assert office.told[0] == ("claim", "job_1", False)
    assert office.count("job_errors_total", code=RequestTooLong.code) == 1
    assert office.count("jobs_finished_total", state="failed", **{"class": "standard"}) == 1
    assert office.count("job_seconds_count", **{"class": "standard"}) == 0


def test_an_outcome_that_is_refused_or_lost_ends_no_stream(office: Office) -> None:
    office.is_owned = False
    with capture_logs() as logs:
        assert office.runner(lambda _attempt: DONE).run("job_1") is None
    assert [line["event"] for line in logs] == ["stale_finish_refused"]
    office.error = Unavailable("Postgres is away")
    with capture_logs() as logs:
        assert office.runner(lambda _attempt: DONE).run("job_1") is None
    assert [(line["event"], line["error"]) for line in logs] == [("outcome_lost", "Postgres is away")]
    assert [verb for verb, *_ in office.told] == ["claim", "finish", "forget"] * 2
    assert [office.count(f"{name}_total") for name in ("stale_finishes", "outcomes_lost", "jobs_finished")] == [1, 1, 0]


@pytest.mark.parametrize("is_owned", [True, False])
def test_an_attempt_that_may_run_again_goes_back(office: Office, is_owned: bool) -> None:
    office.is_owned = is_owned
    retry = Retry("worker_lost", "a step failed", first_token_ms=3.0)
    with capture_logs() as logs:
        found = office.runner(lambda _attempt: retry).run("job_1")
    assert found is (retry if is_owned else None)
    release = Release("job_1", 4, charge=True, tenant_id="ten_1", first_token_ms=3.0, parent_id="job_0")
    assert office.told[1:] == [("give back", release, 120.0), ("forget", STEP_ID)]
    told = {"code": "worker_lost", "charged": True, "cleared": False, "error": "a step failed"}
    assert [{name: line.get(name) for name in told} for line in logs] == [told]
    assert office.count("jobs_released_total", code="worker_lost") == is_owned


STEP_ID = (STEP.job_id, STEP.epoch)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StepFailed("a step"), "worker_lost", "a step"),
        (Unavailable("away"), "unavailable", "away"),
        (KeyError("secret prompt"), "internal_error", "the worker"),
    ],
)
def test_a_fault_is_an_attempt_and_its_message_is_not_logged(
    office: Office, error: Exception, code: str, message: str
) -> None:
    with capture_logs() as logs:
        found = office.runner(raising(error)).run("job_1")
    assert isinstance(found, Retry)
    assert (message in found.message, "secret" in found.message, found.charge) == (True, False, True)
    assert found.code == (error.code if isinstance(error, Unavailable) else code)
    assert "secret" not in str(logs)
    assert ("job_error" in [line["event"] for line in logs]) == (code == "internal_error")


def test_a_bad_payload_fails_its_job(office: Office) -> None:
    found = office.runner(raising(InvalidRequest("no such field", code="invalid_payload"))).run("job_1")
    assert isinstance(found, Finish)
    assert found.error == {"code": "invalid_payload", "message": "no such field", "retryable": False, "attempt": 2}


def test_what_was_not_claimed_or_comes_too_late_is_not_run(office: Office) -> None:
    runner = office.runner(raising(AssertionError("not run")))
    attempt, office.claimed = office.claimed, None
    assert runner.run("job_1") is None
    assert office.count("hints_dropped_total") == 1
    office.claimed = attempt
    office.in_flight.close()
    assert runner.run("job_1") is None
    assert office.told[-1] == ("release", ["job_1"], False, False)
    assert attempt is not None
    runner.run_claimed(attempt)
    assert [verb for verb, *_ in office.told] == ["claim", "claim", "release", "release"]


def test_an_attempt_that_lost_its_lease_meanwhile_writes_nothing(office: Office) -> None:
    def compute(attempt: Attempt) -> Finish:
        assert office.in_flight.drop(attempt.job_id, attempt.epoch) is attempt
        return DONE

    assert office.runner(compute).run("job_1") is None
    assert [verb for verb, *_ in office.told] == ["claim", "forget"]


def test_nothing_is_raised_to_celery_and_no_text_is_logged(office: Office) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("secret prompt")

    runner = office.runner(raising(AssertionError("not run")))
    office.claim = office.release = fail
    office.in_flight.close()
    with capture_logs() as logs:
        assert runner.run("job_1") is None
        runner.cancel_queued("job_2")
        runner.run_claimed(Attempt(CLAIM, 100.0, None, 100.0))
    told = [(line["event"], line["job_id"], line["error"]) for line in logs]
    assert told == [("job_error", name, "KeyError") for name in ("job_1", "job_2", "job_1")]
    assert "secret" not in str(logs)


def test_a_revoked_job_ends_as_cancelled(office: Office) -> None:
    office.runner(raising(AssertionError("not run"))).cancel_queued("job_1")
    (_, finish, _) = office.told[1]
    assert finish == replace(outcome.cancelled(STEP), is_source=True, parent_id="job_0")
    assert finish.state is JobState.CANCELLED


STOPPED = {name: EngineStopped(name) for name in ("inside", "waiting", "outside")}
STOPPED["inside"].progress = STOPPED["waiting"].progress = EmittedOutput()
STOPPED["waiting"].has_begun = False


class Engine(EngineStub):
    """An engine whose requests end when a test says so."""

    def __init__(self) -> None:
        self.futures: dict[str, Future[str]] = {}
        self.cancelled: list[tuple[Any, FinishReason]] = []

    def submit(self, request: Any) -> Future[Any]:
        self.futures[request] = Future()
        if request.startswith("now"):
            self.futures[request].set_result(request)
        if request.startswith("fails"):
            self.futures[request].set_exception(StepFailed(request))
        if request in STOPPED:
            self.futures[request].set_exception(STOPPED[request])
        if request == "refused":
            raise RequestTooLong("refused")
        return self.futures[request]

    def cancel(self, request_id: Any, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        self.cancelled.append((request_id, reason))
        for name, future in self.futures.items():
            if future.done():
                continue
            if (error := STOPPED.get(name.removeprefix("then "))) is not None:
                future.set_exception(error)
            else:
                future.set_result(f"{name} cancelled")
        return True


def client(engine: Engine, office: Office, *, slots: int = 4, spans: Any = None) -> EngineClient[Any, Any]:
    given: Any = engine
    office.admission = EngineAdmission(given, max_jobs=9, max_slots=slots)
    return EngineClient(given, office.admission, office.in_flight, spans or AttemptSpans())


def group(one: EngineClient[Any, Any], attempt: Attempt, *requests: str, last: str = "") -> tuple[Any, list[Any]]:
    seen: list[Any] = []
    results = one.run_group(
        attempt,
        requests,
        num_prompt=5,
        max_tokens=7,
        is_last=lambda result: bool(last) and result.startswith(last),
        on_result=lambda position, result: seen.append((position, result)),
    )
    return results, seen


def test_a_request_is_counted_while_it_is_in_the_engine_and_cancelled_if_its_attempt_is_lost(office: Office) -> None:
    engine = Engine()
    one = client(engine, office)
    attempt = Attempt(CLAIM, 100.0, None, 100.0)
    office.in_flight.add(attempt)
    ticket = office.admission.take()
    with office.admission.working_on(ticket):
        assert one.run(attempt, "now", num_prompt=5, max_tokens=7) == "now"
        with pytest.raises(StepFailed):
            one.run(attempt, "fails", num_prompt=5, max_tokens=7)
    assert (engine.cancelled, ticket.state.name) == ([], "FINISHING")
    office.in_flight.remove(attempt)
    assert one.run(attempt, "later", num_prompt=5, max_tokens=7) == "later cancelled"
    assert engine.cancelled == [(attempt.id, FinishReason.HANDED_BACK)]
    one.cancel(attempt)
    assert engine.cancelled[1:] == [(attempt.id, FinishReason.CANCELLED)]


def test_choices_run_a_few_at_a_time_until_the_last_one(office: Office) -> None:
    engine = Engine()
    attempt = Attempt(CLAIM, 100.0, None, 100.0)
    office.in_flight.add(attempt)
    traced: list[Any] = []
    spans = SimpleNamespace(computed=lambda _attempt, result, _at: traced.append(result))
    one = client(engine, office, slots=4, spans=spans)
    results, seen = group(one, attempt, *(f"now {number}" for number in range(5)))
    assert traced == ["now 0"], "the phases of the first stand for all"
    assert results == {number: f"now {number}" for number in range(5)}
    assert sorted(seen) == sorted(results.items())
    results, _ = group(one, attempt, "now a", "now b", "now c", "now d", last="now a")
    assert 0 in results
    assert "now d" not in results.values()
    assert "now d" not in engine.futures
    assert engine.cancelled == []


@pytest.mark.parametrize("bad", ["fails", "refused"])
def test_the_first_error_of_a_choice_cancels_the_others_and_is_raised(office: Office, bad: str) -> None:
    engine = Engine()
    attempt = Attempt(CLAIM, 100.0, None, 100.0)
    office.in_flight.add(attempt)
    one = client(engine, office, slots=4)
    with pytest.raises(StepFailed if bad == "fails" else RequestTooLong):
        group(one, attempt, "waits", bad, "never")
    assert engine.cancelled == [(attempt.id, FinishReason.CANCELLED)]
    assert "never" not in engine.futures


@pytest.mark.parametrize(
    "requests",
    [("inside", "then outside"), ("outside", "then inside"), ("inside", "then waiting"), ("waiting", "then inside")],
)
def test_of_an_engine_that_died_the_error_of_a_choice_that_was_inside_is_raised(
    office: Office, requests: tuple[str, str]
) -> None:
    attempt = Attempt(CLAIM, 100.0, None, 100.0)
    office.in_flight.add(attempt)
    with pytest.raises(EngineStopped, match="inside"):
        group(client(Engine(), office, slots=4), attempt, *requests, "never")
