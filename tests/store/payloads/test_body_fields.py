"""The bounds, the defaults and the combinations of the fields of bodies, and the words of a refusal. No I/O."""

import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from headrace.features.flows.tools.tool_definition import HttpTool, McpEndpoint
from headrace.features.retrieval.ingest_order import IngestSource
from headrace.store.payloads.conversation import ChatMessage, FunctionSpec, Image, MessageImage, ToolCall
from headrace.store.payloads.job_payload import JobTerms, WebhookSpec
from headrace.store.payloads.prompt_reference import PromptReference
from headrace.store.payloads.reasoning import ReasoningOptions
from headrace.store.payloads.retrieval import RankingOptions, Retrieval
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.payloads.server_tools import ServerTools
from headrace.store.payloads.strict_model import Strict
from headrace.store.payloads.tool_approval import ApprovalByName
from tests.store.payloads.making import MCP, SOURCE, TOOL, call, nested, numbered

DEFAULT_TERMS = {
    "service_class": "standard",
    "priority": 5,
    "deadline_ms": None,
    "start_after": None,
    "max_attempts": None,
    "webhook": None,
    "user": None,
    "metadata": {},
}
REQUIRED: dict[type[BaseModel], dict[str, Any]] = {
    JobTerms: {},
    WebhookSpec: {"url": "https://example.com"},
    IngestSource: SOURCE,
    PromptReference: {"id": "p"},
    ReasoningOptions: {},
    RankingOptions: {},
    Retrieval: {"vector_store_ids": ["a"]},
    Sampling: {},
    ServerTools: {"names": ["calculator"]},
    HttpTool: TOOL,
    McpEndpoint: MCP,
    ChatMessage: {"role": "user", "content": "a"},
    ToolCall: {"id": "c", "function": {"name": "f", "arguments": ""}},
    FunctionSpec: {"name": "f"},
    MessageImage: {"url": "https://example.com/a.png"},
}


@pytest.mark.parametrize(
    ("kind", "field", "accepted", "refused"),
    [
        (JobTerms, "priority", (0, 9), (-1, 10)),
        (JobTerms, "deadline_ms", (1, 2_592_000_000), (0, 2_592_000_001)),
        (JobTerms, "max_attempts", (1, 100), (0, 101)),
        (JobTerms, "user", ("u", "u" * 512), ("", "u" * 513)),
        (
            JobTerms,
            "metadata",
            ({"k" * 64: "v" * 512}, {"k": ""}, numbered(16)),
            ({"": "v"}, {"k" * 65: "v"}, {"k": "v" * 513}, numbered(17)),
        ),
        (WebhookSpec, "url", ("u", "u" * 2048), ("", "u" * 2049)),
        (WebhookSpec, "events", (("job.failed", "response.incomplete"), None), ([], ["batch.completed"])),
        (IngestSource, "vector_store_id", ("v" * 255,), ("", "v" * 256)),
        (IngestSource, "filename", ("", "f" * 255), ("f" * 256,)),
        (IngestSource, "num_bytes", (0, 10**12), (-1,)),
        (IngestSource, "chunk_tokens", (1, 4096), (0, 4097)),
        (IngestSource, "overlap_tokens", (0, 4096), (-1, 4097)),
        (PromptReference, "id", ("p" * 300,), ("", "p" * 301)),
        (PromptReference, "version", (3, "v" * 64, None), (True, 1.5, "v" * 65)),
        (PromptReference, "variables", (numbered(64), {"_a1": 1}), (numbered(65), {"1a": 1}, {"a-b": 1}, {"": 1})),
        (ReasoningOptions, "max_tokens", (1, 131_072), (0, 131_073)),
        (RankingOptions, "ranker", ("r" * 200,), ("", "r" * 201)),
        (RankingOptions, "score_threshold", (0.0, 1.0), (-0.01, 1.01)),
        (
            Retrieval,
            "vector_store_ids",
            (("v" * 64,), tuple(map(str, range(8)))),
            ([], [""], ["v" * 65], [*map(str, range(9))]),
        ),
        (Retrieval, "max_num_results", (1, 50), (0, 51, "5")),
        (Retrieval, "max_context_tokens", (1, 131_072), (0, 131_073, "5")),
        (Sampling, "min_p", (0.0, 1.0), (-0.01, 1.01)),
        (Sampling, "min_tokens", (0, 131_072), (-1, 131_073)),
        (Sampling, "stop_token_ids", ((0, 2**31 - 1), tuple(range(64))), ([-1], [2**31], [*range(65)])),
        (
            Sampling,
            "logit_bias",
            ({0: -100.0, 2**31 - 1: 100.0}, dict.fromkeys(range(1024), 0.0)),
            ({0: -100.1}, {0: 100.1}, {-1: 0}, {2**31: 0}, dict.fromkeys(range(1025), 0)),
        ),
        (Sampling, "bad_words", (("w" * 256,), tuple("w" * 64)), ([""], ["w" * 257], [*"w" * 65])),
        (ServerTools, "names", (tuple(f"t{n}" for n in range(32)),), ([], ["a b"], [f"t{n}" for n in range(33)])),
        (ServerTools, "max_tool_calls", (0, 127), (-1, 128, "6")),
        (ServerTools, "approval_timeout_ms", (1000, 604_800_000), (999, 604_800_001, "1000")),
        (HttpTool, "timeout_ms", (100, 60_000), (99, 60_001, "100")),
        (HttpTool, "max_attempts", (1, 5), (0, 6, "1")),
        (HttpTool, "max_result_bytes", (1, 262_144), (0, 262_145, "1")),
        (HttpTool, "description", ("", "d" * 4096), ("d" * 4097,)),
        (
            HttpTool,
            "headers",
            (numbered(20, "v"), {"X": "v" * 4096}, {"X": "a b"}),
            (numbered(21, "v"), {"X": "v" * 4097}, {"X": ""}, {"X": " a"}, {"X": "a\n"}, {"X" * 129: "v"}),
        ),
        (McpEndpoint, "only", (("t" * 128,), tuple("t" * 64)), ([], [""], ["t" * 129], [*"t" * 65])),
        (ChatMessage, "content", ("", "c" * 1_000_000), ("c" * 1_000_001,)),
        (ChatMessage, "name", ("n" * 64, "é"), ("", "n" * 65, "a b", "a<b", "a|b", "a\\b", "a/b", "a>b")),
        (ToolCall, "id", ("i", "i" * 128), ("", "i" * 129)),
        (FunctionSpec, "name", ("f-_1" + "f" * 60,), ("", "f" * 65, "a.b", "é")),
        (FunctionSpec, "description", ("", "d" * 65_536), ("d" * 65_537,)),
        (MessageImage, "at", (0, 9), (-1, "1")),
        (MessageImage, "detail", ("auto", "low", "high", None), ("medium",)),
        (MessageImage, "url", ("u", "u" * 11_184_938), ("", "u" * 11_184_939)),
    ],
)
def test_a_field_takes_its_bounds_and_nothing_beyond_them(
    kind: type[BaseModel], field: str, accepted: tuple[Any, ...], refused: tuple[Any, ...]
) -> None:
    required = REQUIRED[kind]
    for value in accepted:
        assert getattr(kind.model_validate(required | {field: value}), field) == value
    for value in refused:
        with pytest.raises(ValidationError) as caught:
            kind.model_validate(required | {field: value})
        assert {problem["loc"][0] for problem in caught.value.errors()} == {field}, value


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (JobTerms, DEFAULT_TERMS),
        (WebhookSpec, {"events": None}),
        (PromptReference, {"version": None, "variables": None}),
        (ReasoningOptions, {"effort": None, "max_tokens": None, "optional": False}),
        (RankingOptions, {"ranker": None, "score_threshold": None, "hybrid_search": None}),
        (
            Retrieval,
            {"max_num_results": 5, "filters": None, "ranking_options": None, "max_context_tokens": 2048},
        ),
        (
            ServerTools,
            {
                "model": None,
                "max_tool_calls": 6,
                "tool_choice": "auto",
                "file_search": None,
                "require_approval": "never",
                "approval_timeout_ms": 3_600_000,
            },
        ),
        (
            HttpTool,
            {
                "headers": {},
                "timeout_ms": 10_000,
                "max_attempts": 2,
                "max_result_bytes": 16_384,
                "description": "",
                "parameters": {"type": "object", "properties": {}},
                "require_approval": "never",
            },
        ),
        (
            McpEndpoint,
            {
                "headers": {},
                "timeout_ms": 10_000,
                "max_attempts": 2,
                "max_result_bytes": 16_384,
                "command": None,
                "only": None,
                "require_approval": "never",
            },
        ),
        (MessageImage, {"file_id": None, "at": 0, "detail": None}),
        (FunctionSpec, {"description": None, "parameters": None, "strict": None}),
    ],
)
def test_a_body_with_its_required_fields_alone_has_these_defaults(
    kind: type[BaseModel], defaults: dict[str, Any]
) -> None:
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in REQUIRED[kind].items()}
    found = kind.model_validate(REQUIRED[kind])
    assert {name: getattr(found, name) for name in type(found).model_fields} == given | defaults


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (
            ChatMessage,
            {"role": "user", "content": "a", "tool_calls": [call("1")]},
            "assistant has `tool_calls`",
        ),
        (
            ChatMessage,
            {"role": "user", "content": "a", "reasoning_content": "b"},
            "assistant has `reasoning_content`",
        ),
        (
            ChatMessage,
            {"role": "assistant", "content": "a", "images": [{"url": "https://example.com/a"}]},
            "user has `images`",
        ),
        (
            ChatMessage,
            {"role": "tool", "content": "a"},
            "`tool_call_id`",
        ),
        (
            ChatMessage,
            {"role": "user", "content": "a", "tool_call_id": "1"},
            "`tool_call_id`",
        ),
        (ChatMessage, {"role": "user"}, "Field required"),
        (
            FunctionSpec,
            {"name": "f", "parameters": {"type": "array"}},
            '`"type": "object"`',
        ),
        (FunctionSpec, {"name": "f", "parameters": nested(65)}, "64 levels"),
        (FunctionSpec, {"name": "f", "parameters": {"a": [[nested(62)]]}}, "64 levels"),
        (FunctionSpec, {"name": "f", "parameters": {"a": "x" * 65_528}}, "65536 characters"),
        (Image, {}, "`url` and `file_id`"),
        (Image, {"url": "u", "file_id": "f"}, "`url` and `file_id`"),
        (
            WebhookSpec,
            {"url": "u", "events": ["b", "a", "job.failed"]},
            r"a, b: .*job\.approval_required, job\.cancelled, .*response\.failed, response\.incomplete",
        ),
        (
            PromptReference,
            {"id": "p", "version": "1", "Version": 1, "other": 2},
            "'Version': .*`id`, `version` and `variables`",
        ),
        (
            ReasoningOptions,
            {"effort": "none", "max_tokens": 1},
            "`none` .*`max_tokens`",
        ),
        (
            RankingOptions,
            {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}},
            "`embedding_weight` and `text_weight` .*0",
        ),
        (Sampling, {"max_tokens": 0}, "1: 0 .*`echo`"),
        (
            Sampling,
            {"grammar": {"kind": "regex", "text": "a"}, "ignore_eos": True},
            "grammar .*`ignore_eos`",
        ),
        (
            Sampling,
            {"grammar": {"kind": "regex", "text": "a"}, "min_tokens": 1},
            "grammar .*`min_tokens`",
        ),
        (ServerTools, {"names": ["a", "b", "a"]}, "tool .*twice"),
        (
            ServerTools,
            {"names": ["a"], "tool_choice": "required", "max_tool_calls": 0},
            "`tool_choice` .*`max_tool_calls` .*1",
        ),
        (
            ServerTools,
            {"names": ["file_search"]},
            "`file_search` in `names`",
        ),
        (
            ServerTools,
            {"names": ["a"], "file_search": {"vector_store_ids": ["v"]}},
            "`file_search` in `names`",
        ),
        (ApprovalByName, {}, "`always`, `never`"),
        (
            ApprovalByName,
            {"always": {"tool_names": ["c", "b", "a"]}, "never": {"tool_names": ["b", "c"]}},
            "b is in `always`",
        ),
        (HttpTool, TOOL | {"headers": {"a b": "v"}}, "name of a header"),
        (HttpTool, TOOL | {"headers": {"Host": "v"}}, "header Host "),
        (
            HttpTool,
            TOOL | {"headers": {"X": "é"}},
            "header X .*4096",
        ),
        (HttpTool, TOOL | {"headers": {"X-A": "1", "x-a": "2"}}, "header .*twice"),
        (
            HttpTool,
            TOOL | {"parameters": {"type": "string"}},
            '`"type": "object"`',
        ),
        (McpEndpoint, {"type": "mcp"}, "`url` or `command`"),
        (McpEndpoint, MCP | {"command": "c"}, "`url` or `command`"),
        (
            McpEndpoint,
            {"type": "mcp", "command": "c", "headers": {"X": "v"}},
            "`headers` .*`url`",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused_by_name(
    kind: type[BaseModel], body: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    (problem,) = caught.value.errors()
    assert re.search(why, problem["msg"])


def test_nearly_too_much_is_accepted() -> None:
    assert FunctionSpec(name="f", parameters=nested(64)).parameters == nested(64)
    assert FunctionSpec(name="f", parameters={"a": "x" * 65_527}).parameters == {"a": "x" * 65_527}
    assert FunctionSpec(name="f", parameters={"a": [nested(62)]}).parameters == {"a": [nested(62)]}
    assert Sampling.model_validate({"max_tokens": 0, "echo": True, "logprobs": 0}).scores_prompt
    assert not Sampling.model_validate({"echo": True}).scores_prompt
    assert not Sampling.model_validate({"logprobs": 1}).scores_prompt
    assert ServerTools.model_validate({"names": ["a"], "tool_choice": "required", "max_tool_calls": 1}).names == ("a",)
    for weights in ({"embedding_weight": 0, "text_weight": 1000}, {"embedding_weight": 1, "text_weight": 0}):
        assert RankingOptions.model_validate({"hybrid_search": weights}).hybrid_search
    assert ReasoningOptions.model_validate({"effort": "none"}).max_tokens is None
    assert McpEndpoint.model_validate({"type": "mcp", "command": "c"}).headers == {}


def test_a_list_has_one_error_however_many_of_its_items_are_wrong() -> None:
    class Inner(Strict):
        metadata: dict[str, int]  # fields that are named as keywords of pydantic's schemas
        fields: tuple[int, ...]

    class Outer(Strict):
        numbers: frozenset[int]
        several: list[Inner] | None

    wrong = ["a", "b"]
    inner = {"metadata": dict.fromkeys(wrong, "c"), "fields": wrong}
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"numbers": wrong, "several": [inner, inner]})
    assert [problem["loc"] for problem in caught.value.errors()] == [
        ("numbers", 0),
        ("several", 0, "metadata", "a"),
        ("several", 0, "fields", 0),
    ]
