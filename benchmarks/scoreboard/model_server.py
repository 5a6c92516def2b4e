"""The model that every contestant asks, a server that no fault touches: it also witnesses what was really computed.

``python -m benchmarks.scoreboard.model_server PORT LOG``. OpenAI's chat completions, streamed: one character is one
token, each after ``TOKEN_S``. The answer is that of the oracle of ``tests.chaos``, a function of the prompt.
``POST /effects/ORDER`` is a side effect outside of the contestant, as a payment would be.

Each line of the log is JSON: ``at`` (seconds of the monotonic clock), ``kind`` and ``order``, which is the prompt.
Kinds: ``begin``, ``end`` (all tokens sent), ``gone`` (the asking side closed the connection before), ``effect``.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from tests.chaos.oracle import answer

TOKEN_S = 0.04
MODEL = "clockwork"


def application(log: Path) -> FastAPI:
    """Return the server, which appends to ``log``."""
    app = FastAPI()
    file = log.open("a", buffering=1)

    def note(kind: str, order: str) -> None:
        file.write(json.dumps({"at": time.monotonic(), "kind": kind, "order": order}) + "\n")

    async def tokens(order: str, num: int) -> AsyncIterator[bytes]:
        note("begin", order)
        ended = False
        try:
            text, at = answer(order, num, ends=False), time.monotonic()
            for place, token in enumerate(text):
                at += TOKEN_S
                await asyncio.sleep(at - time.monotonic())
                yield _chunk({"content": token} if place else {"role": "assistant", "content": token})
            ended = True
            note("end", order)
            yield _chunk({}, "length")
            usage = {"prompt_tokens": len(order), "completion_tokens": num, "total_tokens": len(order) + num}
            yield _event({**_head(), "choices": [], "usage": usage}) + b"data: [DONE]\n\n"
        finally:
            if not ended:
                note("gone", order)

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> StreamingResponse:
        content = body["messages"][-1]["content"]
        order = content if isinstance(content, str) else "".join(part["text"] for part in content)
        num = body.get("max_completion_tokens") or body["max_tokens"]
        return StreamingResponse(tokens(order, num), media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "benchmark"}]}

    @app.post("/effects/{order:path}", status_code=204)
    async def effect(order: str) -> None:
        note("effect", order)

    return app


def _head() -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": MODEL}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return _event({**_head(), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


if __name__ == "__main__":
    uvicorn.run(application(Path(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
