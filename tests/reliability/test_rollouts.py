"""A rollout ends under load, its dispatcher is killed while it moves jobs, and the candidate's worker too."""

import signal

import pytest

from headrace.models.fakes.fake import next_token
from headrace.store.registry.models import register_version
from headrace.store.schema.job_states import JobState
from tests.processes import wait_for
from tests.reliability.rig import Stack, once

MODEL = "rolling"
NUM_TOKENS = 40


def answer(prompt: str) -> str:
    tokens: list[int] = []
    while len(tokens) < NUM_TOKENS:
        tokens.append(next_token(prompt.encode(), tokens, ends=False))
    return bytes(tokens).decode()


def two_versions(stack: Stack) -> None:
    stack.register(MODEL)
    register_version(
        stack.db,
        model=MODEL,
        runner="fake",
        source="fake",
        digest="1" * 64,
        dtype="none",
        context_window=8192,
        files={},
        actor="tests",
    )


@pytest.mark.full
def test_a_roll_back_under_load_fails_no_job_and_mixes_no_answer(stack: Stack) -> None:
    two_versions(stack)
    stack.worker(f"{MODEL}@1")
    candidate = stack.worker(f"{MODEL}@2", max_slots=2, fake_step_ms=100)  # it has jobs left when it is killed
    dispatcher = stack.dispatcher(arm=once("rollout.moving=kill"))
    _, client = stack.api()
    candidate.wait_ready()
    body = {"model": MODEL, "version": 2, "steps": [{"percent": 50, "hold_s": 3600}]}
    rollout = client.insist("POST", "/v1/rollouts", json=body).json()
    prompts = [f"{number}: tell me of the mill" for number in range(48)]
    ids = [client.submit(MODEL, text, NUM_TOKENS, user=f"user {text}") for text in prompts[:40]]
    emitting = "SELECT id FROM jobs WHERE state = 'running' AND model_version = 2"
    wait_for(lambda: stack.query(emitting), "the candidate runs jobs")
    assert client.insist("POST", f"/v1/rollouts/{rollout['id']}/abort").json()["state"] == "aborted"
    candidate.signal(signal.SIGKILL)
    ids += [client.submit(MODEL, text, NUM_TOKENS, user=f"user {text}") for text in prompts[40:]]
    ended = {job.id: job for job in stack.wait_ended(ids)}
    assert [ended[job_id].state for job_id in ids] == [JobState.SUCCEEDED] * len(ids)
    assert [(ended[job_id].output or {})["text"] for job_id in ids] == [answer(text) for text in prompts]
    moved = {row.job_id for row in stack.query("SELECT job_id FROM job_events WHERE kind = 'moved'")}
    assert moved, "otherwise the test shows nothing"
    assert all(ended[job_id].model_version == 1 for job_id in moved)
    assert dispatcher.exits, "it was killed while it moved them"
    streams = stack.query(
        "SELECT restarts_after, lineage FROM jobs JOIN job_streams ON job_id = id WHERE restarts_after IS NOT NULL"
    )
    assert len(streams) == len(moved)
    assert all(row.lineage[0][0] > row.restarts_after for row in streams), "no attempt continues the candidate's"
    client.close()
