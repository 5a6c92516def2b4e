"""Tokens of texts and conversations, and back, as vLLM's clients ask for them."""

from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from headrace.features.openai.token_routes import DetokenizeRequest
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.db.database import Database
from headrace.store.tenants import api_keys
from tests.cases import some_of
from tests.producer_api.calling import CHAT, error_of, num_jobs
from tests.producer_api.conftest import CONTEXT_WINDOW, MakeClient
from tests.producer_api.serving import ApiServer


def test_a_prompt_and_a_conversation_become_tokens_and_text_again(api: httpx2.Client, db: Database) -> None:
    asked = {"model": "tiny", "prompt": "Größe", "return_token_strs": True}
    told = api.post("/tokenize", json=asked).json()
    ids = list("Größe".encode())
    assert told == {
        "count": 7,
        "max_model_len": CONTEXT_WINDOW,
        "tokens": ids,
        "token_strs": ["G", "r", "\ufffd", "\ufffd", "\ufffd", "\ufffd", "e"],
    }
    assert api.post("/detokenize", json={"model": "tiny", "tokens": ids}).json() == {"prompt": "Größe"}
    chat = api.post("/v1/tokenize", json=CHAT | {"add_generation_prompt": True}).json()
    assert bytes(chat["tokens"]).decode() == "user: hi\n"
    assert chat["token_strs"] is None
    assert num_jobs(db) == 0


@some_of(
    3,
    ("path", "body", "code", "param"),
    [
        ("tokenize", {"model": "tiny"}, "invalid_value", "prompt"),
        ("tokenize", CHAT | {"prompt": "x"}, "invalid_value", "prompt"),
        ("tokenize", {"model": "nobody", "prompt": "x"}, "model_not_found", "model"),
        ("tokenize", CHAT | {"chat_template": "x"}, "unsupported_parameter", "chat_template"),
        (
            "tokenize",
            CHAT | {"messages": [{"role": "poet", "content": "x"}]},
            "unsupported_parameter",
            "messages[0].role",
        ),
        ("tokenize", CHAT | {"add_special_tokens": True}, "unsupported_parameter", "messages"),
        ("tokenize", CHAT | {"messages": []}, "invalid_value", "messages"),
        (
            "tokenize",
            {"model": "tiny", "prompt": "x", "return_token_str": True},
            "unsupported_parameter",
            "return_token_str",
        ),
        ("detokenize", {"model": "tiny", "tokens": [1.0]}, "invalid_value", "tokens[0]"),
        ("detokenize", {"model": "tiny"}, "invalid_value", "tokens"),
        ("detokenize", {"model": "tiny", "tokens": [257]}, "invalid_value", "tokens"),
        ("detokenize", {"model": "tiny", "tokens": [-1]}, "invalid_value", "tokens[0]"),
        ("detokenize", {"model": "tiny", "tokens": [1], "token": 1}, "unsupported_parameter", "token"),
    ],
)
def test_what_has_no_tokens_is_refused(
    api: httpx2.Client, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    error = error_of(api.post(f"/v1/{path}", json=body))
    assert (error["code"], error["param"]) == (code, param)


def test_ids_are_as_many_as_a_window_may_have() -> None:
    most = DetokenizeRequest.model_validate({"model": "m", "tokens": [1] * 262_144})
    assert len(most.tokens) == 262_144
    with pytest.raises(ValidationError):
        DetokenizeRequest.model_validate({"model": "m", "tokens": [1] * 262_145})


class SpecialTokens(ByteTokenizer):
    """Bytes, with a token 0 before a prompt that asks for special tokens."""

    def encode(self, text: str, add_special: bool) -> list[int]:
        return [0, *super().encode(text, add_special)] if add_special else super().encode(text, add_special)


@pytest.mark.usefixtures("model")
def test_a_prompt_has_special_tokens_unless_the_caller_does_not_want_them(
    api: httpx2.Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.runtime.catalog, "tokenizer", lambda _version: SpecialTokens())
    for wanted, ids in (
        ({}, [0, 120]),
        ({"add_special_tokens": True}, [0, 120]),
        ({"add_special_tokens": False}, [120]),
    ):
        told = api.post("/v1/tokenize", json={"model": "tiny", "prompt": "x"} | wanted).json()
        assert told == {"count": len(ids), "max_model_len": CONTEXT_WINDOW, "tokens": ids, "token_strs": None}


def test_a_key_s_models_hold_here_too(make_client: MakeClient, db: Database, tenant: str, model: object) -> None:
    key = api_keys.create_key(db, tenant, "other", {"jobs:write"}, actor="tests", models=["other"])
    refused = make_client(key).post("/v1/tokenize", json={"model": "tiny", "prompt": "x"})
    assert error_of(refused)["code"] == "model_not_allowed"
    refused = make_client(key).post("/v1/detokenize", json={"model": "tiny", "tokens": [1]})
    assert error_of(refused)["code"] == "model_not_allowed"
