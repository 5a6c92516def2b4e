"""A server of OpenAI's chat completions on the fake model, as vLLM, llama.cpp and Headrace itself write the answers.

The prompt is the last message of the user. After ON_AND_ON the answer does not end by itself. With ``continues`` it
goes on with a last message of the assistant, as vLLM does; its chat template trims that message, as Llama 3's does.
"""

import json
from contextlib import aclosing
from typing import Any

from tests.models.external.fake_model import EOS, Call
from tests.models.external.fake_server import Answer, FakeServer

MODEL = "tiny"
ON_AND_ON = "on and on: "
SCRIPT_FINISH = "tool_calls"


class FakeChat(FakeServer):
    """``script`` are deltas that replace the model's answer. ``refusals`` are given to the next requests, in order."""

    def __init__(
        self, *, writes_usage: bool = True, wants_new_limit: bool = False, continues: bool = False, **size: Any
    ) -> None:
        self.continues = continues
        self.by_priority = True
        self.writes_usage = writes_usage
        self.wants_new_limit = wants_new_limit
        self.takes_no_images = False
        self.model = MODEL
        self.script: list[dict[str, Any]] = []
        self.refusals: list[tuple[int, dict[str, str], Any]] = []
        self.num_model_questions = 0
        super().__init__(**size)

    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        match method, path:
            case "GET", "/v1/models":
                self.num_model_questions += 1
                await answer.json(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
            case "POST", "/v1/chat/completions":
                await self._chat(body, answer)
            case _:
                await answer.json(404, {"error": {"message": "Not Found"}})

    async def _chat(self, body: dict[str, Any], answer: Answer) -> None:
        if self.refusals:
            status, headers, said = self.refusals.pop(0)
            await answer.json(status, said, headers)
            return
        if self.takes_no_images and _has_images(body):
            await answer.json(400, {"error": {"message": "tiny is not a multimodal model"}})
            return
        if self.wants_new_limit and "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            await answer.json(400, {"error": {"message": message, "code": "unsupported_parameter"}})
            return
        if body.get("priority") and not self.by_priority:
            message = "Got priority 1 but Priority scheduling is not enabled."
            await answer.json(400, {"error": {"message": message, "code": 400}})
            return
        call = call_of(body, continues=self.continues)
        await answer.begin_stream()
        await answer.event(_chunk({"role": "assistant", "content": ""}))
        if self.script:
            await self._write_script(call, answer)
        else:
            async with aclosing(self.tokens(call)) as tokens:
                async for token, num_output, finish in tokens:
                    text = "" if token is None or token >= EOS else chr(token)
                    chunk = _chunk({"content": text} if text else {}, finish)
                    if body["stream_options"].get("continuous_usage_stats") and self.continues:
                        chunk["usage"] = {"prompt_tokens": _num_prompt(body), "completion_tokens": num_output}
                    await answer.event(chunk)
        if self.writes_usage:
            usage = {"prompt_tokens": 1234, "completion_tokens": 567, "total_tokens": 1801}
            await answer.event({"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 8}}})
        await answer.event("[DONE]")
        await answer.end_stream()

    async def _write_script(self, call: Call, answer: Answer) -> None:
        self.calls.append(call)
        for delta in self.script[:-1]:
            await answer.event(_chunk(delta))
        await answer.event(_chunk(self.script[-1], SCRIPT_FINISH))


def call_of(body: dict[str, Any], *, continues: bool = False) -> Call:
    *before, last = body["messages"]
    begun = last["content"].strip() if continues and body.get("continue_final_message") else ""
    content = (before[-1] if begun else last)["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return Call(
        id=f"chatcmpl-{id(body)}",
        prompt=tuple((content + begun).encode()),
        max_tokens=body.get("max_tokens") or body["max_completion_tokens"],
        temperature=body.get("temperature", 1.0),
        seed=body.get("seed"),
        ignore_eos=content.startswith(ON_AND_ON),
        grammar=_grammar(body.get("response_format")),
        priority=body.get("priority", 0),
        body=body,
    )


def _num_prompt(body: dict[str, Any]) -> int:
    """Count the bytes of the conversation, and one mark between two turns and before a new answer."""
    marks = len(body["messages"]) - 1 - bool(body.get("continue_final_message"))
    return sum(len(message["content"].encode()) for message in body["messages"]) + marks


def _has_images(body: dict[str, Any]) -> bool:
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    return any(part["type"] == "image_url" for part in parts)


def _grammar(form: dict[str, Any] | None) -> tuple[str, str] | None:
    if form is None:
        return None
    schema = {"type": "object"} if form["type"] == "json_object" else form["json_schema"]["schema"]
    return "json_schema", json.dumps(schema)


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
