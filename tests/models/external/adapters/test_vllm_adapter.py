"""All that the adapter of vLLM reads from answers and writes into requests, value by value."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.requests import FinishReason, SampledLogprobs
from headrace.models.external.upstream import Capabilities, Piece, ServerInfo, ServerLoad, UpstreamLost
from headrace.models.external.vllm import VllmUpstream
from tests.models.external.adapters.canned import ANY, CARDS, DONE, PLAIN, REQUEST, STREAMED, Canned, use
from tests.refusals import Naming


def vllm_says(server: Canned, **said: Any) -> None:
    server.said = {
        "/version": {"version": "0.32.0"},
        "/v1/models": {"data": CARDS},
        "/inference/v1/abort_requests": "",
        "/inference/v1/generate": DONE,
    } | said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        (
            {"vllm_config": {"model_config": {"dtype": "torch.bfloat16", "revision": "abc", "quantization": "awq"}}},
            {"dtype": "bfloat16", "revision": "abc", "quantization": "awq", "batch_invariant": False},
        ),
        ({"vllm_config": {}, "vllm_env": {"VLLM_BATCH_INVARIANT": "1"}}, {"batch_invariant": True}),
        ({"vllm_config": {}, "vllm_env": {"VLLM_BATCH_INVARIANT": True}}, {"batch_invariant": True}),
    ],
)
def test_vllm_describes_its_base_model_and_its_adapters(
    server: Canned, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    vllm_says(server, **({"/server_info?config_format=json": settings} if settings else {}))
    assert use(VllmUpstream(server.url), ("describe",)) == [
        ServerInfo(
            "0.32.0",
            ("poet", "tiny"),
            root="/models/tiny",
            context_window=4096,
            adapters=("poet",),
            **expected,
        )
    ]


REFUSED = {"error": {"message": "no", "code": 400}}


@pytest.mark.parametrize(
    ("refuses", "priorities", "grammars"),
    [
        ((), True, ANY | {"lark"}),
        (("grammar",), True, ANY),
        (("grammar", "regex"), True, frozenset()),
        (("priority",), False, ANY | {"lark"}),
    ],
)
def test_vllm_is_asked_what_its_api_does_not_say(
    server: Canned, refuses: tuple[str, ...], priorities: bool, grammars: frozenset[str]
) -> None:
    def answer(body: dict[str, Any]) -> list[Any]:
        outputs = body["sampling_params"].get("structured_outputs", {})
        is_refused = any(name in outputs or (name == "priority" and body["priority"]) for name in refuses)
        return [REFUSED, *DONE] if is_refused else DONE

    vllm_says(server, **{"/inference/v1/generate": answer})
    upstream = VllmUpstream(server.url)
    use(upstream, ("describe",))
    assert upstream.capabilities == Capabilities(
        grammars=grammars,
        priorities=priorities,
        cache_salt=True,
        bad_words=True,
        echo=True,
        continues_repetition_penalty=True,
    )
    asked = [body["priority"] for path, body in server.asked if path == "/inference/v1/generate"]
    assert set(asked) == ({-1} if priorities else {-1, 0})


METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 4.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:num_requests_waiting{engine="1"} 5.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:cache_config_info{kv_cache_size_tokens="1000",engine="0"} 1.0
vllm:cache_config_info{kv_cache_size_tokens="None",num_gpu_blocks="20",block_size="16",engine="1"} 1.0
vllm:cache_config_info{num_gpu_blocks="None",block_size="16",engine="2"} 1.0
vllm:num_preemptions_total{engine="0"} 2.0
vllm:prefix_cache_hits_total{engine="0"} 11.0
vllm:prompt_tokens_total{engine="0"} 100.0
vllm:generation_tokens_total{engine="0"} 20.0
vllm:iteration_tokens_total_count{engine="0"} 3.0
process_start_time_seconds 1.5
"""


def test_the_metrics_of_all_engines_of_vllm_are_added_up(server: Canned) -> None:
    upstream = VllmUpstream(server.url)
    server.said = {"/metrics": METRICS}
    assert use(upstream, ("load",)) == [
        ServerLoad(
            7,
            6,
            kv_use=0.5,
            kv_tokens=1320,
            num_tokens=123,
            preempted=2,
            prefix_hits=11,
            started_at=1.5,
        )
    ]
    server.said = {"/metrics": 'vllm:num_requests_running{engine="0"} 3.0\n'}
    assert use(VllmUpstream(server.url), ("load",)) == [ServerLoad(3, 0, num_tokens=0, preempted=0, prefix_hits=0)]
    server.said = {"/metrics": "other 1.0\n"}
    (lost,) = use(VllmUpstream(server.url), ("load",))
    assert type(lost) is UpstreamLost
    assert str(lost) == Naming("metrics", "vLLM")


SAMPLING = {
    "max_tokens": 8,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.25,
    "frequency_penalty": -0.5,
    "ignore_eos": False,
    "seed": 3,
    "stop_token_ids": [9, 256],
    "min_tokens": 4,
    "logit_bias": {"5": -1.5},
    "logprobs": 3,
    "stream_interval": 8,
}
OFF = {
    "max_tokens": 8,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": False,
}


def test_vllm_gets_all_of_a_request(server: Canned) -> None:
    vllm_says(server)
    use(VllmUpstream(server.url), ("describe",), ("generate", REQUEST), ("generate", PLAIN))
    assert server.asked[-2:] == [
        (
            "/inference/v1/generate",
            {
                "token_ids": [1, 2],
                "sampling_params": {**SAMPLING, "detokenize": False},
                "request_id": "job-1",
                "priority": 2,
                "cache_salt": "salt",
                **STREAMED,
            },
        ),
        (
            "/inference/v1/generate",
            {"token_ids": [1], "sampling_params": {**OFF, "detokenize": False}, "request_id": "job-2", **STREAMED},
        ),
    ]
    del server.said["/inference/v1/abort_requests"]
    server.said["/v1/completions"] = DONE
    most = replace(REQUEST, sampling=replace(REQUEST.sampling, logprobs=20, bad_words=("no",)))
    use(VllmUpstream(server.url), ("describe",), ("generate", most), ("abort", ["job-1"]))
    assert server.asked[-1] == (
        "/v1/completions",
        {
            **SAMPLING,
            "logprobs": 20,
            "bad_words": ["no"],
            "prompt": [1, 2],
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "request_id": "job-1",
            "priority": 2,
            "cache_salt": "salt",
            **STREAMED,
        },
    ), "and the closed connection is the abort"


def test_vllm_aborts_by_the_ids_that_it_knows(server: Canned) -> None:
    vllm_says(server)
    use(VllmUpstream(server.url), ("abort", []), ("abort", ["a", "b"]))
    assert server.asked == [
        ("/inference/v1/abort_requests", {"request_ids": ["generate-tokens-a", "generate-tokens-b"]})
    ]


def tops(*pairs: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"token_id": token, "logprob": value} for token, value in pairs]


def test_vllms_pieces_have_their_tokens_logprobs_and_reasons(server: Canned) -> None:
    content = [{"logprob": -0.7, "top_logprobs": tops((5, -0.7), (6, -0.1), (7, -3.0))}]
    usage = {"prompt_tokens_details": {"cached_tokens": 1}}
    server.said = {
        "/inference/v1/generate": [
            {"choices": [{"token_ids": [5], "logprobs": {"content": content}}]},
            {"choices": [{"token_ids": [], "finish_reason": "repetition"}]},
            {"choices": [], "usage": usage},
            *DONE,
        ]
    }
    assert use(VllmUpstream(server.url), ("generate", REQUEST)) == [
        [
            Piece((5,), logprobs=(SampledLogprobs(-0.7, (6, 5), (-0.1, -0.7)),)),
            Piece((), finish=FinishReason.STOP, num_cached_tokens=1),
        ]
    ]
    server.said = {"/inference/v1/generate": [{"choices": [{"token_ids": [5], "finish_reason": "length"}]}, *DONE]}
    assert use(VllmUpstream(server.url), ("generate", PLAIN), ("generate", REQUEST))[0] == [
        Piece((5,), finish=FinishReason.LENGTH)
    ]
    (lost,) = use(VllmUpstream(server.url), ("generate", REQUEST))
    assert str(lost) == Naming("0 logprobs", "1 tokens")
