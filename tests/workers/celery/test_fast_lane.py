"""Hints of the fast lane find a free slot although a flood uses all common slots."""

from typing import Any

import redis

from headrace.store.redis.celery_queue import FastLaneHints, Hint, HintPublisher, celery_app
from headrace.store.settings import Settings
from headrace.workers.celery.fast_lane import FastLane, num_spare
from headrace.workers.runs.engine_admission import EngineAdmission
from tests.processes import wait_for
from tests.threads import threads_named
from tests.workers.engine_stub import EngineStub

QUEUE = "tiny@1"


class Jobs:
    """Records jobs; they run until the test ends them."""

    def __init__(self, admission: EngineAdmission) -> None:
        self._admission = admission
        self.ran: list[str] = []

    def run(self, job_id: str, *, urgent: bool = False) -> None:
        assert urgent, "a claim of the fast lane does not wait for others"
        self._admission.entered(1, 1)
        self.ran.append(job_id)
        wait_for(lambda: self._admission.is_closed, "the test ends")


def fill(admission: EngineAdmission, num: int) -> None:
    for _ in range(num):
        with admission.working_on(admission.take()):
            admission.entered(1, 1)


def test_a_full_worker_takes_those_who_go_ahead_into_its_spare_places_and_no_others(
    settings: Settings, redis_client: redis.Redis
) -> None:
    admission = EngineAdmission(EngineStub(), max_jobs=64, max_slots=8, num_spare=num_spare(8))
    jobs = Jobs(admission)
    hints, publisher = FastLaneHints(settings.redis_url, QUEUE, lambda: None), HintPublisher(celery_app(settings))
    taker = FastLane(hints, admission, jobs)

    def publish(name: str) -> None:
        publisher.publish([Hint(name, QUEUE, "x", goes_ahead=True)])

    taker.start()
    publisher.publish([Hint("behind", QUEUE, "x")])
    publish("first")
    fill(admission, 7)
    assert admission.has_credit(), "Celery would take it: nothing is done here"
    fill(admission, 1)
    assert not admission.has_credit()
    wait_for(lambda: jobs.ran == ["first"], "the first is in a spare place")
    publish("second")
    wait_for(lambda: len(jobs.ran) == 2, "there are two of them")
    publish("third")
    assert not admission.has_spare_room()
    assert publisher.depth(QUEUE) == 2, "the third waits, and so does who is behind"
    taker.stop()
    admission.close()
    wait_for(lambda: admission.num_taken == 8, "they have ended")
    publisher.close()
    hints.close()


class TakenHints:
    """Hints that close the worker when one is taken."""

    def __init__(self, admission: EngineAdmission) -> None:
        self.admission = admission
        self.num_taken = 0

    def take(self, _wait_s: float) -> str:
        self.num_taken += 1
        self.admission.close()
        return "job_1"


def test_no_hint_is_taken_while_celery_has_room_and_none_is_run_by_a_worker_that_closes() -> None:
    admission = EngineAdmission(EngineStub(), max_jobs=64, max_slots=8, num_spare=2)
    jobs = Jobs(admission)
    hints: Any = TakenHints(admission)
    lane = FastLane(hints, admission, jobs)
    admission.full.set()
    lane.start()
    wait_for(lambda: not admission.full.is_set(), "it looks")
    lane.stop()
    wait_for(lambda: not threads_named("fast-lane"), "its thread has ended")
    assert hints.num_taken == 0
    lane.take()
    assert (hints.num_taken, jobs.ran, admission.num_taken) == (1, [], 0)
