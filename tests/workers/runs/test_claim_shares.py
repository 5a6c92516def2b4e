"""Claims without a message, repeats and signals of a worker, over a store that answers as a test says."""

import threading
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.features.flows.running.step_signals import RedisSignals
from headrace.store.errors import Unavailable
from headrace.store.jobs import claims
from headrace.store.jobs.claims import Claim, Finish, Release, RowLocked
from headrace.store.jobs.parent_part import AnnouncedStep, Settled
from headrace.store.redis.celery_queue import Hint
from headrace.store.scheduling import dispatch_queries
from headrace.store.scheduling.dispatch_queries import RoundRobin
from headrace.store.schema.job_states import JobState
from headrace.workers.runs import claim_client, outcome
from headrace.workers.runs.claim_client import ClaimClient, parts
from tests.processes import wait_for
from tests.workers.runs.test_outcome import CLAIM

ANY: Any = None


class Store:
    """The functions of the store that a claim client calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.waiting: dict[str, list[str]] = {}
        self.taken: set[str] = set()
        self.answers: list[Any] = []
        self.failing: list[Exception] = []
        self.turns: list[RoundRobin | None] = []
        monkeypatch.setattr(dispatch_queries, "claim_candidates", self.candidates)
        monkeypatch.setattr(claims, "claim", self.claim)
        monkeypatch.setattr(claims, "still_open", lambda *_, **__: self.looked_up())
        monkeypatch.setattr(claims, "still_running", self.still_running)
        monkeypatch.setattr(claims, "finish", self.write)
        monkeypatch.setattr(claims, "release", self.write)
        monkeypatch.setattr(claim_client, "RETRY_S", 0.0)
        monkeypatch.setattr(claim_client, "MOMENT_S", 0.0)

    def candidates(self, _db: Any, queue: str, most: int, **how: Any) -> list[str]:
        self.asked.append((queue, most, how.get("suspects", False)))
        self.turns.append(how.get("round_robin"))
        return self.waiting.get(queue, [])[:most]

    def claim(self, _db: Any, owner: str, queue: str, ids: Any, lease_s: float, **how: Any) -> dict[str, Claim]:
        self.asked.append((owner, queue, tuple(ids), lease_s, how["suspects"], how["capacity"], how["adapters"]))
        return {one: replace(CLAIM, job_id=one, remaining_s=5.0) for one in ids if one not in self.taken}

    def write(self, _db: Any, rows: Any, *_: Any) -> set[str]:
        self.asked.append(tuple(one.job_id for one in rows))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return set(answer)

    def still_running(self, _db: Any, missing: dict[str, int]) -> set[str]:
        return self.looked_up(one for one in missing if one.startswith("locked"))

    def looked_up(self, found: Iterable[str] = ()) -> set[str]:
        if self.failing:
            raise self.failing.pop()
        return set(found)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


def client(now: list[float], *adapters: str, stopping: threading.Event | None = None) -> ClaimClient:
    return ClaimClient(
        ANY,
        owner="w1",
        queue="base@1",
        lease_s=10.0,
        stopping=stopping or threading.Event(),
        capacity=lambda: 512,
        adapters=lambda: adapters,
        clock=lambda: now[0],
    )


def test_the_queues_of_a_worker_share_its_room(store: Store) -> None:
    store.waiting = {"base@1": ["a"], "one@1": ["b", "c", "d"], "two@1": ["e", "f", "g", "h", "i"]}
    one = client([100.0], "one@1", "two@1")
    found = one.claim_waiting(8)
    assert store.asked[:3] == [("base@1", 3, False), ("one@1", 4, False), ("two@1", 4, False)]
    assert store.asked[3] == ("w1", "base@1", tuple("abcdefgh"), 10.0, False, 512, ("one@1", "two@1"))
    assert [(one.job_id, one.claimed_at, one.deadline, one.answered_at) for one in found][:1] == [
        ("a", 100.0, 105.0, 100.0)
    ]
    one.claim_waiting(1)
    assert store.turns[0] is not None
    assert all(turns is store.turns[0] for turns in store.turns), "tenants keep their turns from one claim to the next"


def test_a_suspect_is_looked_for_in_each_queue_until_one_is_ours(store: Store) -> None:
    store.waiting = {"base@1": ["a", "b"], "one@1": ["c"]}
    store.taken = {"a", "b"}
    found = client([100.0], "one@1").claim_suspect()
    assert found is not None
    assert found.job_id == "c"
    assert [one for one in store.asked if len(one) == 3] == [("base@1", 8, True), ("one@1", 8, True)]
    assert {one[4] for one in store.asked if len(one) == 7} == {True}
    store.taken = {"a", "b", "c"}
    assert client([100.0], "one@1").claim_suspect() is None
    stopping = threading.Event()
    stopping.set()
    store.asked.clear()
    assert client([100.0], stopping=stopping).claim_waiting(3) == []
    assert client([100.0], stopping=stopping).claim("a") is None
    assert [one for one in store.asked if len(one) == 7] == []


def test_only_an_urgent_claim_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    one, told = client([100.0]), list[bool]()
    monkeypatch.setattr(one.claims, "join", lambda _job_id, *, urgent=False: told.append(urgent))
    assert [one.claim("a", urgent=True), one.claim("a")] == [None, None]
    assert told == [True, False]


DONE = Finish("job_1", 4, JobState.SUCCEEDED, None, None, None)


def test_an_outcome_is_tried_until_the_sweeper_has_the_job(store: Store) -> None:
    now = [100.0]
    one = client(now)
    store.answers = [Unavailable("away"), ["job_1"]]
    assert one.finish(DONE, until=lambda: 100.0) is True
    store.answers = [[]]
    assert one.finish(DONE, until=lambda: 100.0) is False
    now[0] = 100.1
    store.answers = [Unavailable("away")]
    with pytest.raises(Unavailable):
        one.finish(DONE, until=lambda: 100.0)
    locked = replace(DONE, job_id="locked_1")
    store.answers = [[], [], ["locked_1"]]
    assert one.finish(locked, until=lambda: 0.0) is True, "the sweeper cannot take a locked row either"
    stopping = threading.Event()
    stopping.set()
    store.answers = [[]]
    with pytest.raises(RowLocked):
        client(now, stopping=stopping).finish(locked, until=lambda: 0.0)


def test_a_job_is_given_back_until_it_is_too_late_or_the_worker_stops(store: Store) -> None:
    now = [100.0]
    release = Release("job_1", 4)
    store.answers = [Unavailable("away"), ["job_1"]]
    assert client(now).give_back(release, until=lambda: 100.0) is True
    stopping = threading.Event()
    stopping.set()
    for one, until in ((client(now), 99.0), (client(now, stopping=stopping), 200.0)):
        store.answers = [Unavailable("away")]
        with pytest.raises(Unavailable):
            one.give_back(release, until=lambda until=until: until)
    store.answers = [[]] * (claim_client.LAST_TRIES + 1)
    with pytest.raises(RowLocked):
        client(now, stopping=stopping).give_back(replace(release, job_id="locked_1"), until=lambda: 200.0)
    assert store.answers == []


def test_what_is_released_at_the_end_keeps_its_flow_and_its_charge(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Release] = []

    def release(_db: Any, rows: list[Release], *_: Any) -> set[str]:
        given.extend(rows)
        return {one.job_id for one in rows if not one.job_id.startswith("locked") or len(given) > 2}

    monkeypatch.setattr(claims, "release", release)
    held = [SimpleNamespace(job_id=name, epoch=4, claim=replace(CLAIM, parent_id="job_0")) for name in ("a", "locked")]
    attempts: Any = held
    assert client([100.0]).release(attempts, charge=True, crashed=True) == {"a", "locked"}
    one = Release("a", 4, charge=True, crashed=True, parent_id="job_0")
    assert given == [one, replace(one, job_id="locked"), replace(one, job_id="locked")]


def test_long_outputs_are_written_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_client, "MAX_FINISHED_CHARS", 10)
    outputs: list[dict[str, Any]] = [
        {"embeddings": ["x" * 6], "text": "y" * 90},
        {"embeddings": ["x" * 3, "x"]},
        {"embeddings": ["x"]},
    ]
    rows = [replace(DONE, job_id=f"job_{number}", output=one) for number, one in enumerate(outputs)]
    store.answers = [["job_0", "job_1"], ["job_2"]]
    found = client([100.0])._finish_all(rows)
    assert (found, store.asked) == ([True] * 3, [("job_0", "job_1"), ("job_2",)])
    assert parts([3, 4, 5], lambda size: size, 7) == [[3, 4], [5]]


def test_what_was_written_counts_although_the_others_could_not_be_looked_up(store: Store) -> None:
    one, away = client([100.0]), Unavailable("away")
    store.taken, store.failing = {"b"}, [away]
    first, second = one._claim_all(["a", "b"])
    assert isinstance(first, Claim)
    assert (first.job_id, second) == ("a", away)
    other = replace(DONE, job_id="job_2")
    store.answers, store.failing = [["job_1"], ["job_2"], []], [away]
    assert one._finish_all([DONE, other]) == [True, away]
    held: Any = [SimpleNamespace(job_id=name, epoch=4, claim=CLAIM) for name in ("job_1", "job_2")]
    store.failing = [away]
    assert one.release(held, charge=False) == {"job_2"}
    assert store.asked[-2:] == [("job_1", "job_2"), ("job_1",)], "what was not released is tried again"


class Signals:
    """Redis, as step signals use it."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []
        self.woken: list[tuple[str, ...]] = []
        self.done: list[str] = []
        self.errors: list[Exception] = []

    def announce(self, hint: Hint) -> None:
        self.hints.append(hint)

    def wake(self, answers: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.woken.append(tuple(answers))

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")


def test_steps_that_are_ready_are_announced_and_readers_of_answers_are_woken() -> None:
    redis: Any = Signals()
    redis.errors = [Unavailable("Redis is away"), ValueError("a defect")]
    signals = RedisSignals(redis, redis)
    with capture_logs() as logs:
        for answers in (("lost",), ("lost too",)):
            signals.begun(answers)
        signals.begun(())
        step = AnnouncedStep(id="job_2", task="embed", model="tiny", model_version=3, queue="tiny@3")
        signals.settled(Settled(ended=("job_0",), announced=(step,), answers=("job_9",)))
        signals.start()
        wait_for(lambda: redis.woken == [("job_9",)], "it goes on after errors")
        signals.stop()
    assert redis.hints == [Hint("job_2", "tiny@3", "embed:tiny@3")]
    assert redis.done == ["start", "stop"]
    assert [(line["log_level"], line["error"]) for line in logs] == [
        ("debug", "Redis is away"),
        ("error", "ValueError"),
    ]
    assert outcome.cancelled(CLAIM).error is None
