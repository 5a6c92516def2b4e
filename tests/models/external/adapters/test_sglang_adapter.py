"""All that the adapter of SGLang reads from answers and writes into requests, value by value."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.requests import FinishReason, SampledLogprobs, SamplingParams
from headrace.models.external.sglang import SglangUpstream
from headrace.models.external.upstream import Capabilities, Piece, ServerInfo, ServerLoad, UpstreamLost, UpstreamRefused
from tests.models.external.adapters.canned import ANY, CARDS, DONE, PLAIN, REQUEST, Canned, use
from tests.refusals import Naming

OPTIONS = {
    "version": "0.5.23",
    "model_path": "/models/tiny",
    "revision": "abc",
    "quantization": "fp8",
    "dtype": "bfloat16",
    "grammar_backend": "llguidance",
}


def sglang_load(number: int, **more: Any) -> dict[str, Any]:
    return {
        "num_running_reqs": number,
        "num_waiting_reqs": 10 * number,
        "max_total_num_tokens": 100 * number,
        "max_running_requests": 5 * number,
        "token_usage": number / 10,
        "total_prefill_uncached_tokens": 1000 * number,
        **more,
    }


def test_sglang_describes_its_base_model_and_adds_up_its_loads(server: Canned) -> None:
    loads = [sglang_load(1, decode_moments=[7.0, 1.0]), sglang_load(2)]
    server.said = {
        "/server_info": OPTIONS,
        "/v1/models": {"data": CARDS},
        "/v1/loads?include=core": {"loads": loads},
    }
    upstream = SglangUpstream(server.url)
    assert use(upstream, ("describe",), ("load",)) == [
        ServerInfo(
            "0.5.23",
            ("poet", "tiny"),
            root="/models/tiny",
            revision="abc",
            context_window=4096,
            quantization="fp8",
            dtype="bfloat16",
            adapters=("poet",),
            batch_invariant=False,
        ),
        ServerLoad(3, 30, kv_use=0.2, kv_tokens=300, num_tokens=3007, max_running=15),
    ]
    assert upstream.capabilities == Capabilities(grammars=ANY | {"lark"}, cache_salt=True, seeds=False)


@pytest.mark.parametrize(
    ("backend", "grammars"), [("xgrammar", ANY), ("outlines", ANY), ("none", frozenset()), (None, frozenset())]
)
def test_sglangs_options_say_what_it_can_do(server: Canned, backend: str | None, grammars: frozenset[str]) -> None:
    options = {
        "grammar_backend": backend,
        "enable_priority_scheduling": True,
        "enable_deterministic_inference": True,
    }
    server.said = {"/server_info": options, "/v1/models": {"data": []}, "/v1/loads?include=core": {"loads": []}}
    upstream = SglangUpstream(server.url)
    info, load = use(upstream, ("describe",), ("load",))
    assert (info, load) == (ServerInfo(None, (), batch_invariant=True), ServerLoad(0, 0, kv_use=0.0, num_tokens=0))
    assert upstream.capabilities == Capabilities(
        grammars=grammars, priorities=True, cache_salt=True, continues_seed=True
    )


WHOLE_REQUEST = {
    "rid": "job-1.",
    "input_ids": [1, 2],
    "stream": True,
    "sampling_params": {
        "max_new_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "ignore_eos": False,
        "sampling_seed": 3,
        "stop_token_ids": [9, 256],
        "min_p": 0.1,
        "min_new_tokens": 4,
        "logit_bias": {"5": -1.5},
    },
    "extra_key": "salt",
    "return_logprob": True,
    "logprob_start_len": -1,
    "top_logprobs_num": 2,
}
REQUEST_TO_ADAPTER = {
    "rid": "job-2.",
    "input_ids": [1],
    "stream": True,
    "sampling_params": {
        "max_new_tokens": 8,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
    },
    "lora_path": "poet",
    "priority": 0,
    "return_logprob": True,
    "logprob_start_len": -1,
    "top_logprobs_num": 0,
}


@pytest.mark.parametrize(("options", "priority"), [({}, -2), ({"schedule_low_priority_values_first": True}, 2)])
def test_sglang_gets_all_of_a_request(server: Canned, options: dict[str, Any], priority: int) -> None:
    server.said = {
        "/server_info": OPTIONS | {"enable_priority_scheduling": True} | options,
        "/v1/models": {"data": CARDS},
        "/generate": DONE,
        "/abort_request": "",
    }
    poet = replace(PLAIN, model="poet", sampling=SamplingParams(8, ignore_eos=True, logprobs=0))
    use(
        SglangUpstream(server.url),
        ("describe",),
        ("generate", REQUEST),
        ("generate", poet),
        ("abort", ["job-1", "job-2"]),
    )
    assert server.asked[2:] == [
        ("/generate", WHOLE_REQUEST | {"priority": priority}),
        ("/generate", REQUEST_TO_ADAPTER),
        ("/abort_request", {"rid": "job-1."}),
        ("/abort_request", {"rid": "job-2."}),
    ]


def sglang_event(output: list[int], count: int, **meta: Any) -> dict[str, Any]:
    return {"output_ids": output, "meta_info": {"completion_tokens": count, **meta}}


def test_sglangs_events_are_read_whether_they_repeat_or_not(server: Canned) -> None:
    one, two = [-0.1, 5, None], [-0.2, 6, None]
    events = [
        sglang_event(
            [5], 1, cached_tokens=3, output_token_logprobs=[one], output_top_logprobs=[[one, [-2.0, 8, None]]]
        ),
        sglang_event([5], 1, cached_tokens=3, output_token_logprobs=[one], output_top_logprobs=[[one]]),
        sglang_event(
            [5, 6],
            2,
            cached_tokens=3,
            finish_reason={"type": "length"},
            output_token_logprobs=[one, two],
            output_top_logprobs=[[one], [two]],
        ),
    ]
    server.said = {"/generate": [*events, *DONE]}
    assert use(SglangUpstream(server.url), ("generate", REQUEST)) == [
        [
            Piece((5,), logprobs=(SampledLogprobs(-0.1, (5, 8), (-0.1, -2.0)),), num_cached_tokens=3),
            Piece(()),
            Piece((6,), logprobs=(SampledLogprobs(-0.2, (6,), (-0.2,)),), finish=FinishReason.LENGTH),
        ]
    ]
    aborts = ({"type": "abort"}, {"type": "abort", "status_code": 400, "message": "too long"})
    found = []
    for abort in aborts:
        server.said = {"/generate": [sglang_event([], 0, finish_reason=abort)]}
        found += use(SglangUpstream(server.url), ("generate", PLAIN))
    assert [(type(error), str(error)) for error in found] == [
        (UpstreamLost, Naming("aborted")),
        (UpstreamRefused, Naming(": too long")),
    ]
