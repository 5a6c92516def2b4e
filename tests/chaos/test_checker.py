"""The checker finds each kind of violation in a handwritten history."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.chaos.checker import check
from tests.chaos.history import Attempt, Delivery, History, Job
from tests.chaos.load import Order, marked, order, orders
from tests.chaos.oracle import answer
from tests.chaos.report import recoveries, report_of
from tests.chaos.streams import read_stream

Json = dict[str, Any]
PROMPT = "run 1, order 1: tell me of rivers."
ANSWER = answer(PROMPT, 24)
ORDER = Order(n=1, tenant=0, prompt=PROMPT, max_tokens=24, follow="stream", hook="ok")
JOB = Job(
    id="job_1",
    state="succeeded",
    prompt=PROMPT,
    max_tokens=24,
    created_at=100.0,
    completed_at=101.0,
    text=ANSWER,
    stored_text=ANSWER,
    terminal="succeeded",
    terminal_events=("succeeded",),
)
KILL: Json = {"t": 100.5, "kind": "exit", "member": "worker", "name": "worker-1", "pid": 7, "code": -9}


Event = list[Any]


def stream(*pieces: str, first: Sequence[Event] = (), epoch: int = 1, kept: str = "") -> list[Event]:
    """Events of one attempt, beginning after ``kept`` letters of an earlier one: a delta for each piece, the end."""
    events = [list(event) for event in first] or [["0-0", "job.queued", "", 0]]
    events.append([f"{epoch}-{len(kept)}", "job.restarted" if first else "job.started", kept, len(kept)])
    events += [[f"{epoch}-{n}", "job.delta", piece, 0] for n, piece in enumerate(pieces, len(kept) + 1)]
    return [*events, [f"{epoch}-{len(kept) + len(pieces) + 1}", "job.succeeded", "", 0]]


def hook(**changes: Any) -> Json:
    event: Json = {"t": 101.1, "kind": "hook", "id": "evt_1", "job": "job_1", "type": "job.succeeded"}
    return {**event, "status": "succeeded", "signed": True, "answer": "204", "path": "ok", **changes}


def history(job: Job | None = JOB, wanted: Order = ORDER, **changes: Any) -> History:
    """A run in which one job was accepted, streamed, delivered, and one worker killed; then changed."""
    client: list[Json] = [
        {"t": 100.0, "kind": "order", **asdict(wanted)},
        {"t": 100.1, "kind": "accepted", "n": 1, "job": "job_1", "ms": 5.0, "tries": 1},
        {"t": 101.0, "kind": "stream", "n": 1, "job": "job_1", "cuts": 0, "events": stream(*ANSWER)},
        {"t": 101.0, "kind": "seen", "n": 1, "job": "job_1", "how": "stream", "status": "succeeded", "text": ANSWER},
    ]
    whole = History(
        client=client,
        hooks=[hook()],
        nemesis=[KILL],
        jobs=[] if job is None else [job],
        attempts=[Attempt("job_1", 1, "worker-1@vm:7:boot", 100.2, 101.0, "succeeded")],
        deliveries=[Delivery("evt_1", "job_1", "job.succeeded", "delivered")],
        log_counts=Counter({"stale_finish_refused": 1}),
    )
    return replace(whole, **changes)


def without(kind: str) -> list[Json]:
    return [event for event in history().client if event["kind"] != kind]


def streamed(events: list[Event]) -> list[Json]:
    return [*without("stream"), {"t": 101.0, "kind": "stream", "n": 1, "job": "job_1", "cuts": 1, "events": events}]


def seen(status: str) -> list[Json]:
    return [*without("seen"), {"t": 101.0, "kind": "seen", "n": 1, "job": "job_1", "status": status, "text": None}]


def bare(job: Job, wanted: Order = ORDER, **changes: Any) -> History:
    """A history without a stream reader."""
    client = [{"t": 100.0, "kind": "order", **asdict(wanted)}, {"kind": "accepted", "n": 1, "job": "job_1"}]
    return history(job, **({"client": client, "hooks": []} | changes))


def ended(state: str, code: str | None = None, **changes: Any) -> Job:
    """The job, ended another way."""
    end = {"state": state, "terminal": state, "terminal_events": (state,), "text": None, "stored_text": None}
    return replace(JOB, **(end | {"code": code} | changes))


def test_a_good_run_is_good() -> None:
    assert check(history()).broken == {}


DEADLINE = replace(ORDER, deadline_ms=1500, hook=None)
NO_HOOK = replace(ORDER, hook=None)
POISON = replace(marked("exit", 1, 1), hook=None)
NAN = replace(marked("nan", 1, 1), hook=None)
BROKEN: dict[str, tuple[str, History]] = {
    "no row": ("lost", bare(JOB, jobs=[])),
    "404": ("lost", history(client=[*history().client, {"kind": "missing", "n": 1, "job": "job_1"}])),
    "still running": ("stuck", bare(replace(JOB, state="running", terminal=None, terminal_events=()), NO_HOOK)),
    "still queued": ("stuck", bare(replace(JOB, state="queued", terminal=None, terminal_events=()), NO_HOOK)),
    "no terminal row": ("stuck", history(replace(JOB, terminal=None))),
    "two ends": ("duplicate_terminal", history(replace(JOB, terminal_events=("succeeded", "failed")))),
    "row and terminal row differ": ("duplicate_terminal", history(replace(JOB, terminal="failed"))),
    "not in the ledger": ("miscounted", history(replace(JOB, used=(5, 24)))),
    "counted too high": ("miscounted", history(replace(JOB, used=(5, 24), billed=(5, 48)))),
    "a client was told otherwise": ("duplicate_terminal", history(client=seen("failed"))),
    "a webhook said otherwise": ("duplicate_terminal", history(hooks=[hook(), hook(type="job.failed")])),
    "two jobs for an order": ("duplicate_jobs", history(jobs=[JOB, replace(JOB, id="job_2")])),
    "a hole": ("splices", history(client=streamed([one for one in stream(*ANSWER) if one[0] != "1-5"]))),
    "a repeat": (
        "splices",
        history(client=streamed([one for e in stream(*ANSWER) for one in [e] * (1 + (e[0] == "1-5"))])),
    ),
    "another text": ("splices", history(client=streamed(stream(*ANSWER.upper())))),
    "two attempts glued": (
        "splices",
        history(
            client=streamed(
                [
                    ["0-0", "job.queued", "", 0],
                    ["1-0", "job.started", "", 0],
                    ["1-1", "job.delta", "x", 0],
                    *stream(*ANSWER, epoch=2)[1:],
                ]
            )
        ),
    ),
    "a restart that lies about what is kept": (
        "splices",
        history(client=streamed(stream(*ANSWER[2:], first=stream("x", "y")[:-1], epoch=2, kept=ANSWER[:2]))),
    ),
    "text after the end": ("splices", history(client=streamed([*stream(*ANSWER), ["1-99", "job.delta", "x", 0]]))),
    "stored deltas differ": ("splices", history(replace(JOB, stored_text=ANSWER[1:]))),
    "wrong output": ("wrong_output", bare(replace(JOB, text="nonsense", stored_text="nonsense"), NO_HOOK)),
    "cut short": ("wrong_output", bare(replace(JOB, text=ANSWER[:-1], stored_text=ANSWER[:-1]), NO_HOOK)),
    "wrong partial output": ("wrong_output", bare(ended("expired", "deadline_exceeded", text="zzz"), NO_HOOK)),
    "poison that succeeds": ("poison", bare(replace(JOB, prompt=POISON.prompt), POISON)),
    "poison that costs four workers": (
        "poison",
        bare(ended("failed", "poison", prompt=POISON.prompt, crashes=4), POISON),
    ),
    "an innocent called poison": ("poison", bare(ended("failed", "poison"), NO_HOOK)),
    "an innocent that fails": ("innocents", bare(ended("failed", "out_of_memory"), NO_HOOK)),
    "a NaN row that succeeds": ("faulty_rows", bare(replace(JOB, prompt=NAN.prompt), NAN)),
    "a NaN row that fails otherwise": ("faulty_rows", bare(ended("failed", "internal_error", prompt=NAN.prompt), NAN)),
    "expired before its deadline": (
        "expired_early",
        bare(ended("expired", "deadline_exceeded", deadline_at=101.5, completed_at=101.0), DEADLINE),
    ),
    "given less than was asked": (
        "expired_early",
        bare(ended("expired", "deadline_exceeded", deadline_at=101.0, completed_at=101.0), DEADLINE),
    ),
    "a cancel that did not hold": (
        "cancels",
        history(
            client=[*history().client, {"kind": "cancel", "n": 1, "job": "job_1", "answer": 200, "status": "cancelled"}]
        ),
    ),
    "cancelled unasked": ("cancels", bare(ended("cancelled"), NO_HOOK)),
    "no webhook": ("webhooks", history(hooks=[])),
    "a webhook that was refused": ("webhooks", history(hooks=[hook(answer="500")])),
    "a bad signature": ("webhooks", history(hooks=[hook(signed=False)])),
    "two ids for one end": ("webhooks", history(hooks=[hook(), hook(id="evt_2")])),
    "a webhook that was given up": (
        "webhooks",
        history(deliveries=[Delivery("evt_1", "job_1", "job.succeeded", "failed", 10)]),
    ),
    "an order without an answer": ("customers", history(client=without("accepted"))),
    "a customer that broke": (
        "customers",
        history(client=[*history().client, {"kind": "client_error", "n": 1, "error": "E", "where": "f:1"}]),
    ),
    "a refusal without a reason": (
        "customers",
        history(client=[*history().client, {"kind": "refused", "n": 2, "status": 400, "code": "invalid_value"}]),
    ),
    "nothing was killed": ("kills", history(nemesis=[{**KILL, "code": 0}])),
    "no stale write": ("stale_writes", history(log_counts=Counter())),
}


@pytest.mark.parametrize(("promise", "damaged"), BROKEN.values(), ids=BROKEN.keys())
def test_it_finds(promise: str, damaged: History) -> None:
    assert promise in check(damaged).broken


GOOD: dict[str, History] = {
    "a restart that is said": history(
        client=streamed(stream(*ANSWER, first=stream("x", "y")[:-1], epoch=2)),
    ),
    "a restart that keeps some": history(
        client=streamed(stream(*ANSWER[2:], first=stream(*ANSWER[:2], "x")[:-1], epoch=2, kept=ANSWER[:2]))
    ),
    "an attempt that goes on": history(
        client=streamed(
            [*stream(*ANSWER[:5])[:-1], *([f"2-{n}", "job.delta", c, 0] for n, c in enumerate(ANSWER[5:], 6))]
        )
    ),
    "a stream that was cut for good": history(client=streamed(stream(*ANSWER)[:7])),
    "a partial output of an expired job": bare(
        ended(
            "expired",
            "deadline_exceeded",
            text=ANSWER[:3],
            stored_text=ANSWER[:3],
            deadline_at=101.5,
            completed_at=101.6,
        ),
        DEADLINE,
    ),
    "poison that fails as poison": bare(ended("failed", "poison", prompt=POISON.prompt, crashes=3), POISON),
    "poison on a worker that knows no marks": bare(
        replace(JOB, prompt=POISON.prompt, text=answer(POISON.prompt, 24), stored_text=answer(POISON.prompt, 24)),
        POISON,
        attempts=[Attempt("job_1", 1, "old-1@vm:9:boot", 100.2, 101.0, "succeeded")],
    ),
    "an order that was refused": history(
        None,
        client=[{"kind": "order", **asdict(ORDER)}, {"kind": "refused", "n": 1, "status": 429, "code": "queue_full"}],
        hooks=[],
    ),
    "a webhook that came twice": history(hooks=[hook(answer="500"), hook()]),
}


@pytest.mark.parametrize("harmless", GOOD.values(), ids=GOOD.keys())
def test_it_does_not_cry_wolf(harmless: History) -> None:
    assert check(harmless).broken == {}


def test_a_kill_is_what_a_process_died_of() -> None:
    exits = [KILL, {**KILL, "member": "api"}, {**KILL, "code": 86}, {**KILL, "code": 70}, {**KILL, "code": 0}]
    assert check(history(nemesis=exits)).kills == {"worker": 1, "api": 1, "engine": 2}


def test_recovery_is_counted_from_the_death() -> None:
    attempts = [
        Attempt("job_1", 1, "worker-1@vm:7:boot", 100.2, 103.5, "worker_lost"),
        Attempt("job_1", 2, "worker-2@vm:8:boot", 104.0, 105.0, "succeeded"),
    ]
    (found,) = recoveries(history(attempts=attempts))
    assert found == pytest.approx((3.0, 3.5))


def test_the_report_counts_what_was_broken() -> None:
    damaged = history(replace(JOB, terminal_events=("succeeded", "failed")), hooks=[hook(), hook()])
    report = report_of(damaged, check(damaged), seed=4, duration_s=1.25)
    assert (report["duplicate_terminal"], report["lost"], report["kills"]) == (1, 0, {"worker": 1})
    assert report["webhook_calls"] == {"unique": 1, "duplicate": 1}
    assert report["broken"] == {"duplicate_terminal": 1}


@pytest.mark.parametrize(("status", "broken"), [(500, {"internal_errors": 1}), (503, {})])
def test_an_answer_of_500_is_a_violation_where_it_is_forbidden(status: int, broken: dict[str, int]) -> None:
    answer_of: Json = {"kind": "server_error", "n": 1, "status": status, "port": 8000, "path": "jobs"}
    found = history(client=[*history().client, answer_of])
    assert check(found, forbids_500=True).broken == broken
    assert check(found).broken == {}
    assert report_of(found, check(found), seed=4, duration_s=1.0)["server_errors"] == {str(status): 1}


def test_a_reader_holds_what_was_not_voided() -> None:
    reading = read_stream(stream("c", "d", first=stream("a", "b")[:-1], epoch=2))
    assert (reading.text, reading.ended, reading.num_restarts, reading.broken) == ("cd", "succeeded", 1, [])


def test_orders_are_the_seeds() -> None:
    def first(seed: int) -> list[Order]:
        return [one for one, _ in zip(orders(seed), range(200), strict=False)]

    assert first(3) == first(3) != first(4)
    wanted = first(3)
    assert {one.follow for one in wanted} == {"stream", "poll", "forget"}
    assert all(
        any(getattr(one, name) is not None for one in wanted) for name in ("deadline_ms", "cancel_after_s", "hook")
    )
    assert len({one.prompt for one in wanted}) == 200
    assert order.__doc__
