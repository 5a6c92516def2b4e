"""Prompt templates on every face: what the model is given, what the job records, and what is refused."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from openai import OpenAI

from store.db.database import Database
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.scripted_worker import ScriptedWorker

VALUES = {"city": "Rome", "sights": ["forum", "<b>"]}
TEMPLATE: dict[str, Any] = {
    "name": "guide",
    "instructions": "You know {{ city }}.",
    "messages": [
        {"role": "user", "content": "{% for one in sights %}- {{ one }}\n{% endfor %}"},
        {"role": "assistant", "content": "Noted."},
    ],
    "variables": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 40},
            "sights": {"type": "array", "items": {"type": "string"}, "default": []},
        },
    },
}
MADE = ["You know Rome.", "- forum\n- <b>\n", "Noted."]
HI = [{"role": "user", "content": "hi"}]
MakeClient = Callable[[str], httpx2.Client]


@pytest.fixture
def guide(api: httpx2.Client) -> dict[str, Any]:
    made = api.post("/v1/prompts", json=TEMPLATE)
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def reference(**changes: Any) -> dict[str, Any]:
    return {"id": "guide", "variables": VALUES, **changes}


def job_of(**source: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": source, "sampling": {"max_tokens": 4}}


def contents(payload: dict[str, Any]) -> list[str]:
    return [one["content"] for one in payload["input"]["messages"]]


def test_every_face_gives_the_model_the_same_and_says_so(
    api: httpx2.Client, openai: OpenAI, anthropic_client: anthropic.Anthropic, worker: ScriptedWorker, guide: Any
) -> None:
    seen: list[Any] = []
    use = {"id": guide["id"], "name": "guide", "version": 1, "digest": guide["digest"]}
    job = api.post("/v1/jobs", json=job_of(template=reference(), messages=HI))
    assert (job.status_code, job.json()["template"]) == (202, use)
    alone = api.post("/v1/jobs", json=job_of(template=reference(id="guide@1"))).json()
    ask: Any = {"extra_body": {"prompt": reference()}}
    with worker.serve(lambda payload: seen.append(payload) or ["x"]):  # type: ignore[func-returns-value]
        chat: Any = openai.chat.completions.create(model="tiny", messages=HI, max_tokens=4, **ask)  # type: ignore[arg-type]
        text: Any = openai.completions.create(model="tiny", prompt="", max_tokens=4, **ask)
        response: Any = openai.responses.create(model="tiny", input="hi", max_output_tokens=16, **ask)
        message: Any = anthropic_client.messages.create(model="tiny", messages=HI, max_tokens=4, **ask)  # type: ignore[arg-type]
        for made in (job.json(), alone):
            assert api.get(f"/v1/jobs/{made['id']}", params={"wait": 20}).json()["status"] == "succeeded"
    assert sorted(map(contents, seen)) == sorted([[*MADE, "hi"]] * 4 + [MADE] * 2)
    assert [one["template"] for one in seen] == [use] * 6
    assert [dict(one.template) for one in (chat, text, response, message)] == [use] * 4
    assert response.prompt.version == "1"


def test_a_batch_line_uses_a_template(api: httpx2.Client, guide: Any) -> None:
    body = {"model": "tiny", "prompt": reference(), "max_tokens": 4}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body})
    form: Any = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", line.encode())}}
    file_id = api.post("/v1/files", **form).json()["id"]
    new = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert api.post("/v1/batches", json=new).status_code == 200
