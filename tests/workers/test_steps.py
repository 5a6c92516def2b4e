"""Steps in a real worker: the end of a step sends the hint of the next one, without a dispatcher."""

from dataclasses import replace

from headrace.features.policy import policies
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import NewJob
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.payloads.step_payload import REFERENCES, Marks
from headrace.store.schema.job_states import FLOW_TASK, UNSERVED_QUEUE, JobState
from tests.reliability.jobs import answer
from tests.workers.conftest import Bench, StartHost, StartWorker


def test_a_step_that_became_ready_comes_by_a_hint_of_the_worker(bench: Bench, start_worker: StartWorker) -> None:
    # Nobody else brings jobs: there is no dispatcher, and the worker does not take them by itself.
    start_worker(direct_after_s=3600)
    flow = bench.new_job(task=FLOW_TASK, queue=UNSERVED_QUEUE)
    steps: list[NewJob] = []
    for name in ("first", "second", "third"):
        needs = tuple(step.step or "" for step in steps[-1:])
        queue = UNSERVED_QUEUE if needs else bench.queue
        steps.append(bench.new_job(parent_id=flow.id, step=name, needs=needs, queue=queue, announce=not needs))
    jobs.accept(bench.db, [replace(flow, announce=False, steps=tuple(steps), answer_id=steps[-1].id)])
    bench.publish_hints([steps[0].id])
    ended = bench.wait_ended([flow.id, *(step.id for step in steps)])
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    starts = bench.query("SELECT step FROM jobs WHERE parent_id = :id ORDER BY started_at", id=flow.id)
    assert [row.step for row in starts] == ["first", "second", "third"]


def test_a_policy_that_blocks_the_text_of_a_step_fails_the_job_by_its_name(bench: Bench, start_host: StartHost) -> None:
    said = answer("tell me", 16)
    rule = {"id": "no-waits", "action": "block", "stage": "output", "deny": {"patterns": [said.strip()]}}
    policies.put(bench.db, bench.tenant_id, EVERY_MODEL, {"version": 1, "rules": [rule]}, "tests")
    flow, first, second = _two_steps(bench)
    pinned = {"policy": {"model": EVERY_MODEL, "version": 1}}
    steps = (replace(first, payload={**first.payload, **pinned}), second)
    jobs.accept(bench.db, [replace(flow, steps=steps, answer_id=second.id)])
    start_host().run_to_end(first.id)
    ended = bench.job(flow.id)
    assert (ended.state, ended.output) == (JobState.FAILED, None)
    assert ended.error is not None
    assert (ended.error["code"], ended.error["step"]) == ("policy_blocked_output", "first")
    assert bench.job(second.id).state is JobState.CANCELLED
    assert said not in str(bench.job(first.id))


def _two_steps(bench: Bench) -> tuple[NewJob, NewJob, NewJob]:
    flow = bench.new_job(task=FLOW_TASK, queue=UNSERVED_QUEUE, announce=False)
    first = bench.new_job(parent_id=flow.id, step="first", needs=(), prompt="tell me")
    second = bench.new_job(parent_id=flow.id, step="second", needs=("first",), queue=UNSERVED_QUEUE, announce=False)
    return flow, first, second


def test_a_worker_bounds_what_the_references_of_a_step_stand_for_by_its_settings(
    bench: Bench, start_worker: StartWorker
) -> None:
    start_worker(max_body_bytes=1024)
    flow, first, second = _two_steps(bench)
    marks = Marks()
    text = "".join(marks.mark("first.output.text") for _ in range(100))
    payload = {"input": {"prompt": text}, "sampling": {"max_tokens": 8}, REFERENCES: marks.paths}
    jobs.accept(bench.db, [replace(flow, steps=(first, replace(second, payload=payload)), answer_id=second.id)])
    bench.publish_hints([first.id])
    (ended,) = bench.wait_ended([flow.id])
    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert (ended.error["code"], ended.error["step"]) == ("invalid_value", "second")
