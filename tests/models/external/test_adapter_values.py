"""All that an adapter reads from a server's answers and writes into its requests, value by value."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from models.engine.requests import EngineError, FinishReason, Grammar, SampledLogprobs, SamplingParams
from models.external.openai_chat import OpenaiChatUpstream
from models.external.server_client import ServerClient
from models.external.sglang import SglangUpstream
from models.external.upstream import (
    Capabilities,
    Piece,
    ServerInfo,
    ServerLoad,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamLost,
    UpstreamRefused,
    UpstreamRequest,
)
from models.external.vllm import VllmUpstream
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


@pytest.fixture
def server() -> Iterator[Canned]:
    canned = Canned()
    yield canned
    canned.close()


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
ANY = frozenset({"json_schema", "regex", "choice"})


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
    assert str(lost) == "the inference server's metrics say nothing of its requests: is it vLLM?"


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
STREAMED = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}}


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
    assert str(lost) == "the inference server sent 0 logprobs for 1 tokens"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            {"message": "x", "type": "EngineDeadError", "code": 500},
            UpstreamLost,
            "the inference server's engine has died: x",
        ),
        ({"message": "x"}, UpstreamFailed, "the inference server failed (HTTP 500): x"),
        ({"message": "x", "code": 400}, UpstreamRefused, "the inference server refuses the request: x"),
        ({"message": "x", "code": 503}, UpstreamBusy, "the inference server takes no requests (HTTP 503): x"),
    ],
)
def test_an_error_in_a_stream_has_its_reason(
    server: Canned, error: dict[str, Any], kind: type[EngineError], message: str
) -> None:
    server.said = {"/inference/v1/generate": [{"error": error}, *DONE], "/generate": [{"error": error}]}
    (found,) = use(VllmUpstream(server.url), ("generate", PLAIN))
    assert (type(found), str(found)) == (kind, message)
    if kind is not UpstreamLost:
        (found,) = use(SglangUpstream(server.url), ("generate", PLAIN))
        assert (type(found), str(found)) == (kind, message)


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
        (
            "/generate",
            {
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
                "priority": priority,
                "return_logprob": True,
                "logprob_start_len": -1,
                "top_logprobs_num": 2,
            },
        ),
        (
            "/generate",
            {
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
            },
        ),
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
        (UpstreamLost, "the inference server has aborted the request"),
        (UpstreamRefused, "the inference server refuses the request: too long"),
    ]


@pytest.mark.parametrize(
    ("models", "window"),
    [
        ([{"id": "a", "max_model_len": 10}], 10),
        ([{"id": "a", "context_length": 11}], 11),
        ([{"id": "a", "context_window": 12, "max_model_len": "many"}], 12),
        ([{"id": "a"}], None),
        ([{"id": "a", "max_model_len": 10}, {"id": "b", "max_model_len": 20}], None),
    ],
)
def test_a_chat_server_says_the_window_of_its_only_model(
    server: Canned, models: list[dict[str, Any]], window: int | None
) -> None:
    server.said = {"/v1/models": {"data": models}}
    names = tuple(one["id"] for one in models)
    assert use(OpenaiChatUpstream(server.url), ("describe",)) == [ServerInfo(None, names, context_window=window)]


def test_a_chat_server_is_asked_now_and_then_whether_it_is_there(server: Canned) -> None:
    now = [0.0]
    server.said = {"/v1/models": {"data": [{"id": "a"}]}}
    upstream = OpenaiChatUpstream(server.url, ask_every_s=15.0, clock=lambda: now[0])

    async def watch() -> list[int]:
        counts = []
        try:
            await upstream.describe()
            for now[0] in (15.0, 16.0, 31.0, 32.0):
                assert await upstream.load() == ServerLoad(0, 0)
                counts.append(len(server.asked))
            server.said = {"/v1/models": {"data": [{"id": "b"}]}}
            now[0] = 60.0
            with pytest.raises(UpstreamLost, match="the models of the inference server have changed"):
                await upstream.load()
            return counts
        finally:
            await upstream.close()

    assert asyncio.run(watch()) == [1, 2, 2, 3]


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        ('{"type": "object"}', {"type": "json_object"}),
        (
            '{"type": "boolean"}',
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "boolean"}, "strict": True},
            },
        ),
    ],
)
def test_a_chat_server_gets_all_of_a_request(server: Canned, schema: str, form: dict[str, Any]) -> None:
    server.said = {CHAT: DONE}
    sampling = replace(REQUEST.sampling, seed=0, grammar=Grammar("json_schema", schema))
    use(
        OpenaiChatUpstream(server.url),
        ("generate", replace(REQUEST, sampling=sampling, messages={"messages": [], "tools": [1]})),
        ("generate", PLAIN),
    )
    assert [body for _, body in server.asked] == [
        {
            "messages": [],
            "tools": [1],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 8,
            "seed": 0,
            "presence_penalty": 0.25,
            "frequency_penalty": -0.5,
            "logit_bias": {"5": -1.5},
            "response_format": form,
            **STREAMED,
        },
        {"temperature": 0.0, "top_p": 1.0, "max_tokens": 8, **STREAMED},
    ]


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def call(index: int, **function: Any) -> dict[str, Any]:
    return {"index": index, "function": function}


USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 6},
}


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("events", "text", "last"),
    [
        (
            [delta(content="a"), {"choices": [], "usage": USAGE}, delta("max_tokens")],
            "a",
            Piece(
                finish=FinishReason.LENGTH,
                num_prompt_tokens=12,
                num_cached_tokens=5,
                num_output_tokens=34,
                num_reasoning_tokens=6,
            ),
        ),
        (
            [delta(content="a"), delta(), delta("eos", refusal="b")],
            "ab",
            Piece(finish=FinishReason.STOP, num_output_tokens=2),
        ),
        ([delta("length", content="a")], "a", Piece(finish=FinishReason.LENGTH, num_output_tokens=1)),
        (
            [delta(reasoning="r"), delta(tool_calls=[call(0, name="f")]), delta(reasoning="late"), delta("stop")],
            '<think>r</think><tool_call>\n{"name": "f", "arguments": ',
            Piece(text="{}}\n</tool_call>", finish=FinishReason.STOP, num_output_tokens=2),
        ),
        (
            [
                delta(reasoning_content="r"),
                delta(refusal="no"),
                delta(tool_calls=[call(0, name="f", arguments="{}")]),
                delta(tool_calls=[call(1, name="g"), {"id": "", **call(1, arguments="[]")}]),
                delta("stop", content="."),
            ],
            '<think>r</think>no<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><tool_call>\n'
            '{"name": "g", "arguments": []}\n</tool_call>.',
            Piece(finish=FinishReason.STOP, num_output_tokens=5),
        ),
    ],
)
def test_a_chat_servers_answer_is_text(server: Canned, events: list[Any], text: str, last: Piece) -> None:
    for end in (DONE, []):
        server.said = {CHAT: [*events, *end]}
        (pieces,) = use(OpenaiChatUpstream(server.url), ("generate", PLAIN))
        assert (text_of(pieces[:-1]), pieces[-1]) == (text, last)
    reasoning = "".join(piece.text[: piece.num_reasoning] for piece in pieces)
    assert reasoning == (text[: text.index("</think>") + 8] if "<think>" in text else "")


@pytest.mark.parametrize(
    ("events", "kind", "message"),
    [
        ([delta("error")], UpstreamFailed, "the inference server has failed in the middle of the answer"),
        ([delta("abort")], UpstreamFailed, "the inference server has failed in the middle of the answer"),
        ([delta("content_filter")], UpstreamRefused, "the inference server's content filter has ended the answer"),
        (
            [{"error": {"message": "m", "code": 400}}],
            UpstreamRefused,
            "the inference server refuses the request: m",
        ),
        (
            [{"error": {"message": "m", "code": "bad"}}],
            UpstreamFailed,
            "the inference server failed (HTTP 500): m",
        ),
        ([{"error": "m"}], UpstreamFailed, "the inference server failed (HTTP 500): m"),
        (
            [delta(tool_calls=[call(0, name="f")]), delta(tool_calls=[call(1, arguments="{}")])],
            UpstreamFailed,
            "the inference server mixed the arguments of several tool calls",
        ),
    ],
)
def test_a_chat_server_may_fail_in_its_answer(
    server: Canned, events: list[Any], kind: type[EngineError], message: str
) -> None:
    server.said = {CHAT: events}
    (error,) = use(OpenaiChatUpstream(server.url), ("generate", PLAIN))
    assert (type(error), str(error)) == (kind, message)


def test_only_a_refusal_of_the_limits_name_makes_a_second_request(server: Canned) -> None:
    upstream = OpenaiChatUpstream(server.url)
    server.said = {CHAT: (400, {"error": {"message": "'max_completion_tokens' is too large"}})}
    use(upstream, ("generate", PLAIN))
    assert len(server.asked) == 1
    server.said = {CHAT: (400, {"error": {"message": "use 'max_completion_tokens', not 'max_tokens'"}})}
    (refused,) = use(OpenaiChatUpstream(server.url), ("generate", PLAIN))
    assert type(refused) is UpstreamRefused
    assert [list(body)[-1] for _, body in server.asked[1:]] == ["max_tokens", "max_completion_tokens"]


LONG = "y" * 400


@pytest.mark.parametrize(
    ("status", "said", "kind", "message", "code"),
    [
        (408, {"error": {"message": "m"}}, UpstreamBusy, "takes no requests (HTTP 408): m", "worker_lost"),
        (403, {"error": "m"}, UpstreamBusy, "takes no requests (HTTP 403): m", "worker_lost"),
        (504, "gateway\nline", UpstreamBusy, "takes no requests (HTTP 504): gateway", "worker_lost"),
        (501, {"message": "m"}, UpstreamFailed, "failed (HTTP 501): m", "engine_error"),
        (422, {"detail": "d"}, UpstreamRefused, "refuses the request: d", "invalid_value"),
        (400, {"error": {"message": LONG}}, UpstreamRefused, f"refuses the request: {LONG[:300]}", "invalid_value"),
        (
            400,
            {"error": {"message": 'bad, "input": [1]'}},
            UpstreamRefused,
            "refuses the request: bad,",
            "invalid_value",
        ),
        (
            400,
            {"error": {"message": "bad data:image/png;base64,AAAA"}},
            UpstreamRefused,
            "refuses the request: bad data:image/png",
            "invalid_value",
        ),
        (
            400,
            {"error": {"message": "bad input_value=7"}},
            UpstreamRefused,
            "refuses the request: bad",
            "invalid_value",
        ),
        (
            413,
            {"error": {"message": "m", "type": "exceed_context_size_error"}},
            UpstreamRefused,
            "refuses the request: m",
            "context_length_exceeded",
        ),
        (
            500,
            {"error": {"message": "m", "code": "context_length_exceeded"}},
            UpstreamFailed,
            "failed (HTTP 500): m",
            "engine_error",
        ),
    ],
)
def test_the_status_and_the_message_of_a_refusal_make_the_error(
    server: Canned, status: int, said: Any, kind: type[EngineError], message: str, code: str
) -> None:
    server.said = {"/x": (status, said)}
    (error,) = use(ServerClient(server.url), ("get", "/x"))
    assert (type(error), str(error), error.code) == (kind, f"the inference server {message}", code)


@pytest.mark.parametrize(
    ("status", "after", "pause_s"),
    [(429, "2.5", 2.5), (503, "1000", 300.0), (503, None, 1.0), (429, "soon", 1.0), (429, "-5", 0.0), (502, "9", 0.0)],
)
def test_a_busy_server_is_left_alone_for_as_long_as_it_says(
    server: Canned, status: int, after: str | None, pause_s: float
) -> None:
    now = [50.0]
    server.said = {"/x": (status, {})}
    server.headers = {} if after is None else {"retry-after": after}
    client = ServerClient(server.url, clock=lambda: now[0])
    use(client, ("get", "/x"))
    now[0] = 50.0 + 0.9 * pause_s
    assert client.is_paused == (pause_s > 0)
    now[0] = 50.0 + pause_s
    assert not client.is_paused


def test_an_answer_is_bounded_and_its_last_line_counts(server: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.external.server_client._MAX_ANSWER_BYTES", 10)
    server.said = {
        "/ten": "0123456789",
        "/more": "0123456789x",
        "/none": "[]",
        "/events": 'data: {"a": 1}\nother: 2\ndata:b',
    }

    async def read() -> tuple[bytes, str, Any, list[bytes]]:
        client = ServerClient(server.url, "key")
        try:
            with pytest.raises(UpstreamLost) as lost:
                await client.get("/more")
            events = [data async for data in client.stream("/events", {"b": 2})]
            return await client.get("/ten"), str(lost.value), await client.get_json("/none"), events
        finally:
            await client.close()

    assert asyncio.run(read()) == (
        b"0123456789",
        "the inference server's answer is larger than 10 bytes",
        [],
        [b'{"a": 1}', b"b"],
    )
    assert json.dumps(server.asked[1]) == '["/events", {"b": 2}]'
