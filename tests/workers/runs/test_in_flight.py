"""The table of the attempts in flight: who owns a job, and when the table is empty."""

import threading

from headrace.store.jobs.claims import Claim
from headrace.workers.runs.in_flight import Attempt, AttemptId, InFlightAttempts


def attempt(job_id: str, epoch: int = 1, claimed_at: float = 100.0) -> Attempt:
    claim = Claim(
        job_id=job_id,
        tenant_id="ten_1",
        class_rank=1,
        epoch=epoch,
        attempt=epoch,
        model="tiny",
        model_version=1,
        payload={},
        input_tokens=1,
        remaining_s=None,
        queued_s=0.0,
        max_attempts=3,
        crashes=0,
        is_suspect=False,
        checkpoint=None,
    )
    return Attempt(claim, claimed_at, None, claimed_at)


def test_a_newer_attempt_replaces_the_one_before_it() -> None:
    table, old, new = InFlightAttempts(), attempt("a"), attempt("a", 2, 200.0)
    assert table.add(old)
    assert table.settle(old)
    assert table.add(new)
    assert (table.owns(old), table.owns(new), table.settle(old), len(table)) == (False, True, False, 1)
    assert (table.renewed_at(new), new.id, table.epochs()) == (200.0, AttemptId("a", 2), {"a": 2})
    table.remove(old)
    assert table.drop("a", 1) is None
    assert table.drop("a", 2) is new, "the settling of the old one does not hold it"
    assert table.drop("a", 2) is None


def test_a_lease_is_never_younger_than_its_last_renewal() -> None:
    table, one = InFlightAttempts(), attempt("a")
    table.add(one)
    for at, renewed_at in ((150.0, 150.0), (120.0, 150.0)):
        table.renewed(frozenset({"a", "unknown"}), at)
        assert table.renewed_at(one) == renewed_at
    table.remove(one)
    assert table.renewed_at(one) == 100.0, "nothing is left of it"


def test_what_settles_is_not_taken_and_nothing_is_added_after_the_close() -> None:
    table, settling, running = InFlightAttempts(), attempt("a"), attempt("b")
    for one in (settling, running):
        table.add(one)
    table.settle(settling)
    assert table.close() == [settling, running]
    assert (table.is_closed, table.add(attempt("c"))) == (True, False)
    assert table.drop("a", 1) is None
    assert table.all() == [settling, running], "its lease counts until its outcome is written"
    assert table.take_rest() == [running]
    assert table.get("a") is settling


def test_the_last_one_that_leaves_wakes_those_who_wait() -> None:
    table, one = InFlightAttempts(), attempt("a")
    table.add(one)
    assert not table.wait_empty(0.0)
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(table.wait_empty(600.0)))
    waiting.start()
    table.remove(one)
    waiting.join(30)
    assert found == [True]
