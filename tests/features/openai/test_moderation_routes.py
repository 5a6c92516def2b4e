"""Moderations, asked by the official client."""

import httpx2
import openai as sdk
import pytest
from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.payloads.strict_model import MAX_TEXT_CHARS
from headrace.store.tenants import api_keys
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient


def test_the_official_client_reads_what_a_text_is_flagged_for(openai: OpenAI) -> None:
    one = openai.moderations.create(input="I will kill you", model="omni-moderation-latest")
    assert one.id.startswith("modr")
    assert one.model == "headrace-words-1"
    (result,) = one.results
    assert (result.flagged, result.categories.violence, result.categories.harassment_threatening) == (True, True, True)
    assert (result.categories.hate, result.categories.illicit, result.categories.self_harm_intent) == (False,) * 3
    assert result.category_scores.violence > 0.5 > result.category_scores.hate
    assert result.category_applied_input_types.violence == ["text"]

    many = openai.moderations.create(input=["good morning", "go kill yourself", "starving myself"])
    assert [each.flagged for each in many.results] == [False, True, True]
    assert many.results[2].category_scores.self_harm == 0.5, "the least score that is flagged"

    parts = openai.moderations.create(
        input=[{"type": "text", "text": "a river"}, {"type": "text", "text": "how to make a bomb"}]
    )
    assert [each.categories.illicit_violent for each in parts.results] == [True]


def test_pictures_and_unknown_models_are_refused(openai: OpenAI, api: httpx2.Client) -> None:
    with pytest.raises(sdk.BadRequestError) as refusal:
        openai.moderations.create(input=[{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}])
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "input[0]")
    with pytest.raises(sdk.NotFoundError) as unknown:
        openai.moderations.create(input="x", model="nobody")
    assert unknown.value.code == "model_not_found"
    for body in (
        {"input": []},
        {"input": ["x"] * 129},
        {"input": ["x", "x" * MAX_TEXT_CHARS]},
        {},
        {"input": 5},
        {"input": [1]},
    ):
        response = api.post("/v1/moderations", json=body)
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, "invalid_value")
        assert error["param"].startswith("input")


def test_every_name_of_openai_means_the_classifier_here(
    api: httpx2.Client, make_client: MakeClient, db: Database, tenant: str
) -> None:
    key = api_keys.create_key(db, tenant, "words", {"jobs:write"}, actor="tests", models=["headrace-words-1"])
    names = ["omni-moderation-latest", "omni-moderation-2024-09-26", "text-moderation-latest", "text-moderation-stable"]
    for name in [None, *names, "headrace-words-1"]:
        body = {"input": ["x"] * 128} if name is None else {"input": ["x"] * 128, "model": name}
        answer = make_client(key).post("/v1/moderations", json=body).raise_for_status().json()
        assert (answer["model"], len(answer["results"])) == ("headrace-words-1", 128)
    key = api_keys.create_key(db, tenant, "others", {"jobs:write"}, actor="tests", models=names)
    refused = make_client(key).post("/v1/moderations", json={"input": "x"})
    assert error_of(refused)["code"] == "model_not_allowed"
    refused = api.post("/v1/moderations", json={"input": [{"type": "text", "text": "x"}, {"type": "text"}]})
    assert (error_of(refused)["code"], error_of(refused)["param"]) == ("unsupported_parameter", "input[1]")
