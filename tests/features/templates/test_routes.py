"""Prompt templates on every face: what the model is given, what the job records, and what is refused."""

import json
import tracemalloc
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.registry import prompt_templates
from tests.cases import of
from tests.processes import wait_for
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.conftest import CONTEXT_WINDOW, MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.refusals import Naming

VALUES = {"city": "Rome {{ sights }}", "sights": ["forum", "<b>"]}
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
            "sights": {"type": "array", "items": {"type": "string"}, "default": ["none"]},
        },
    },
}
MADE = ["You know Rome {{ sights }}.", "- forum\n- <b>\n", "Noted."]
HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": HI, "max_tokens": 4}


@pytest.fixture
def guide(api: httpx2.Client) -> dict[str, Any]:
    made = api.post("/v1/prompts", json=TEMPLATE)
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def naming(**changes: Any) -> dict[str, Any]:
    return {"id": "guide", "variables": VALUES, **changes}


def job_of(**source: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": source, "sampling": {"max_tokens": 4}}


def contents(payload: dict[str, Any]) -> list[str]:
    return [one["content"] for one in payload["input"]["messages"]]


def test_every_face_gives_the_model_the_same_and_says_so(
    api: httpx2.Client, worker: ScriptedWorker, guide: dict[str, Any]
) -> None:
    seen: list[Any] = []

    def reply(payload: dict[str, Any]) -> list[str]:
        seen.append(payload)
        return ["x"]

    prompt = naming()
    use = {"id": guide["id"], "name": "guide", "version": 1, "digest": guide["digest"]}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/jobs", job_of(template=prompt, messages=HI)),
        ("/v1/chat/completions", CHAT | {"prompt": prompt}),
        ("/v1/responses", {"model": "tiny", "input": "hi", "prompt": prompt, "max_output_tokens": 4}),
        *of("anthropic", ("/v1/messages", CHAT | {"prompt": prompt})),
        # Without messages of its own.
        ("/v1/jobs", job_of(template=naming(id="guide@1"))),
        ("/v1/completions", {"model": "tiny", "prompt": naming(version="1"), "max_tokens": 4}),
    ]
    with worker.serve(reply):
        answers = [api.post(path, json=body, headers={"Prefer": "wait=20"}) for path, body in bodies]
        assert [answer.status_code for answer in answers] == [200] * len(bodies), [answer.text for answer in answers]
    assert [contents(payload) for payload in seen] == [[*MADE, "hi"]] * (len(bodies) - 2) + [MADE] * 2
    assert [payload["template"] for payload in seen] == [use] * len(bodies)
    assert {payload["input"]["special_tokens"] for payload in seen} == {"text"}
    assert [answer.json()["template"] for answer in answers] == [use] * len(bodies)
    assert answers[2].json()["prompt"]["version"] == "1"


def test_versions_aliases_and_names(
    api: httpx2.Client, make_client: MakeClient, other_key: str, guide: dict[str, Any]
) -> None:
    def text_of(reference: str, **changes: Any) -> str:
        made = api.post(f"/v1/prompts/{reference}/render", json={"variables": {"x": "v"}, **changes})
        assert made.is_success, made.text
        return f"{made.json()['template']['version']} {made.json()['text']}"

    first = {"name": "say", "text": "one {{ x }}", "variables": ["x"]}
    said = api.post("/v1/prompts", json=first).json()
    assert error_of(api.post("/v1/prompts", json=first))["param"] == "name"
    assert api.post("/v1/prompts/say/versions", json={"text": "two {{x}}", "variables": ["x"]}).json()["version"] == 2
    assert (text_of("say"), text_of(said["id"]), text_of("say@1")) == ("2 two v", "2 two v", "1 one v")
    for alias in ("default", "live"):
        named = api.put(f"/v1/prompts/say/aliases/{alias}", json={"version": 1})
        assert (named.json()["version"], alias in named.json()["aliases"]) == (1, True)
    for wrong in (0, "1", 1.5, None):
        refused = api.put("/v1/prompts/say/aliases/live", json={"version": wrong})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "version")
    assert (text_of("say"), text_of("say@live"), text_of("say", version=2)) == ("1 one v", "1 one v", "2 two v")
    assert api.delete("/v1/prompts/say/aliases/default").status_code == 204
    assert api.get("/v1/prompts/say").json()["version"] == 2
    stranger = make_client(other_key)
    assert stranger.get("/v1/prompts/say").status_code == 404
    assert stranger.post("/v1/jobs", json=job_of(template={"id": said["id"]})).status_code == 404
    assert stranger.post("/v1/prompts", json=first).status_code == 201
    assert api.delete("/v1/prompts/say").json() == {"id": said["id"], "object": "prompt", "deleted": True}
    assert [one["name"] for one in api.get("/v1/prompts").json()["data"]] == ["guide"]
    for gone in ("say", "guide@7", "guide@live"):
        refused = api.post("/v1/jobs", json=job_of(template=naming(id=gone)))
        assert (refused.status_code, error_of(refused)["param"]) == (404, "input.template")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"template": naming(variables={})}, "input.template.variables", "a value for city"),
    ({"template": naming(variables=VALUES | {"town": "x"})}, "input.template.variables", "no variable town"),
    ({"template": naming(variables=VALUES | {"city": 7})}, "input.template.variables.city", "string"),
    ({"template": naming(variables=VALUES | {"sights": ["a", None]})}, "input.template.variables.sights.1", "string"),
    ({"template": naming(id="guide@1", version=1)}, "input.template.version", "leave out `version`"),
    ({"template": naming(), "prompt": "x"}, "input", "goes with `messages`"),
    ({"template": {"id": "raw"}, "messages": HI}, "input.messages", "raw text"),
]


def test_what_does_not_go_with_a_template_is_refused(
    api: httpx2.Client, db: Database, guide: dict[str, Any], subtests: pytest.Subtests
) -> None:
    assert api.post("/v1/prompts", json={"name": "raw", "text": "Once"}).status_code == 201
    for source, param, said in REFUSED:
        with subtests.test(said):
            refused = api.post("/v1/jobs", json=job_of(**source))
            assert (refused.status_code, error_of(refused)["param"]) == (400, param)
            assert said in error_of(refused)["message"]
    chat = api.post("/v1/chat/completions", json=CHAT | {"prompt": naming(variables={"city": 7})})
    assert error_of(chat)["param"] == "prompt.variables.city"
    assert "`prompt.variables.city`" in error_of(chat)["message"]
    assert num_jobs(db) == 0


def test_a_prompt_is_rendered_without_a_job(api: httpx2.Client, db: Database, guide: dict[str, Any]) -> None:
    made = api.post("/v1/prompts/guide/render", json={"model": "tiny", "variables": {"city": "Oslo"}}).json()
    messages = ["You know Oslo.", "- none\n", "Noted."]
    assert [one["content"] for one in made["messages"]] == messages
    assert made["text"] == "system: You know Oslo.\nuser: - none\n\nassistant: Noted.\n"
    assert made["input_tokens"] == len(made["text"])
    assert num_jobs(db) == 0


@pytest.mark.uses("batches")
def test_a_line_of_a_batch_names_a_template_too(openai: OpenAI, worker: ScriptedWorker, guide: dict[str, Any]) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT | {"prompt": naming()}}
    file = openai.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    seen: list[Any] = []
    with worker.serve(lambda payload: seen.append(payload) or ["x"]):
        made = openai.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        wait_for(lambda: openai.batches.retrieve(made.id).status == "completed", "the batch ends")
    assert [contents(payload) for payload in seen] == [[*MADE, "hi"]]
    output = openai.batches.retrieve(made.id).output_file_id
    assert guide["digest"] in openai.files.content(output or "").text


def test_the_messages_of_a_template_are_never_cut(api: httpx2.Client, worker: ScriptedWorker, guide: Any) -> None:
    turns = [{"role": role, "content": role[0] * 300} for role in ("user", "assistant", "user")]
    for how in ("oldest_turns", "left", "middle"):
        made = api.post("/v1/jobs", json=job_of(template=naming(), messages=turns) | {"truncation": how})
        assert made.status_code == 202, made.text
        assert contents(worker.claim(made.json()["id"]).claim.payload) == [*MADE, turns[2]["content"]]
        assert made.json()["truncated"]["turns"] == 1
    long = job_of(template=naming(variables={"city": "x", "sights": ["y" * 600]})) | {"truncation": "left"}
    assert error_of(api.post("/v1/jobs", json=long))["code"] == "context_length_exceeded"


@pytest.mark.uses("anthropic")
def test_the_messages_of_a_template_are_never_cut_by_anthropics_face(
    api: httpx2.Client, worker: ScriptedWorker, guide: Any
) -> None:
    turns = [{"role": role, "content": role[0] * 300} for role in ("user", "assistant", "user")]
    message = CHAT | {"messages": turns, "prompt": naming(), "truncation": "left"}
    with worker.serve(lambda _: ["x"]):
        assert api.post("/v1/messages", json=message).json()["truncated"]["turns"] == 1


def test_the_tenants_policy_sees_the_values(api: httpx2.Client, worker: ScriptedWorker) -> None:
    rule = {"id": "mail", "action": "redact", "stage": "input", "kinds": ["email"]}
    assert api.put("/v1/policies", json={"document": {"version": 1, "rules": [rule]}}).is_success
    assert api.post("/v1/prompts", json=TEMPLATE).status_code == 201
    made = api.post("/v1/jobs", json=job_of(template=naming(variables={"city": "ada@example.com"})))
    (system, *_) = contents(worker.claim(made.json()["id"]).claim.payload)
    assert system.startswith("You know ")
    assert "example.com" not in system


def test_what_is_said_of_the_whole_body_names_no_field(api: httpx2.Client) -> None:
    error = error_of(api.post("/v1/prompts", json={}))
    assert (error["message"], error["param"]) == (Naming("`instructions`", "`messages`", "`text`"), None)


GREETING: dict[str, Any] = {
    "name": "guide",
    "instructions": "You know {{city}}.",
    "messages": [{"role": "user", "content": "{{greeting}}!"}],
    "variables": ["city", "greeting"],
}


def test_a_prompt_is_shown_rendered_and_deleted(api: httpx2.Client, db: Database) -> None:
    made = api.post("/v1/prompts", json=GREETING).json()
    assert {name: made[name] for name in ("object", "name", "version", "aliases", *GREETING)} == {
        "object": "prompt",
        "version": 1,
        "aliases": [],
        **GREETING,
    }
    path, values = "/v1/prompts/guide", {"city": "Rome", "greeting": "Ave"}
    assert api.get(path).json() == made
    second = api.post(f"{path}/versions", json={"text": "{{city}}:", "variables": ["city"]}).json()
    assert (second["version"], second["id"]) == (2, made["id"])
    assert api.put(f"{path}/aliases/default", json={"version": 1}).json()["aliases"] == ["default"]
    plain = api.post(f"{path}/render", json={"variables": values}).json()
    assert plain == {
        "object": "prompt.rendered",
        "template": {"id": made["id"], "name": "guide", "version": 1, "digest": made["digest"]},
        "messages": [{"role": "system", "content": "You know Rome."}, {"role": "user", "content": "Ave!"}],
        "text": None,
        "input_tokens": None,
    }
    told = api.post(f"{path}/render", json={"variables": values, "model": "tiny"}).json()
    assert told["messages"] == plain["messages"]
    assert "You know Rome." in told["text"]
    assert 0 < told["input_tokens"] < CONTEXT_WINDOW
    raw = api.post(f"{path}/render", json={"variables": {"city": "Rome"}, "version": 2}).json()
    assert (raw["messages"], raw["text"], raw["template"]["version"]) == (None, "Rome:", 2)
    assert api.delete(f"{path}/aliases/default").status_code == 204
    assert api.get(path).json()["version"] == 2
    assert api.get(path, params={"version": "1"}).json()["version"] == 1
    for body, status in (
        ({"variables": values, "version": 1, "model": "none"}, 404),
        ({"version": 9}, 404),
        ({"variables": {}}, 400),
    ):
        assert api.post(f"{path}/render", json=body).status_code == status
    named = api.post("/v1/prompts", json=GREETING | {"name": "pmpt_1"})
    assert (named.status_code, error_of(named)["param"]) == (400, "name")
    assert api.post("/v1/prompts", json=GREETING).status_code == 409
    assert api.delete(path).json() == {"id": made["id"], "object": "prompt", "deleted": True}
    assert api.get(path).status_code == 404
    assert num_jobs(db) == 0


def test_a_tenant_has_only_so_many_prompts(
    api: httpx2.Client, make_client: MakeClient, other_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str, words: str) -> None:
        response = api.post(path, json=template)
        assert response.status_code == 409
        assert words in error_of(response)["message"]

    template = {"instructions": "Answer."}
    monkeypatch.setattr(prompt_templates, "MAX_PROMPTS", 2)
    prompt_id, _ = (api.post("/v1/prompts", json=template).json()["id"] for _ in range(2))
    refused("/v1/prompts", "2 prompts")
    versions = f"/v1/prompts/{prompt_id}/versions"
    assert api.post(versions, json=template).status_code == 201
    for name, most in (("MAX_VERSIONS", 3), ("MAX_BYTES", 50)):
        with monkeypatch.context() as patch:
            patch.setattr(prompt_templates, name, most)
            refused(versions, f"{most} ")
    assert make_client(other_key).post("/v1/prompts", json=template).status_code == 201, "each tenant by itself"


@pytest.mark.uses("flows")
def test_a_pipeline_is_no_prompt_and_has_its_name(api: httpx2.Client) -> None:
    steps = [{"name": "only", "model": "tiny", "input": {"prompt": "x"}}]
    assert api.post("/v1/pipelines", json={"name": "digest", "steps": steps}).status_code == 201
    assert api.get("/v1/prompts").json()["data"] == []
    assert api.get("/v1/prompts/digest").status_code == 404
    taken = api.post("/v1/prompts", json={"name": "digest", "instructions": "Be brief."})
    assert (taken.status_code, error_of(taken)["param"]) == (409, "name")


@pytest.mark.uses("responses")
def test_a_template_s_size_is_known_before_its_values_are_put_in(api: httpx2.Client, db: Database) -> None:
    template = {"instructions": "{{a}}" * 3000, "variables": ["a"]}
    prompt_id = api.post("/v1/prompts", json=template).json()["id"]
    filled = {"prompt": {"id": prompt_id, "variables": {"a": "x" * 900_000}}, "model": "tiny"}
    for route in ("/v1/responses", "/v1/responses/input_tokens"):
        tracemalloc.start()
        response = api.post(route, json=filled)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (response.status_code, error_of(response)["param"]) == (400, "prompt.variables")
        assert peak < 64 << 20
    assert num_jobs(db) == 0
    small = {"prompt": {"id": prompt_id, "variables": {"a": "x"}}, "model": "tiny"}
    assert api.post("/v1/responses/input_tokens", json=small).json()["input_tokens"] > 3000
