"""Responses that continue others, and the kinds of their input, asked by the official client."""

from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI

from tests.features.responses.response_calls import HELLO, job_of
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker


class TestConversations:
    def test_a_response_goes_on_from_another(
        self, both: list[OpenAI], worker: ScriptedWorker, make_client: MakeClient, other_key: str
    ) -> None:
        here, there = both
        seen: list[list[tuple[str, str]]] = []

        def answer(payload: dict[str, Any]) -> list[str]:
            seen.append([(turn["role"], turn["content"]) for turn in payload["input"]["messages"]])
            return [f"answer {len(seen)}"]

        with worker.serve(answer):
            first = here.responses.create(**HELLO, instructions="Be brief.")
            second = there.responses.create(model="tiny", input="more", previous_response_id=first.id)
            here.responses.delete(first.id)
            third = here.responses.create(
                model="tiny", input="again", previous_response_id=second.id, instructions="Be loud.", store=False
            )
        turns = [("user", "hi"), ("assistant", "answer 1"), ("user", "more"), ("assistant", "answer 2")]
        assert seen == [
            [("system", "Be brief."), *turns[:1]],
            turns[:3],
            [("system", "Be loud."), *turns, ("user", "again")],
        ]
        assert second.previous_response_id == first.id
        listed: list[Any] = list(here.responses.input_items.list(second.id, limit=2, order="asc"))
        said = [(item.role, item.content[0].text) for item in listed]
        assert said == turns[:3]
        assert [item.id for item in here.responses.input_items.list(second.id)] == [item.id for item in listed[::-1]]
        for gone in (first.id, third.id, "resp_none", job_of(second.id)):
            with pytest.raises(sdk.NotFoundError):
                here.responses.create(model="tiny", input="x", previous_response_id=gone)
        with pytest.raises(sdk.NotFoundError):
            here.responses.retrieve(third.id)
        stranger = make_client(other_key)
        path = f"/v1/responses/{second.id}"
        calls = [("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"{path}/input_items")]
        answers = [stranger.request(method, url) for method, url in calls]
        answers.append(stranger.post("/v1/responses", json=HELLO | {"previous_response_id": second.id}))
        assert {answer.status_code for answer in answers} == {404}

    def test_an_answer_can_be_sent_back_as_it_is_or_by_its_id(
        self, openai: OpenAI, worker: ScriptedWorker, make_client: MakeClient, other_key: str
    ) -> None:
        seen: list[list[tuple[str, str]]] = []

        def answer(payload: dict[str, Any]) -> list[str]:
            seen.append([(turn["role"], turn["content"]) for turn in payload["input"]["messages"]])
            return ["answer"] if len(seen) == 1 else [""]

        thought: Any = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
        user: Any = {"role": "user", "content": "more"}
        with worker.serve(answer):
            first = openai.responses.create(**HELLO)
            (said,) = first.output
            reference: Any = {"type": "item_reference", "id": said.id}
            second = openai.responses.create(model="tiny", input=[{"role": "user", "content": ""}, reference, user])
            nothing: Any = [item.model_dump() for item in second.output]
            refused: Any = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
            openai.responses.create(model="tiny", input=[user, thought, *nothing, user, refused, user])
            stranger = make_client(other_key)
            lost = stranger.post("/v1/responses", json={"model": "tiny", "input": [reference]})
        assert seen[1:] == [
            [("user", ""), ("assistant", "answer"), ("user", "more")],
            [("user", "more"), ("assistant", ""), ("user", "more"), ("assistant", "No."), ("user", "more")],
        ]
        assert [item.id for item in openai.responses.input_items.list(second.id)][1] == said.id
        assert (lost.status_code, error_of(lost)["param"]) == (404, "input[0].id")

    def test_only_an_answer_can_be_continued(self, openai: OpenAI) -> None:
        waiting = openai.responses.create(**HELLO, background=True)
        for said in ("has not ended", "is cancelled"):
            with pytest.raises(sdk.BadRequestError, match=said) as raised:
                openai.responses.create(model="tiny", input="x", previous_response_id=waiting.id)
            assert raised.value.param == "previous_response_id"
            openai.responses.cancel(waiting.id)

    def test_what_is_too_long_is_refused_or_shortened(self, openai: OpenAI, worker: ScriptedWorker) -> None:
        turns: Any = [{"role": role, "content": f"{n} " * 20} for n in range(20) for role in ("user", "assistant")]
        long: Any = {"model": "tiny", "input": [*turns, {"role": "user", "content": "last"}], "instructions": "Go."}
        with pytest.raises(sdk.BadRequestError) as raised:
            openai.responses.create(**long)
        assert raised.value.code == "context_length_exceeded"
        payloads: list[Any] = []
        with worker.serve(lambda payload: payloads.append(payload) or ["x"]):
            response = openai.responses.create(**long, truncation="auto", max_output_tokens=100)
        messages = payloads[0]["input"]["messages"]
        assert [messages[0]["content"], messages[-1]["content"]] == ["Go.", "last"]
        assert messages[1:-1] == turns[-(len(messages) - 2) :]
        assert response.usage is not None
        counted = openai.responses.input_tokens.count(**long, truncation="auto")
        assert 300 < response.usage.input_tokens <= 412
        assert counted.input_tokens < openai.responses.input_tokens.count(**long).input_tokens

    @pytest.mark.uses("templates")
    def test_a_prompt_is_filled_in(self, openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker) -> None:
        template = {
            "name": "guide",
            "instructions": "You guide through {{ city }}.",
            "messages": [{"role": "user", "content": "{{greeting}}!"}],
            "variables": ["city", "greeting"],
        }
        made = api.post("/v1/prompts", json=template)
        assert (made.status_code, made.json()["version"]) == (201, 1)
        prompt_id = made.json()["id"]
        plain = {"instructions": "You know {{city}}.", "variables": ["city"]}
        assert api.post(f"/v1/prompts/{prompt_id}/versions", json=plain).json()["version"] == 2
        versions = api.get(f"/v1/prompts/{prompt_id}/versions").json()["data"]
        assert [one["instructions"] for one in versions] == [template["instructions"], plain["instructions"]]
        assert [one["version"] for one in api.get("/v1/prompts").json()["data"]] == [2]
        seen: list[Any] = []
        values: Any = {"city": "Rome {{greeting}}", "greeting": {"type": "input_text", "text": "Ave"}}
        with worker.serve(lambda payload: seen.append(payload["input"]["messages"]) or ["x"]):
            first = openai.responses.create(
                model="tiny", prompt={"id": prompt_id, "version": "1", "variables": values}, input="Where to?"
            )
            newest = openai.responses.create(
                model="tiny", prompt={"id": prompt_id, "variables": {"city": "Oslo"}}, input="hi"
            )
        assert [turn["content"] for turn in seen[0]] == ["You guide through Rome {{greeting}}.", "Ave!", "Where to?"]
        assert [turn["content"] for turn in seen[1]] == ["You know Oslo.", "hi"]
        used: list[Any] = [first.prompt, newest.prompt]
        assert [prompt.version for prompt in used] == ["1", "2"]
        for variables in ({}, {"city": "x", "more": "y"}):
            with pytest.raises(sdk.BadRequestError) as raised:
                openai.responses.create(model="tiny", prompt={"id": prompt_id, "variables": variables}, input="x")
            assert raised.value.param == "prompt.variables"
        unknown: Any = ({"id": "pmpt_none"}, {"id": prompt_id, "version": "3"}, {"id": prompt_id, "version": "one"})
        for wrong in unknown:
            with pytest.raises(sdk.NotFoundError):
                openai.responses.create(model="tiny", prompt=wrong, input="x")
        undeclared = api.post("/v1/prompts", json={"instructions": "{{x}}"})
        assert (undeclared.status_code, error_of(undeclared)["code"]) == (400, "invalid_value")
