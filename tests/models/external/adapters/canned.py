"""A server whose answers a test gives, requests for it, and an adapter's methods called in order."""

import asyncio
from typing import Any

from headrace.models.engine.requests import EngineError, SamplingParams
from headrace.models.external.upstream import UpstreamRequest
from tests.models.external.fake_server import Answer, FakeServer


class Canned(FakeServer):
    """Answers each path with what the test says: text, JSON, or events; a pair has another status than 200."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        super().__init__()

    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        self.asked.append((path, body))
        said = self.said.get(path, (404, {"error": {"message": "Not Found"}}))
        said = said(body) if callable(said) else said
        status, said = said if isinstance(said, tuple) else (200, said)
        if isinstance(said, str):
            await answer.send(status, said.encode(), "text/plain", self.headers)
        elif isinstance(said, list):
            await answer.begin_stream()
            for event in said:
                await answer.event(event)
            await answer.end_stream()
        else:
            await answer.json(status, said, self.headers)


def use(upstream: Any, *work: Any) -> list[Any]:
    """Return the results of the adapter's methods, called in order on one loop, an error as it is."""

    async def all_of() -> list[Any]:
        found: list[Any] = []
        try:
            for method, *arguments in work:
                try:
                    if method == "generate":
                        found.append([piece async for piece in upstream.generate(*arguments)])
                    else:
                        found.append(await getattr(upstream, method)(*arguments))
                except EngineError as error:
                    found.append(error)
            return found
        finally:
            await upstream.close()

    return asyncio.run(all_of())


REQUEST = UpstreamRequest(
    "job-1",
    "tiny",
    (1, 2),
    SamplingParams(
        8,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=3,
        repetition_penalty=1.2,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        min_p=0.1,
        min_tokens=4,
        logit_bias={5: -1.5},
        logprobs=2,
    ),
    stop_token_ids=(9, 256),
    priority=2,
    cache_salt="salt",
    piece_tokens=8,
)
PLAIN = UpstreamRequest("job-2", "tiny", (1,), SamplingParams(8))
CARDS = [
    {"id": "poet", "root": "/adapters/poet", "parent": "tiny", "max_model_len": 1},
    {"id": "tiny", "root": "/models/tiny", "parent": None, "max_model_len": 4096},
]
DONE = ["[DONE]"]
ANY = frozenset({"json_schema", "regex", "choice"})
STREAMED = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}}
