"""Periodic threads: their turns, failures, and end."""

import threading

from structlog.testing import capture_logs

from headrace.store.errors import Unavailable
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.periodic import UNTIL_WOKEN, Periodic, failures
from tests.processes import wait_for
from tests.threads import threads_named


def test_a_failed_turn_is_logged_once_and_counted_and_the_next_one_comes() -> None:
    errors: list[Exception | None] = [Unavailable("away"), Unavailable("away"), KeyError("defect"), None, None]

    def turn() -> float | None:
        error = errors.pop(0)
        if error is not None:
            raise error
        return None if errors else UNTIL_WOKEN

    with capture_logs() as logs:
        thread = Periodic("of-a-test", turn, 0.001)
        assert failures["of-a-test"] == 0
        with thread:
            wait_for(lambda: not errors, "it goes on")
    assert b'headrace_periodic_failures_total{thread="of-a-test"} 3.0' in ApiMetrics().render(None)
    seen = [line for line in logs if line.get("thread") == "of-a-test"]
    assert [(line["event"], line.get("reason")) for line in seen] == [
        ("periodic_failed", "away"),
        ("periodic_failed", None),
        ("periodic_recovered", None),
    ]


def test_a_thread_is_woken_and_ends_at_once_also_from_its_own_turn() -> None:
    turns, ends = threading.Semaphore(0), threading.Semaphore(0)
    thread = Periodic("woken", turns.release, 600.0, at_end=ends.release)
    thread.start()
    assert turns.acquire(timeout=60), "the first turn comes at once"
    thread.wake()
    assert turns.acquire(timeout=60)
    thread.stop(60)
    assert ends.acquire(blocking=False), "stop waits for the end"
    assert not turns.acquire(blocking=False)

    itself: list[Periodic] = []
    itself.append(Periodic("itself", lambda: itself[0].stop(600.0), 600.0))
    itself[0].start()
    wait_for(lambda: not threads_named("itself"), "a turn may end its own thread")
    assert failures["itself"] == 0
