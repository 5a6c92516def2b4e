"""The playground with a made-up description of the API: the fields of its forms, and the requests that it sends."""

import json
from typing import Any

import pytest

from benchmarks.console.chromium import Tab
from tests.features.console.faked_answers import JOB, JOB_ID
from tests.features.console.faked_api import asked, click, enter, lines, open_faked, sent_body, sse

pytestmark = pytest.mark.timeout(240)

COMMON = {"model": {"type": "string"}, "priority": {"type": "integer"}}
RANK: dict[str, Any] = {
    "properties": {
        "task": {"const": "rank"},
        **COMMON,
        "input": {"$ref": "#/components/schemas/RankInput"},
        "top_n": {"anyOf": [{"type": "null"}, {"type": "integer"}], "description": "how many", "default": 3},
        "cut": {"type": "boolean", "default": True},
    }
}
GENERATE = {"properties": {"task": {"default": "generate"}, **COMMON, "input": {"type": "object"}}}
RANK_INPUT: dict[str, Any] = {
    "required": ["query", "documents"],
    "properties": {
        "query": {"type": "string"},
        "documents": {"type": "array"},
        "how": {"enum": ["fast", "slow"], "type": "string", "default": "slow"},
    },
}
SAMPLING: dict[str, Any] = {
    "stop": {"type": "array"},
    "min_p": {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"type": "null"}]},
    "seed": {"type": "integer", "maximum": 1e16, "description": "same seed, same text"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "max_tokens": {"type": "integer", "minimum": 1},
    "ignore_eos": {"type": "boolean"},
}
EXAMPLE = {"task": "rank", "input": {"query": "Where?", "documents": ["a", "b"]}}
CONTENT = {
    "schema": {"oneOf": [{"$ref": "#/components/schemas/Generate"}, {"$ref": "#/components/schemas/Rank"}]},
    "examples": {"rank": {"value": EXAMPLE}},
}
OPENAPI = {
    "paths": {"/v1/jobs": {"post": {"requestBody": {"content": {"application/json": CONTENT}}}}},
    "components": {
        "schemas": {"Sampling": {"properties": SAMPLING}, "Generate": GENERATE, "Rank": RANK, "RankInput": RANK_INPUT}
    },
}
FIELDS = """[...document.querySelectorAll('form input[type=number], form [data-path]')].map((one) => [
  one.name, one.tagName, one.type, one.value, one.min, one.max, one.step, one.placeholder, one.required,
  one.closest('label').title, one.checked ?? null])"""
RANK_FIELDS = [
    ["task:input.query", "TEXTAREA", "textarea", "Where?", None, None, None, "", True, "", None],
    ["task:input.documents", "TEXTAREA", "textarea", '["a","b"]', None, None, None, "", True, "", None],
    ["task:input.how", "SELECT", "select-one", "", None, None, None, None, False, "", None],
    ["task:top_n", "INPUT", "number", "", "", "", "1", "3", False, "how many", False],
    ["task:cut", "INPUT", "checkbox", "on", "", "", "", "", False, "", True],
]
OF_THE_CONSOLE = {"service_class": "interactive", "metadata": {"from": "console"}}


def test_the_form_of_a_task(tab: Tab) -> None:
    models = {"data": [{"id": "r@1", "task": "rank"}, {"id": "m@3", "task": "generate"}]}
    answers = {"openapi.json": OPENAPI, "GET models": models, "GET models/r@1": {}, "POST jobs": JOB}
    open_faked(tab, "playground", answers, "document.querySelector('[data-path=\"input.query\"]') !== null")
    assert tab.run(FIELDS) == RANK_FIELDS
    enter(tab, {"second": "m@3"}, "Run")
    tab.wait("asked.filter((one) => one[0] === 'POST').length === 2")
    sent = [json.loads(one[2] or "") for one in asked(tab) if one[0] == "POST"]
    assert [one.pop("model") for one in sent] == ["r@1", "m@3"]
    assert sent[0] == sent[1] == {**EXAMPLE, **OF_THE_CONSOLE}
    tab.run("document.querySelector('[data-path=top_n]').value = '2'")
    tab.run("document.querySelector('[data-path=cut]').checked = false")
    tab.run("asked.length = 0; document.querySelector('[data-path=\"input.how\"]').value = 'slow'")
    click(tab, "Run")
    assert sent_body(tab, "jobs") == {
        "task": "rank",
        "input": {"query": "Where?", "documents": ["a", "b"], "how": "slow"},
        "top_n": 2,
        "cut": False,
        "model": "r@1",
        **OF_THE_CONSOLE,
    }
    tab.run("document.querySelector('[data-path=\"input.documents\"]').value = 'a'")
    click(tab, "Run")
    said = "input.documents is no JSON: texts need quotes, and lists brackets."
    tab.wait(f"document.querySelector('.answers [role=alert]')?.innerText === {json.dumps(said)}")


GENERATE_FIELDS = [
    ["max_tokens", "INPUT", "number", "", "1", "", "1", "1,024 at most", False, "", False],
    ["temperature", "INPUT", "number", "", "0", "2", "any", "0.7", False, "", False],
    ["seed", "INPUT", "number", "", "", "", "1", "default", False, "same seed, same text", False],
    ["min_p", "INPUT", "number", "", "0", "1", "any", "default", False, "", False],
]
ANSWER_LINES = [
    "m@3",
    "job",
    "succeeded",
    "Hello",
    "5.0 tokens/s",
    "12.3K in, 21 out",
    "cost no price",
    "ended by length",
]


def playground_answers() -> dict[str, Any]:
    ended = JOB | {"output": {"text": "Hello", "finish_reason": "length"}, "usage": {**JOB["usage"], "cost": None}}
    return {
        "openapi.json": OPENAPI,
        "GET models": {"data": [{"id": "m@3", "task": "generate"}, {"id": "n@1", "task": "generate"}]},
        "GET models/m@3": {"sampling": {"temperature": 0.7}},
        "GET prompts": {"data": [{"id": "pmpt_1", "name": "guide", "version": 2, "variables": ["city"]}]},
        "POST jobs": JOB | {"usage": None, "output": None},
        f"GET jobs/{JOB_ID}/events": [
            sse("job.started", {}),
            sse("job.delta", {"text": "Hel"}),
            sse("job.restarted", {"text": "He"}),
            sse("job.succeeded", ended),
        ],
    }


def test_the_playground(tab: Tab) -> None:
    templates_are_loaded = "document.forms[0]?.template"
    defaults_are_loaded = "document.querySelector('[name=temperature]')?.placeholder === '0.7'"
    open_faked(tab, "playground", playground_answers(), f"{templates_are_loaded} && {defaults_are_loaded}")
    assert tab.run(FIELDS) == GENERATE_FIELDS
    click(tab, "Run")
    alert = tab.wait("document.querySelector('.answers [role=alert]')?.innerText")
    assert alert == "Write a message, or choose a prompt template."
    enter(tab, {"message": "Hi", "system": "Be brief.", "max_tokens": "5", "temperature": "0.5"}, "Run")
    assert sent_body(tab, "jobs") == {
        "input": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
        "sampling": {"max_tokens": 5, "temperature": 0.5},
        "model": "m@3",
        **OF_THE_CONSOLE,
    }
    tab.wait("document.querySelector('.answers [role=status]').innerText === 'succeeded'")
    # The time to the first token is measured by the page.
    assert [line for line in lines(tab, ".answers") if not line.startswith("first token")] == ANSWER_LINES
    tab.run("asked.length = 0; document.querySelector('[name=raw]').checked = true")
    enter(tab, {"system": ""}, "Run")
    assert sent_body(tab, "jobs")["input"] == {"prompt": "Hi"}
