"""The rules for flows find each kind of violation in a handwritten history, and the load has flows of each shape."""

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice

import pytest

from tests.chaos.checker import check
from tests.chaos.flows import SHAPES, answers
from tests.chaos.history import Attempt, Delivery, History, Job
from tests.chaos.load import NUM_STEPS, Order, orders, with_flows
from tests.chaos.report import report_of
from tests.chaos.streams import read_stream

PROMPT = "run 1, order 0: tell me of mills."
ORDER = Order(n=0, tenant=0, prompt=PROMPT, max_tokens=24, follow="poll", shape="join")
TEXTS = answers("join", PROMPT, 24)
NAMES = ("left", "right", "both")
ENDED_AT = {"left": 101.0, "right": 102.0, "both": 103.0}


def ended(job: Job, state: str, at: float | None = None, text: str | None = None) -> Job:
    end = {"state": state, "terminal": state, "terminal_events": (state,), "completed_at": at or job.completed_at}
    return replace(job, **end, text=text, stored_text=text)


def step(name: str) -> Job:
    """A step that succeeded."""
    needs = next(one.needs for one in SHAPES["join"] if one.name == name)
    row = Job(id=f"job_{name}", state="", parent="job_f", step=name, needs=needs, num_noted=1, created_at=100.0)
    return replace(ended(row, "succeeded", ENDED_AT[name], TEXTS[name]), used=(5, 24), billed=(5, 24))


FLOW = replace(
    ended(Job(id="job_f", state="", prompt=PROMPT, is_flow=True, created_at=100.0), "succeeded", 103.0, TEXTS["both"]),
    used=(15, 72),
)
STEPS = tuple(map(step, NAMES))
ATTEMPTS = tuple(
    Attempt(f"job_{name}", 1, "worker-1@vm:7:boot", ENDED_AT[name] - 0.9, ENDED_AT[name], "succeeded") for name in NAMES
)


def history(flow: Job = FLOW, **steps: Job | None) -> History:
    """One flow that ended well, with these rows of steps instead."""
    rows = [steps.get(one.step or "", one) for one in STEPS]
    client = [{"kind": "order", **asdict(ORDER)}, {"kind": "accepted", "n": 0, "job": "job_f"}]
    return History(client=client, jobs=[flow], steps=[row for row in rows if row], attempts=ATTEMPTS)


def with_attempts(*more: Attempt) -> History:
    return replace(history(), attempts=[*ATTEMPTS, *more])


def broken(damaged: History) -> set[str]:
    return {*check(damaged, needs_kills=False, needs_stale=False, needs_flows=True).broken}


def again(name: str, started_at: float, ended_at: float | None, outcome: str | None) -> Attempt:
    return Attempt(f"job_{name}", 2, "worker-2@vm:8:boot", started_at, ended_at, outcome)


LEFT, RIGHT, BOTH = STEPS
CANCELLED = ended(FLOW, "cancelled")
WAITED = replace(ended(BOTH, "cancelled"), used=None, billed=None)
BROKEN: dict[str, tuple[str, Callable[[], History]]] = {
    "a step too few": ("flow_ends", lambda: history(left=None)),
    "a flow that succeeded without a step": ("flow_ends", lambda: history(left=ended(LEFT, "failed"))),
    "a flow that failed without a cause": ("flow_ends", lambda: history(ended(FLOW, "failed"))),
    "a flow that ended too early": ("flow_ends", lambda: history(replace(FLOW, completed_at=102.5))),
    "a webhook of a step": (
        "flow_ends",
        lambda: replace(history(), deliveries=[Delivery("evt_1", "job_left", "job.succeeded", "delivered")]),
    ),
    "a flow that ended twice": (
        "duplicate_terminal",
        lambda: history(replace(FLOW, terminal_events=("succeeded", "succeeded"))),
    ),
    "a step that ended twice": (
        "duplicate_terminal",
        lambda: history(left=replace(LEFT, terminal_events=("failed", "succeeded"))),
    ),
    "a step that was noted twice": ("step_ends", lambda: history(left=replace(LEFT, num_noted=2))),
    "a step that was run twice": ("step_ends", lambda: with_attempts(again("left", 100.5, 100.9, "succeeded"))),
    "a step that began after its end": ("step_ends", lambda: with_attempts(again("left", 101.5, 101.9, "worker_lost"))),
    "a step that began too early": (
        "step_order",
        lambda: replace(history(), attempts=[*ATTEMPTS[:2], replace(ATTEMPTS[2], started_at=101.5)]),
    ),
    "a step that began though one failed": ("step_order", lambda: history(right=ended(RIGHT, "failed"))),
    "a step that is open": (
        "flow_stops",
        lambda: history(CANCELLED, both=replace(WAITED, state="running", terminal=None, completed_at=None)),
    ),
    "an attempt that is open": ("flow_stops", lambda: with_attempts(again("both", 102.5, None, None))),
    "an attempt after the end": ("flow_stops", lambda: with_attempts(again("both", 103.5, 104.0, "released"))),
    "a step that waits for ever": (
        "stuck",
        lambda: history(both=replace(BOTH, state="queued", terminal=None, terminal_events=())),
    ),
    "a flow that is billed": ("miscounted", lambda: history(replace(FLOW, billed=(15, 72)))),
    "a step that is not counted": ("miscounted", lambda: history(replace(FLOW, used=(10, 48)))),
    "the text of another step": ("wrong_output", lambda: history(right=replace(RIGHT, text=TEXTS["left"]))),
    "the answer of another step": ("wrong_output", lambda: history(replace(FLOW, text=TEXTS["left"]))),
    "a step that failed unasked": ("innocents", lambda: history(replace(FLOW), left=ended(LEFT, "failed"))),
    "no flow": ("flows", lambda: replace(history(), jobs=[], steps=[])),
}


@pytest.mark.parametrize(("rule", "damaged"), BROKEN.values(), ids=BROKEN.keys())
def test_it_finds(rule: str, damaged: Callable[[], History]) -> None:
    assert rule in broken(damaged())


def test_good_flows_are_good() -> None:
    assert broken(history()) == set()
    # It was cancelled while its last step ran, after an attempt that a dead worker left behind.
    wanted = replace(ORDER, cancel_after_s=1.0)
    left = again("left", 100.5, 101.0, "succeeded")
    attempts = [replace(ATTEMPTS[0], outcome="worker_lost", ended_at=100.4), left, *ATTEMPTS[1:]]
    stopped = history(ended(CANCELLED, "cancelled", text=TEXTS["both"][:3]), both=ended(BOTH, "cancelled"))
    stopped = replace(stopped, attempts=attempts, client=[{"kind": "order", **asdict(wanted)}, *stopped.client[1:]])
    assert broken(stopped) == {"flows"}


def test_the_report_counts_flows() -> None:
    found = report_of(history(), check(history()), seed=1, duration_s=1.0)["flows"]
    assert found == {"jobs": {"succeeded": 1}, "steps": {"succeeded": 3}, "steps_repeated": 0}


def test_a_reader_follows_the_events_of_steps() -> None:
    events = [
        ["0-0", "job.queued", "", 0],
        ["0-0.1", "step.started", "first", 0],
        ["0-0.2", "step.finished", "first", 0],
        ["1-0.2", "job.started", "", 0],
        ["1-0.3", "step.started", "second", 0],
        ["1-1.3", "job.delta", "a", 0],
        ["1-1.4", "step.finished", "second", 0],
        ["1-2.4", "job.succeeded", "", 0],
    ]
    reading = read_stream(events)
    assert (reading.text, reading.ended, reading.broken) == ("a", "succeeded", [])
    lost, twice = events[:2] + events[3:], [*events[:3], ["0-0.3", "step.finished", "first", 0]]
    assert "follows 1 events of steps" in read_stream(lost).broken[0]
    assert "first finished" in read_stream(twice).broken[0]


def test_orders_are_flows_of_each_shape() -> None:
    wanted = [*islice(with_flows(orders(3)), 100)]
    flows = [one for one in wanted if one.shape is not None]
    assert len(flows) == 20
    assert {one.shape for one in flows} == NUM_STEPS.keys() > SHAPES.keys()
    body = replace(flows[0], shape="join").body("http://hooks")
    assert [(one["name"], one["needs"]) for one in body["steps"]] == [
        ("left", ()),
        ("right", ()),
        ("both", ("left", "right")),
    ]
    assert "sampling" not in body
    assert [one for one, plain in zip(wanted, orders(3), strict=False) if one == plain] == [
        one for one in wanted if one.shape is None
    ]
