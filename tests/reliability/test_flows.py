"""Jobs of three steps while their worker is killed around the end of a step: each step ends once, in its order."""

from typing import Any

from tests.processes import wait_for
from tests.reliability.conftest import Report
from tests.reliability.jobs import answer, check_ended_once
from tests.reliability.rig import Stack
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


def test_each_step_ends_once_when_its_worker_is_killed(stack: Stack, is_full: bool, report: Report) -> None:
    num_flows = 200 if is_full else 8
    stack.register(MODEL)
    _, client = stack.api()
    # Two deaths at most: with three a step that was there each time would be taken for their cause.
    points = ("flow.before_commit=kill@2", "finish.committed=kill@4")
    worker = stack.worker(MODEL, arm=in_turn(*points))
    stack.dispatcher()
    sent = [
        client.insist("POST", "/v1/jobs", json=flow(number), headers={"Idempotency-Key": f"flow {number}"})
        for number in range(num_flows)
    ]
    assert {one.status_code for one in sent} == {202}, sent[0].text
    ids = [one.json()["id"] for one in sent]

    def is_over() -> bool:
        still_open = stack.query("SELECT id FROM jobs WHERE state IN ('queued', 'running')")
        return not still_open

    wait_for(is_over, lambda: f"all steps ended: {stack.query('SELECT step, state, error FROM jobs')}", 300)
    rows = stack.query("SELECT id, parent_id, step, state, output ->> 'text' AS text FROM jobs ORDER BY id")
    for number, job_id in enumerate(ids):
        found = {row.step: row.text for row in rows if job_id in (row.id, row.parent_id)}
        expected = texts(number)
        assert found == {**dict(zip(NAMES, expected, strict=True)), None: expected[-1]}
    figures = check_ended_once(stack, [row.id for row in rows if row.parent_id is not None])
    ends = stack.query("SELECT job_id, count(*) AS n FROM job_events WHERE kind = 'succeeded' GROUP BY job_id")
    assert {row.n for row in ends} == {1}
    assert len(ends) == 4 * num_flows
    report("F1", seed=0, flows=num_flows, steps=len(rows) - num_flows, kills=len(worker.exits), **figures)
    assert len(worker.exits) == len(points)
    client.close()
