"""Fields that no face knows: a slip of the pen is refused, what clients send beside passes."""

from typing import Any

import httpx2
import pytest

from producer_api.openai.request_fields import MOST_UNKNOWN
from tests.producer_api.calling import CHAT, error_of
from tests.producer_api.scripted_worker import ScriptedWorker

BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "hello"},
    "/v1/responses": {"model": "tiny", "input": "hello"},
    "/v1/embeddings": {"model": "org/vectors", "input": "hello"},
}
SLIPS = [
    ("/v1/chat/completions", "max_token", 3, "max_tokens"),
    ("/v1/chat/completions", "maxTokens", 3, "max_tokens"),
    ("/v1/chat/completions", "max_new_tokens", 3, "max_tokens"),
    ("/v1/chat/completions", "temprature", 0, "temperature"),
    ("/v1/chat/completions", "repeat_penalty", 1.1, "repetition_penalty"),
    ("/v1/completions", "stops", ["x"], "stop"),
    ("/v1/responses", "max_output_token", 3, "max_output_tokens"),
    ("/v1/responses", "previous_response", "resp_1", "previous_response_id"),
    ("/v1/embeddings", "dimension", 8, "dimensions"),
]
# What OpenAI's, vLLM's and others' clients send of their own accord, and what changes no answer here.
BESIDE = {
    "store": True,
    "reasoning_effort": None,
    "verbosity": "medium",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "skip_special_tokens": True,
    "add_special_tokens": False,
    "cache_salt": "s",
    "request_id": "r",
    "user_id": "u",
    "session_id": "s",
    "usage": {"include": True},
    "transforms": [],
    "provider": {},
    "max_token": None,
}


@pytest.mark.parametrize(("path", "field", "value", "meant"), SLIPS)
def test_a_slip_of_the_pen_is_refused_with_what_was_meant(
    api: httpx2.Client, encoder: object, path: str, field: str, value: Any, meant: str
) -> None:
    refused = api.post(path, json=BODIES[path] | {field: value})
    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", field)
    assert error["message"] == f"unknown field `{field}`: did you mean `{meant}`?"


def test_what_clients_send_beside_passes(api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ("hi",)):
        assert api.post("/v1/chat/completions", json=CHAT | BESIDE).status_code == 200
    many = {f"unknown {number}": number for number in range(MOST_UNKNOWN + 1)}
    refused = api.post("/v1/chat/completions", json=CHAT | many)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "invalid_value")
