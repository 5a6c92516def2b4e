"""A batch while everything that works on it is killed: in the end every line of its input has one of its output."""

import json
from typing import Any

import pytest

from tests.processes import wait_for
from tests.reliability.client import Client
from tests.reliability.conftest import Report
from tests.reliability.jobs import check_ended_once
from tests.reliability.rig import LONG_LEASE_S, Arm, Stack

MODEL = "batched"
URL = "/v1/chat/completions"


def in_turn(*failpoints: str) -> Arm:
    """Arm each life with the next of these; the lives after them with none."""
    return lambda life: failpoints[life] if life < len(failpoints) else ""


@pytest.mark.full
def test_every_line_is_answered_once_whoever_is_killed(stack: Stack, is_full: bool, report: Report) -> None:
    num_lines = 2000 if is_full else 150
    stack.register(MODEL)
    api_points = ["lines.committed=kill@1", "results.before_commit=kill@1"]
    if is_full:
        more = ["lines.before_commit=kill@2", "lines.committed=kill@8", "lines.before_commit=kill@7"]
        api_points = [*more, "lines.committed=kill@5", *api_points]
    api, client = stack.api(arm=in_turn(*api_points), lease_s=LONG_LEASE_S)
    # Two deaths of a worker at most: three would make a job that was there each time a suspect of having caused them.
    deaths = in_turn("finish.committed=kill@4", "batch.midway=kill@30")
    worker = stack.worker(MODEL, arm=deaths, lease_s=LONG_LEASE_S)
    deaths = in_turn("hint.before_publish=kill@2", "sweep.midway=kill@1")
    dispatcher = stack.dispatcher(arm=deaths, lease_s=LONG_LEASE_S)
    ended = run_batch(client, num_lines)
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": num_lines, "completed": num_lines, "failed": 0}
    output = read(client, ended["output_file_id"])
    assert [line["custom_id"] for line in output] == [f"line {number}" for number in range(num_lines)]
    told = "SELECT id, output ->> 'text' AS text, (payload #>> '{}')::json AS payload FROM jobs"
    jobs = {row.id: row for row in stack.query(told)}
    assert len(jobs) == num_lines, "a line is one job"
    for number, line in enumerate(output):
        job = jobs[line["response"]["request_id"]]
        assert job.payload["input"]["messages"][0]["content"] == f"question {number}"
        assert line["response"]["body"]["choices"][0]["message"]["content"] == job.text
    figures = check_ended_once(stack, list(jobs))
    killed = {name: len(kept.exits) for name, kept in (("api", api), ("worker", worker), ("dispatcher", dispatcher))}
    report("B1", seed=0, lines=num_lines, output_lines=len(output), jobs=len(jobs), kills=killed, **figures)
    assert killed["api"] == len(api_points)
    # A short batch may end before each process was killed twice.
    assert min(killed["worker"], killed["dispatcher"]) >= (2 if is_full else 1)
    client.close()


def run_batch(client: Client, num_lines: int) -> dict[str, Any]:
    """Upload, submit and wait for the end, with retries while the API is down."""
    asked = [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": URL,
            "body": {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"question {number}"}],
                "max_tokens": 6,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for number in range(num_lines)
    ]
    content = "\n".join(map(json.dumps, asked)).encode()
    uploaded = client.insist("POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    assert uploaded.status_code == 200, uploaded.text
    body = {"input_file_id": uploaded.json()["id"], "endpoint": URL, "completion_window": "24h"}
    made = client.insist("POST", "/v1/batches", json=body, headers={"Idempotency-Key": "the batch"})
    assert made.status_code == 200, made.text
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(client.insist("GET", f"/v1/batches/{made.json()['id']}").json())
        return found["status"] in ("completed", "failed", "expired", "cancelled")

    wait_for(has_ended, lambda: f"the batch ended: {found}", 600)
    return found


def read(client: Client, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.insist("GET", f"/v1/files/{file_id}/content").text.splitlines()]
