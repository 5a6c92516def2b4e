"""Steps in a real worker: the end of a step sends the hint of the next one, without a dispatcher."""

from dataclasses import replace

from store.jobs import jobs
from store.jobs.jobs import NewJob
from store.schema.cache_results import UNSERVED_QUEUE
from store.schema.job_states import FLOW_TASK, JobState
from tests.workers.conftest import Bench, StartWorker


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
