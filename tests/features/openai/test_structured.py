"""What an answer must look like and how likely its tokens were, asked by the official client."""

import json
from typing import Any

import httpx2
from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.scripted_worker import ScriptedWorker

MESSAGES: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
SAID = ["wä", "ter ", "wheel"]


def test_every_way_to_ask_for_a_form_reaches_the_job_as_a_grammar(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    schema = {"name": "x", "schema": SCHEMA}
    asked: list[tuple[dict[str, Any], dict[str, str] | None]] = [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"kind": "json_schema", "text": '{"type": "object"}'}),
        ({"response_format": {"type": "json_schema", "json_schema": schema}}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {**schema, "strict": True}}}, None),
        ({"extra_body": {"structured_outputs": {"json": SCHEMA}}}, None),
        ({"extra_body": {"structured_outputs": {"json": json.dumps(SCHEMA)}}}, None),
        ({"extra_body": {"structured_outputs": {"regex": "[a-z]+"}}}, {"kind": "regex", "text": "[a-z]+"}),
        ({"extra_body": {"structured_outputs": {"choice": ["ja", "é"]}}}, {"kind": "choice", "text": '["ja", "é"]'}),
        ({"extra_body": {"structured_outputs": {"grammar": 'start: "a"'}}}, {"kind": "lark", "text": 'start: "a"'}),
        ({"extra_body": {"guided_json": SCHEMA}}, None),
        # In the words of llama.cpp and of text-generation-inference.
        ({"extra_body": {"response_format": {"type": "json_object", "schema": SCHEMA}}}, None),
        ({"extra_body": {"response_format": {"type": "json_object", "value": SCHEMA}}}, None),
        ({"extra_body": {"guided_json": SCHEMA, "structured_outputs": {"json": SCHEMA}}}, None),
    ]
    with worker.serve(lambda _: ["x"]):
        for fields, _ in asked:
            openai.chat.completions.create(model="tiny", messages=MESSAGES, **fields)
    stored = [job.payload["sampling"].get("grammar") for job in reversed(jobs.list_jobs(db, tenant))]
    of_schema = {"kind": "json_schema", "text": json.dumps(SCHEMA)}
    assert stored == [grammar if index in (0, 1, 6, 7, 8) else of_schema for index, (_, grammar) in enumerate(asked)]


def test_a_chat_tells_how_likely_each_token_was_whole_and_streamed(openai: OpenAI, worker: ScriptedWorker) -> None:
    ask: Any = {"model": "tiny", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    with worker.serve(lambda _: SAID):
        (choice,) = openai.chat.completions.create(**ask).choices
        chunks = list(openai.chat.completions.create(**ask, stream=True))
        (silent,) = openai.chat.completions.create(model="tiny", messages=MESSAGES).choices
        (bare,) = openai.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True).choices
    assert choice.logprobs is not None
    whole = choice.logprobs.content
    assert whole is not None
    assert b"".join(bytes(one.bytes or ()) for one in whole).decode() == choice.message.content == "".join(SAID)
    first, half = whole[0], whole[1]
    assert (first.token, first.logprob, first.bytes, half.token) == ("w", -0.25, [0x77], "\ufffd")
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("w", -0.25), ("</s>", -1.5)]
    pieces = [choice for chunk in chunks for choice in chunk.choices if choice.delta.content]
    for piece in pieces:
        assert piece.logprobs is not None
        assert bytes(byte for one in piece.logprobs.content or () for byte in one.bytes or ()).decode() == (
            piece.delta.content
        )
    assert [one for piece in pieces if piece.logprobs for one in piece.logprobs.content or ()] == whole
    assert silent.logprobs is None
    assert bare.logprobs is not None
    assert [one.top_logprobs for one in bare.logprobs.content or ()] == [[]] * len(whole)


def test_what_a_second_attempt_says_again_is_not_told_again(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    for kept in (None, 1):
        ask: Any = {"model": "tiny", "messages": MESSAGES, "logprobs": True, "stream": True}
        with openai.chat.completions.create(**ask) as stream:
            chunks = iter(stream)
            first = worker.claim(jobs.list_jobs(db, tenant)[0].id)
            worker.say(first, "wat", "er wh")
            received = [next(chunks), next(chunks)]
            worker.hand_back(first, charge=True)
            second = worker.claim(first.claim.job_id) if kept is None else worker.go_on(first, kept)
            worker.say(second, *(["water ", "wheel"] if kept is None else ["er whe", "el"]))
            worker.succeed(second)
            received += chunks
        told = [one.token for chunk in received for choice in chunk.choices for one in _entries(choice)]
        text = "".join(choice.delta.content or "" for chunk in received for choice in chunk.choices)
        assert ("".join(told), text) == ("water wheel", "water wheel")


def _entries(choice: Any) -> list[Any]:
    return [] if choice.logprobs is None else choice.logprobs.content


def test_what_the_prefix_cache_had_is_in_every_answer(openai: OpenAI, worker: ScriptedWorker) -> None:
    worker.cached_tokens = 1
    with worker.serve(lambda _: SAID):
        raw = openai.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES)
        *_, last = openai.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    for usage in (raw.parse().usage, last.usage):
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == 1
    job = openai.get(f"/jobs/{raw.headers['x-job-id']}", cast_to=object)
    assert isinstance(job, dict)
    assert job["usage"]["cached_tokens"] == 1


def test_a_grammar_that_is_too_complex_is_refused_and_nothing_is_stored(
    api: httpx2.Client, db: Database, model: ModelVersion
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "structured_outputs": {"regex": ".?" * 8000}}
    for _ in range(2):
        response = api.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert "{0,n}" in error_of(response)["message"]
    assert num_jobs(db) == 0
