"""Jobs of the tasks beside ``generate``: a small one of each, from the example of its documentation."""

from copy import deepcopy
from typing import Any

from headrace.models.catalog import register
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from headrace.store.tasks.registry import TASKS
from tests.reliability.client import Client
from tests.reliability.rig import Stack
from tests.signals import audio_file, spoken

POINTS = (
    "message.taken",
    "claim.done",
    "batch.midway",
    "finish.before",
    "finish.committed",
    "renew.before",
    "drain.midway",
)
CALLED = "call_tool"
"""The task that no engine computes: it has no passes, so a fault cannot come between two or beside one."""

STREAMED = "transcribe"
"""The task whose results are a stream, with a failpoint more."""

OTHERS = tuple(name for name, task in TASKS.items() if name != "generate" and (task.fake_runner or task.served_by))
SLOW_MS = 3000
"""A pass of the cells whose fault happens beside it."""


def points_of(task: str) -> tuple[str, ...]:
    """Return the failpoints that a worker passes with jobs of a task."""
    if task == CALLED:
        return tuple(point for point in POINTS if point not in {"batch.midway", "renew.before"})
    return (*POINTS, "stream.published") if task == STREAMED else POINTS


def register_for(stack: Stack, task: str, model: str) -> None:
    """Register a model without weights that serves the task."""
    spec = TASKS[task]
    runner = spec.fake_runner or TASKS[spec.served_by[0]].fake_runner
    register(stack.db, model, runner, "auto", actor="tests")


def body_of(client: Client, task: str, model: str) -> dict[str, Any]:
    """Return the body of a job. The file of a transcription is uploaded first."""
    example = next(iter(TASKS[task].examples.values()))
    body: dict[str, Any] = deepcopy(example["value"]) | {"model": model}
    if "images" in body["input"]:
        # An image on another server would need the network.
        body["input"]["images"] = [one for one in body["input"]["images"] if one.startswith("data:")]
    if task == STREAMED:
        sound = audio_file(spoken([1.5] * 3, 16_000), kind="FLAC")
        files = {"file": ("tones.flac", sound)}
        uploaded = client.insist("POST", "/v1/files", files=files, data={"purpose": "user_data"}).json()
        body["input"] = {"file_id": uploaded["id"]}
    return body


def submit(client: Client, body: dict[str, Any], key: str) -> str:
    """Submit until it is accepted; return the job's id."""
    response = client.insist("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def check_same_output(jobs: list[Job], calm: Job) -> None:
    """Each job has the output of one that nothing happened to."""
    assert calm.state is JobState.SUCCEEDED, calm.error
    assert calm.attempt == 1
    for job in jobs:
        assert (job.state, job.output) == (JobState.SUCCEEDED, calm.output), (job.id, job.attempt, job.error)
