"""Several answers of one job: each has its own policy, calls and end; they share a stream and a cancel."""

import json
import threading
from typing import Any

from headrace.models.engine.runner import StepPlan
from headrace.store.jobs import jobs
from headrace.store.streams.stream_log import stream_key
from tests.features.policy.test_output_policy import ASK, SECRET, Stage
from tests.features.policy.test_output_policy import stage as stage
from tests.processes import wait_for
from tests.producer_api.calling import parse

ENDLESS = ["more "] * 6000


def submitted(stage: Stage, *answers: list[str], **changes: Any) -> str:
    """Ask for these answers in one job; return its id."""
    prompts = [f"{number} {stage.runner.script(pieces)}" for number, pieces in enumerate(answers)]
    body = {"model": "fake", "input": {"prompts": prompts}, "sampling": {"temperature": 0}, **changes}
    response = stage.api.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def slowed(stage: Stage) -> threading.Event:
    """Let steps of long answers take 20 ms until the event is set, so that a test can act while they run."""
    may_go = threading.Event()

    def wait(plan: StepPlan) -> None:
        if any(len(row.output) > 20 for row in plan.rows):
            may_go.wait(0.02)

    stage.runner.fault = wait
    return may_go


def both_long_ones_run(stage: Stage, job_id: str) -> bool:
    """Return True once the short answer has ended and the two long ones have a part of theirs."""
    return stage.redis.xlen(stream_key(job_id)) > 60 and stage.runtime.engine.stats().running == 2


def streamed(stage: Stage, job_id: str, after: str = "") -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the events of a stream, and the data of its deltas; the numbers have no gap."""
    raw = stage.api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": after} if after else {}).content
    events = [event for event in parse(raw) if event.name != "job.queued"]
    deltas = [event for event in events if event.name == "job.delta"]
    first = int(after.rpartition("-")[2] or 0) + 1
    assert [event.id for event in deltas] == [f"1-{number}" for number in range(first, first + len(deltas))]
    return [event.name for event in events], [event.data for event in deltas]


def by_choice(deltas: list[dict[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for delta in deltas:
        texts[delta["choice"]] = texts.get(delta["choice"], "") + delta["text"]
    return texts


def test_a_policy_guards_each_choice_by_itself(stage: Stage) -> None:
    stage.rule({"id": "pii", "kinds": ["email"], "action": "redact", "stage": "output"})
    job_id = submitted(stage, ["Ask bob.uni", "que@example.com", " now."], ["example.com", " is a site."], n=2)
    job = stage.ended(job_id)
    texts = [choice["text"] for choice in job["output"]["choices"]]
    assert texts == ["Ask <EMAIL_1> now."] * 2 + ["example.com is a site."] * 2
    assert [len(choice.get("policy", ())) for choice in job["output"]["choices"]] == [1, 1, 0, 0]
    assert (job["output"]["text"], job["status"]) == (texts[0], "succeeded")
    names, deltas = streamed(stage, job_id)
    assert (names[0], names[-1]) == ("job.started", "job.succeeded")
    assert by_choice(deltas) == dict(enumerate(texts))
    assert sorted(delta["choice"] for delta in deltas if "finish_reason" in delta) == [0, 1, 2, 3]
    assert "".join(stage.frames(job_id)) == "".join(delta["text"] for delta in deltas)
    assert SECRET not in stage.stored()
    # From any place in the stream the rest comes, and nothing else.
    assert streamed(stage, job_id, after="1-3")[1] == deltas[3:]


def test_each_choice_has_its_own_calls(stage: Stage) -> None:
    call = json.dumps({"name": "mail", "parameters": {"to": "bob"}})
    asked: Any = {
        "model": "fake",
        "messages": [{"role": "user", "content": stage.runner.script([call[:9], call[9:]])}],
        "tools": [ASK],
        "n": 2,
    }
    whole = [choice.message.tool_calls or [] for choice in stage.openai.chat.completions.create(**asked).choices]
    assert stage.runtime.engine.stats().cached_tokens > 0, "they share the blocks of their prompt"
    chunks = list(stage.openai.chat.completions.create(**asked, stream=True))
    assert len({each[0].id for each in whole}) == 2
    for index in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert (own[0].delta.role, own[-1].finish_reason) == ("assistant", "tool_calls")
        assert sum(bool(choice.delta.role) for choice in own) == 1
        parts = [one.function for choice in own for one in choice.delta.tool_calls or [] if one.function]
        assert json.loads("".join(part.arguments or "" for part in parts)) == {"to": "bob"}


def test_a_cancel_ends_all_choices_that_still_run(stage: Stage) -> None:
    slowed(stage)
    job_id = submitted(stage, ["short"], ENDLESS, ENDLESS)
    wait_for(lambda: both_long_ones_run(stage, job_id), "all of them run")
    stage.api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    job = stage.ended(job_id)
    choices = job["output"]["choices"]
    assert (job["status"], [choice["finish_reason"] for choice in choices]) == (
        "cancelled",
        ["stop", "cancelled", "cancelled"],
    )
    assert choices[0]["text"] == "short"
    assert all(choice["text"].startswith("more ") for choice in choices[1:])
    assert job["usage"]["output_tokens"] >= 2 + sum(choice["text"].count("more") for choice in choices)
    assert by_choice(streamed(stage, job_id)[1]) == {number: choice["text"] for number, choice in enumerate(choices)}
    wait_for(lambda: stage.runtime.engine.stats().running == 0, "the engine has none of them")
    stored = jobs.stored_deltas(stage.bench.db, stage.bench.tenant_id, job_id)
    assert stored is not None
    assert [mark.choice for mark in stored.marks if mark.end is not None] == [0]


def test_choices_that_are_handed_on_continue_and_an_ended_one_does_not_run_again(stage: Stage) -> None:
    may_go = slowed(stage)
    long = [f"{number} " for number in range(1000)]
    job_id = submitted(stage, ["short"], long, long, sampling={"temperature": 0, "logprobs": 0})
    wait_for(lambda: both_long_ones_run(stage, job_id), "all of them run")
    steps = stage.runtime.engine.stats().completed
    stage.runtime.hand_on()
    may_go.set()
    job = stage.ended(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert [choice["text"] for choice in job["output"]["choices"]] == ["short", "".join(long), "".join(long)]
    assert job["usage"]["output_tokens"] == 2 + 2 * 1001
    # Two were handed on, and both of them ended: the ended one has not come back.
    assert stage.runtime.engine.stats().completed - steps == 4
    numbers = [choice["logprobs"] for choice in job["output"]["choices"]]
    assert [len(each) for each in numbers] == [1, 1000, 1000]
