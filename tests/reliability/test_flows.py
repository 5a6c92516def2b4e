"""Jobs of three steps while processes are killed at the boundaries of steps: each step ends once, in its order.

With ``--full`` 501 jobs and three seeds; else a few jobs and kills.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from signal import SIGKILL
from typing import Any

import pytest

from tests.processes import wait_for
from tests.reliability.client import Seen
from tests.reliability.conftest import Report
from tests.reliability.jobs import answer, check_ended_once
from tests.reliability.rig import LONG_LEASE_S, WAIT_S, Stack
from tests.reliability.test_batches import in_turn

MODEL = "flowing"
NUM_TOKENS = 6
NAMES = ("first", "second", "third")


def flow(number: int) -> dict[str, Any]:
    """Three steps, each of which goes on with the text of the one before."""
    sources = ({"$from": "input.text"}, {"$from": "first.output.text"}, {"$from": "second.output.text"})
    steps = [
        {
            "name": name,
            "model": MODEL,
            "needs": NAMES[:index][-1:],
            "input": {"prompt": source},
            "sampling": {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True},
        }
        for index, (name, source) in enumerate(zip(NAMES, sources, strict=True))
    ]
    return {"input": {"text": f"story {number}"}, "steps": steps}


def texts(number: int) -> list[str]:
    """What the steps answer without faults."""
    first = answer(f"story {number}", NUM_TOKENS)
    second = answer(first, NUM_TOKENS)
    return [first, second, answer(second, NUM_TOKENS)]


def points_of(seed: int, names: Sequence[str], num_kills: int, least: int, most: int) -> list[str]:
    """Where the lives of a process end, at boundaries that a seed chooses."""
    random = Random(seed)
    return [f"{random.choice(names)}=kill@{random.randint(least, most)}" for _ in range(num_kills)]


@dataclass
class Kills:
    """The failpoints of each life of the processes."""

    api: Sequence[str] = ()
    worker: Sequence[str] = ()
    dispatcher: Sequence[str] = ()


# Two deaths of the worker at most: with three a step that was there each time would be taken for their cause.
FEW = Kills(worker=("flow.before_commit=kill@2", "finish.committed=kill@4"))
AT_A_STEP = ("claim.done", "flow.noting", "batch.midway", "finish.before", "flow.before_commit", "finish.committed")
FULL_SEEDS = (43_101, 43_102, 43_103)


def many(seed: int) -> Kills:
    """Kills at every boundary. Between two of a worker enough ends that no step is there three times."""
    return Kills(
        api=points_of(seed, ("accept.before_commit", "accept.committed"), 4, 5, 40),
        worker=points_of(seed + 1, (*AT_A_STEP, "stream.published"), 12, 25, 60),
        dispatcher=points_of(seed + 2, ("hint.before_publish", "sweep.midway"), 4, 1, 8),
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seed", [FULL_SEEDS[0], *(pytest.param(seed, marks=pytest.mark.full) for seed in FULL_SEEDS[1:])]
)
def test_each_step_ends_once_whoever_is_killed(stack: Stack, is_full: bool, report: Report, seed: int) -> None:
    num_flows, kills = (167, many(seed)) if is_full else (8, FEW)
    stack.register(MODEL)
    api, client = stack.api(arm=in_turn(*kills.api), lease_s=LONG_LEASE_S)
    worker = stack.worker(MODEL, arm=in_turn(*kills.worker), lease_s=LONG_LEASE_S)
    dispatcher = stack.dispatcher(arm=in_turn(*kills.dispatcher), lease_s=LONG_LEASE_S)
    with ThreadPoolExecutor(16) as readers:
        ids: list[str] = []
        streams: list[Future[Seen]] = []
        for number in range(num_flows):
            key = {"Idempotency-Key": f"flow {number}"}
            sent = client.insist("POST", "/v1/jobs", json=flow(number), headers=key)
            assert sent.status_code == 202, sent.text
            ids.append(sent.json()["id"])
            if number % 4 == 0:
                streams.append(readers.submit(client.follow, ids[-1]))
        open_steps = "SELECT step, state, error FROM jobs WHERE state IN ('queued', 'running')"
        wait_for(lambda: not stack.query(open_steps), lambda: f"all ended: {stack.query(open_steps)[:9]}", 600)
        seen = [stream.result(WAIT_S) for stream in streams]
    figures = check_flows(stack, ids)
    splices = check_streams(seen)
    exits = {"api": api.exits, "worker": worker.exits, "dispatcher": dispatcher.exits}
    assert splices == 0
    report("F1", seed=seed, flows=num_flows, readers=len(seen), splices=splices, **figures, kills=exits)
    # Each death is that of a failpoint.
    assert {code for codes in exits.values() for code in codes} == {-SIGKILL}
    assert len(worker.exits) >= 2
    client.close()


def check_flows(stack: Stack, ids: Sequence[str]) -> dict[str, int]:
    """Each flow and each step is there once, succeeded once, and has the text that it has without faults."""
    rows = stack.query("SELECT id, parent_id, step, state, output ->> 'text' AS text, error FROM jobs ORDER BY id")
    assert len(rows) == 4 * len(ids)
    assert {row.state for row in rows} == {"succeeded"}, [row for row in rows if row.state != "succeeded"]
    for number, job_id in enumerate(ids):
        found = {row.step: row.text for row in rows if job_id in (row.id, row.parent_id)}
        expected = texts(number)
        assert found == {**dict(zip(NAMES, expected, strict=True)), None: expected[-1]}
    figures = check_ended_once(stack, [row.id for row in rows if row.parent_id is not None])
    ends = stack.query("SELECT job_id, count(*) AS n FROM job_events WHERE kind = 'succeeded' GROUP BY job_id")
    assert ({row.n for row in ends}, len(ends)) == ({1}, 4 * len(ids))
    noted = stack.query("SELECT detail ->> 'job' AS id FROM job_events WHERE kind = 'step_finished'")
    assert len({row.id for row in noted}) == len(noted) == 3 * len(ids)
    order = "SELECT parent_id, step FROM jobs WHERE parent_id IS NOT NULL ORDER BY parent_id, completed_at"
    assert [row.step for row in stack.query(order)] == [*NAMES] * len(ids)
    return {**figures, "steps": 3 * len(ids), "steps_ended_twice": 0}


def check_streams(seen: Sequence[Seen]) -> int:
    """Each reader got each end of a step once, in order, and the text of the answer; return the splices."""
    for one in seen:
        assert one.is_ordered, one.cursors
        assert [name for kind, name in one.steps if kind == "step.finished"] == [*NAMES]
        assert {name for kind, name in one.steps if kind == "step.started"} == {*NAMES}
    return sum(one.text != (one.end or {})["output"]["text"] for one in seen)
