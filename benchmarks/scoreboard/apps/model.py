"""What every peer's task does: ask the model server for a streamed answer, then have the side effect."""

# ruff: noqa: TID251 - run where our settings cannot be imported
import json
import os
from collections.abc import AsyncIterator, Iterator

import httpx

URL = os.environ["MODEL_URL"]


def tokens(order: str, num: int) -> Iterator[str]:
    with (
        httpx.Client(timeout=30, trust_env=False) as http,
        http.stream("POST", _CHAT, json=_body(order, num)) as answer,
    ):
        answer.raise_for_status()
        for line in answer.iter_lines():
            if text := _text(line):
                yield text


async def tokens_async(order: str, num: int) -> AsyncIterator[str]:
    async with (
        httpx.AsyncClient(timeout=30, trust_env=False) as http,
        http.stream("POST", _CHAT, json=_body(order, num)) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if text := _text(line):
                yield text


def have_effect(order: str) -> None:
    httpx.post(f"{URL}/effects/{order}", timeout=10, trust_env=False).raise_for_status()


async def have_effect_async(order: str) -> None:
    async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
        (await http.post(f"{URL}/effects/{order}")).raise_for_status()


_CHAT = f"{URL}/v1/chat/completions"


def _body(order: str, num: int) -> dict[str, object]:
    messages = [{"role": "user", "content": order}]
    return {"model": "clockwork", "messages": messages, "max_tokens": num, "stream": True}


def _text(line: str) -> str:
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line[6:])["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""
