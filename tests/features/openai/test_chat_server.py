"""A model behind a server of chat completions: what a request may have, and what is stored for the worker."""

import asyncio
from typing import Any

import httpx2
import pytest

from headrace.models.engine.requests import FinishReason, SamplingParams
from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.upstream import Piece, UpstreamRequest
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import register_version
from tests.cases import some_of
from tests.processes import wait_for
from tests.producer_api.calling import cut_off, error_of, num_jobs
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer

WINDOW = 512
MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}, "strict": True}}]


@pytest.fixture(autouse=True)
def chat_model(db: Database) -> None:
    register_version(
        db,
        model="chat",
        runner="openai",
        source="http://127.0.0.1:9",
        digest="c" * 64,
        dtype="auto",
        context_window=WINDOW,
        files={},
        actor="tests",
        engine=EngineSpec(kind=EngineKind.OPENAI, url="http://127.0.0.1:9", served_model="upstream"),
    )


def submit(api: httpx2.Client, source: dict[str, Any], **sampling: Any) -> httpx2.Response:
    return api.post("/v1/jobs", json={"model": "chat", "input": source, "sampling": sampling})


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"prompt": "hi"}, {}, "input.prompt"),
    ({"token_ids": [1]}, {}, "input.token_ids"),
    ({"messages": MESSAGES}, {"top_k": 5}, "sampling.top_k"),
    ({"messages": MESSAGES}, {"repetition_penalty": 1.1}, "sampling.repetition_penalty"),
    ({"messages": MESSAGES}, {"ignore_eos": True}, "sampling.ignore_eos"),
    ({"messages": MESSAGES}, {"logprobs": 0}, "sampling.logprobs"),
    ({"messages": MESSAGES}, {"grammar": {"kind": "regex", "text": "a"}}, "sampling.grammar"),
    ({"messages": MESSAGES}, {"grammar": {"kind": "json_schema", "text": '{"type": 5}'}}, "sampling.grammar"),
]


@some_of(3, ("source", "sampling", "param"), REFUSED)
def test_what_a_chat_completion_has_no_field_for_is_refused(
    api: httpx2.Client, db: Database, source: dict[str, Any], sampling: dict[str, Any], param: str
) -> None:
    response = submit(api, source, **sampling)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert num_jobs(db) == 0


def test_a_prompt_is_refused_only_if_it_is_far_too_long(api: httpx2.Client) -> None:
    def long(num_chars: int) -> httpx2.Response:
        return submit(api, {"messages": [{"role": "user", "content": "x" * num_chars}]}, max_tokens=10)

    assert long(7 * WINDOW).status_code == 202
    refused = long(9 * WINDOW)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "context_length_exceeded")


def test_tools_and_a_schema_go_to_the_worker_as_they_are(api: httpx2.Client, db: Database, tenant: str) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    ask: Any = {"model": "chat", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    with cut_off(api, "/v1/chat/completions", ask | {"response_format": schema}):  # there is no worker
        (job,) = wait_for(lambda: jobs.list_jobs(db, tenant), "the job is stored")
    assert job.payload["input"]["tools"] == TOOLS
    assert job.payload["input"]["tool_choice"] == "required"
    assert job.payload["tool_style"] == "hermes"
    assert job.payload["sampling"]["grammar"]["kind"] == "json_schema", "no grammar of our own for the calls"


def test_headrace_is_such_a_server_for_another_headrace(server: ApiServer, key: str, worker: ScriptedWorker) -> None:
    request = UpstreamRequest("one", "tiny", (1,), SamplingParams(20, temperature=1.0), messages={"messages": MESSAGES})

    async def ask() -> list[Piece]:
        upstream = OpenaiChatUpstream(server.url, api_key=key)
        try:
            assert "tiny" in (await upstream.describe()).models
            return [piece async for piece in upstream.generate(request)]
        finally:
            await upstream.close()

    with worker.serve(lambda _: ["a ", "wä", "ter ", "wheel"]):
        pieces = asyncio.run(ask())
    assert "".join(piece.text for piece in pieces) == "a wäter wheel"
    assert [piece.finish for piece in pieces if piece.finish] == [FinishReason.STOP]
    assert pieces[-1].num_prompt_tokens == len("user: hi\n")
    assert pieces[-1].num_output_tokens
