"""An input that is too long, on the faces of the API: refused, or shortened with what was left out in the answer."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.producer_api.calling import error_of
from tests.producer_api.scripted_worker import ScriptedWorker

LONG = "x" * 700
SAMPLING = {"max_tokens": 12}
TURNS: Any = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "last"},
]


@pytest.mark.parametrize("how", [{}, {"truncation": "refuse"}, {"truncation": "disabled"}])
def test_nothing_is_left_out_unasked(api: httpx2.Client, how: dict[str, str]) -> None:
    body = {"model": "tiny", "input": {"prompt": LONG}, "sampling": SAMPLING, **how}
    refused = api.post("/v1/jobs", json=body)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "context_length_exceeded")


def test_a_job_says_what_was_left_out(api: httpx2.Client, worker: ScriptedWorker) -> None:
    body = {"model": "tiny", "input": {"prompt": "a" + LONG + "z"}, "sampling": SAMPLING, "truncation": "left"}
    accepted = api.post("/v1/jobs", json=body)
    assert accepted.headers["headrace-truncated"] == "left; tokens=202; turns=0"
    job = accepted.json()
    assert job["truncated"] == {"strategy": "left", "tokens": 202, "turns": 0}
    attempt = worker.claim(job["id"])
    assert attempt.claim.payload["input"]["prompt"] == "x" * 499 + "z"
    short = api.post("/v1/jobs", json=body | {"input": {"prompt": "short"}})
    assert (short.json()["truncated"], "headrace-truncated" in short.headers) == (None, False)


def test_chats_and_responses_say_it_too(openai: OpenAI, worker: ScriptedWorker) -> None:
    payloads: list[Any] = []

    def reply(payload: dict[str, Any]) -> list[str]:
        payloads.append(payload)
        return ["x"]

    how: Any = {"extra_body": {"truncation": "middle"}}
    told = {"strategy": "middle", "turns": 1}
    with worker.serve(reply):
        chat: Any = openai.chat.completions.with_raw_response.create(model="tiny", messages=TURNS, max_tokens=12, **how)
        response: Any = openai.responses.create(model="tiny", input=TURNS, max_output_tokens=12, **how)
    assert chat.headers["headrace-truncated"].startswith("middle; tokens=")
    for answer in (chat.parse(), response):
        assert {name: answer.truncated[name] for name in told} == told
        assert answer.truncated["tokens"] > 200
    assert [one["content"] for one in payloads[0]["input"]["messages"]] == ["be brief", "last"]


@pytest.mark.parametrize(
    ("source", "how", "said"),
    [
        ({"prompt": LONG}, "oldest_turns", "`messages`"),
        ({"prompt": LONG}, "right", "oldest_turns"),
        ({"messages": TURNS[1:2]}, "oldest_turns", "shorten"),
    ],
)
def test_what_cannot_be_done_is_refused(api: httpx2.Client, source: dict[str, Any], how: str, said: str) -> None:
    body = {"model": "tiny", "input": source, "sampling": SAMPLING, "truncation": how}
    refused = api.post("/v1/jobs", json=body)
    assert refused.status_code in (400, 422)
    assert said in error_of(refused)["message"]
