"""Moderations, asked by the official client."""

import httpx2
import openai as sdk
import pytest
from openai import OpenAI

from tests.producer_api.calling import error_of


def test_the_official_client_reads_what_a_text_is_flagged_for(openai: OpenAI) -> None:
    one = openai.moderations.create(input="I will kill you", model="omni-moderation-latest")
    assert one.id.startswith("modr")
    assert one.model == "headrace-words-1"
    (result,) = one.results
    assert (result.flagged, result.categories.violence, result.categories.harassment_threatening) == (True, True, True)
    assert (result.categories.hate, result.categories.illicit, result.categories.self_harm_intent) == (False,) * 3
    assert result.category_scores.violence > 0.5 > result.category_scores.hate
    assert result.category_applied_input_types.violence == ["text"]

    many = openai.moderations.create(input=["good morning", "go kill yourself"])
    assert [each.flagged for each in many.results] == [False, True]

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
    for body in ({"input": []}, {"input": ["x"] * 129}, {}, {"input": 5}, {"input": [1]}):
        response = api.post("/v1/moderations", json=body)
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, "invalid_value")
        assert error["param"].startswith("input")
