"""Numbers of a server that are not finite: JSON has none, so servers write null, or NaN although it is not JSON."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.requests import NumericalError, SampledLogprobs
from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.sglang import SglangUpstream
from headrace.models.external.upstream import UpstreamLost
from headrace.models.external.vllm import VllmUpstream
from tests.models.external.adapters.canned import DONE, PLAIN, REQUEST, Canned, use

GENERATE = "/inference/v1/generate"


def vllm(logprob: float | None, other: float | None = -3.0) -> dict[str, Any]:
    tops = [{"token_id": 5, "logprob": logprob}, {"token_id": 6, "logprob": other}]
    content = [{"logprob": logprob, "top_logprobs": tops}]
    return {"choices": [{"token_ids": [5], "logprobs": {"content": content}, "finish_reason": "length"}]}


def sglang(logprob: float | None, other: float | None = -3.0) -> dict[str, Any]:
    one, two = [logprob, 5, None], [other, 6, None]
    meta = {"completion_tokens": 1, "output_token_logprobs": [one], "output_top_logprobs": [[one, two]]}
    return {"output_ids": [5], "meta_info": {**meta, "finish_reason": {"type": "length"}}}


SERVERS = [(VllmUpstream, GENERATE, vllm), (SglangUpstream, "/generate", sglang)]


@pytest.mark.parametrize(("adapter", "path", "event"), SERVERS)
def test_a_token_without_a_finite_logprob_fails_its_request(
    server: Canned, adapter: Any, path: str, event: Any
) -> None:
    for number in (None, math.nan, math.inf):
        server.said = {path: [json.dumps(event(number)), *DONE]}
        assert [type(one) for one in use(adapter(server.url), ("generate", REQUEST))] == [NumericalError]


@pytest.mark.parametrize(("adapter", "path", "event"), SERVERS)
def test_an_alternative_without_a_number_is_one_that_the_server_ruled_out(
    server: Canned, adapter: Any, path: str, event: Any
) -> None:
    server.said = {path: [json.dumps(event(-0.5, None)), *DONE]}
    ((piece,),) = use(adapter(server.url), ("generate", REQUEST))
    assert piece.logprobs == (SampledLogprobs(-0.5, (5, 6), (-0.5, -math.inf)),)


def test_a_prompt_token_without_a_finite_logprob_fails_its_request(server: Canned) -> None:
    scored = replace(REQUEST, sampling=replace(REQUEST.sampling, echo=True))
    rows = [None, {"2": {"logprob": None}, "7": {"logprob": None}}]
    server.said = {GENERATE: {**vllm(-0.5), "prompt_logprobs": rows}}
    assert [type(one) for one in use(VllmUpstream(server.url), ("generate", scored))] == [NumericalError]


def test_nan_in_a_chat_is_told_from_what_is_not_json(server: Canned) -> None:
    chat = '{"choices": [{"delta": {"content": "!"}, "logprobs": {"content": [{"logprob": %s}]}}]}'
    for event, error in ((chat % "NaN", NumericalError), (chat % "-Infinity", NumericalError), ("<p>", UpstreamLost)):
        server.said = {"/v1/chat/completions": [event]}
        assert [type(one) for one in use(OpenaiChatUpstream(server.url), ("generate", PLAIN))] == [error]
