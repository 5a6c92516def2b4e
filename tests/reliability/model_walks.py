"""Short walks of the state machine of ``test_model``, one to each end of a job: random walks may leave one out."""

from collections.abc import Callable
from typing import Any

from headrace.store.jobs.terminal import MAX_CRASHES
from headrace.store.schema.job_states import JobState


def see_everything(make: Callable[[], Any]) -> None:
    """Take each walk on a machine of its own, to the end of its jobs."""
    for happens in (sleeps_and_writes, fails, is_cancelled, expires, kills_its_workers, loses_its_last_attempt):
        system = make()
        happens(system)
        system.teardown()


def sleeps_and_writes(system: Any) -> None:
    system.begin([(3, 50_000, False)])
    system.deliver(0, 0, False)
    system.sleep_past_the_lease(0, True)


def fails(system: Any) -> None:
    system.begin([(3, 50_000, False)])
    system.deliver(0, 0, False)
    system.finish(0, 0, JobState.FAILED)


def is_cancelled(system: Any) -> None:
    system.begin([(3, 50_000, False)])
    system.cancel(0)


def expires(system: Any) -> None:
    system.begin([(3, 777, False)])
    system.advance(1070)


def kills_its_workers(system: Any) -> None:
    system.begin([(4, 50_000, True)])
    system.deliver(0, 0, False)
    for _ in range(MAX_CRASHES):
        system.step(0)
        system.advance(1070)
        system.sweep()
        system.claim_suspect(0)


def loses_its_last_attempt(system: Any) -> None:
    system.begin([(1, 50_000, False)])
    system.deliver(0, 0, False)
    system.end_process(0, "SIGKILL")
    system.advance(1070)
    system.sweep()
