"""The bodies of requests and payloads: their bounds, their defaults, and the words of a refusal. No I/O."""

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from store.errors import InvalidRequest
from store.payloads.conversation import ChatMessage, FunctionSpec, ToolCall, check_messages, check_tool_results
from store.payloads.encoder_inputs import CutInput
from store.payloads.image_input import Image, MessageImage, images_of, urls_of
from store.payloads.ingest_order import IngestOrder, IngestSource, is_ingest
from store.payloads.job_payload import (
    CLASS_NAMES,
    CLASS_RANKS,
    JobTerms,
    PinnedPolicy,
    Usage,
    WebhookSpec,
    read_payload,
)
from store.payloads.prompt_reference import PromptReference
from store.payloads.reasoning import ReasoningOptions
from store.payloads.references import look_up, references, replaced, step_of
from store.payloads.retrieval import RankingOptions, Retrieval
from store.payloads.sampling_params import Sampling
from store.payloads.server_tools import ServerTools
from store.payloads.step_payload import Marks, with_references, with_texts
from store.payloads.template_variables import TemplateVariables
from store.payloads.tool_approval import ApprovalByName, named_in, needs_approval
from store.payloads.tool_definition import HttpTool, McpEndpoint, McpServer, read_definition, server_of
from store.payloads.truncation import Truncated, Truncation

DEFAULT_TERMS = {
    "service_class": "standard",
    "priority": 5,
    "deadline_ms": None,
    "max_attempts": None,
    "webhook": None,
    "user": None,
    "metadata": {},
}
SOURCE = {
    "vector_store_id": "vs",
    "file_id": "file",
    "filename": "",
    "ticket": "t",
    "num_bytes": 0,
    "chunk_tokens": 1,
    "overlap_tokens": 0,
}
TOOL = {"type": "http", "url": "https://example.com/t"}
MCP = {"type": "mcp", "url": "https://example.com/m"}
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


def numbered(count: int, value: Any = "") -> dict[str, Any]:
    return {f"k{number}": value for number in range(count)}


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


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "function": {"name": "f", "arguments": "{}"}}


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (
            ChatMessage,
            {"role": "user", "content": "a", "tool_calls": [call("1")]},
            "only the assistant has `tool_calls`",
        ),
        (
            ChatMessage,
            {"role": "user", "content": "a", "reasoning_content": "b"},
            "only the assistant has `reasoning_content`",
        ),
        (
            ChatMessage,
            {"role": "assistant", "content": "a", "images": [{"url": "https://example.com/a"}]},
            "only the user has `images`",
        ),
        (
            ChatMessage,
            {"role": "tool", "content": "a"},
            "a message of role `tool`, and no other, has the `tool_call_id` of the call it answers",
        ),
        (
            ChatMessage,
            {"role": "user", "content": "a", "tool_call_id": "1"},
            "a message of role `tool`, and no other, has the `tool_call_id` of the call it answers",
        ),
        (ChatMessage, {"role": "user"}, "Field required"),
        (
            FunctionSpec,
            {"name": "f", "parameters": {"type": "array"}},
            'the arguments of a function are a JSON object: its schema has `"type": "object"`',
        ),
        (FunctionSpec, {"name": "f", "parameters": nested(65)}, "a schema has at most 64 levels"),
        (FunctionSpec, {"name": "f", "parameters": {"a": "x" * 65_528}}, "a schema has at most 65536 characters"),
        (Image, {}, "an image is a URL, or an object with one of `url` and `file_id`"),
        (Image, {"url": "u", "file_id": "f"}, "an image is a URL, or an object with one of `url` and `file_id`"),
        (
            WebhookSpec,
            {"url": "u", "events": ["b", "a", "job.failed"]},
            "unknown events a, b: use job.approval_required, job.cancelled, job.expired, job.failed, job.succeeded, "
            "response.cancelled, response.completed, response.failed, response.incomplete",
        ),
        (
            PromptReference,
            {"id": "p", "version": "1", "Version": 1, "other": 2},
            "unknown field 'Version': a prompt has `id`, `version` and `variables`",
        ),
        (
            ReasoningOptions,
            {"effort": "none", "max_tokens": 1},
            "the effort `none` is no reasoning: leave out its `max_tokens`",
        ),
        (
            RankingOptions,
            {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}},
            "one of `embedding_weight` and `text_weight` must be more than 0",
        ),
        (Sampling, {"max_tokens": 0}, "it should be greater than or equal to 1: 0 is for `echo`"),
        (
            Sampling,
            {"grammar": {"kind": "regex", "text": "a"}, "ignore_eos": True},
            "an answer that follows a grammar ends with it: leave out `ignore_eos`",
        ),
        (
            Sampling,
            {"grammar": {"kind": "regex", "text": "a"}, "min_tokens": 1},
            "an answer that follows a grammar ends with it: leave out `min_tokens`",
        ),
        (ServerTools, {"names": ["a", "b", "a"]}, "a tool is named twice"),
        (
            ServerTools,
            {"names": ["a"], "tool_choice": "required", "max_tool_calls": 0},
            "`tool_choice` `required` needs `max_tool_calls` of at least 1",
        ),
        (
            ServerTools,
            {"names": ["file_search"]},
            "`file_search` in `names` and the field `file_search` go together",
        ),
        (
            ServerTools,
            {"names": ["a"], "file_search": {"vector_store_ids": ["v"]}},
            "`file_search` in `names` and the field `file_search` go together",
        ),
        (ApprovalByName, {}, "give `always`, `never` or both"),
        (
            ApprovalByName,
            {"always": {"tool_names": ["c", "b", "a"]}, "never": {"tool_names": ["b", "c"]}},
            "b is in `always` and in `never`",
        ),
        (HttpTool, TOOL | {"headers": {"a b": "v"}}, "the name of a header has letters, digits and `-`"),
        (HttpTool, TOOL | {"headers": {"Host": "v"}}, "the header Host is set by the call itself: leave it out"),
        (
            HttpTool,
            TOOL | {"headers": {"X": "é"}},
            "the value of the header X is 1 to 4096 visible ASCII characters",
        ),
        (HttpTool, TOOL | {"headers": {"X-A": "1", "x-a": "2"}}, "a header is named twice"),
        (
            HttpTool,
            TOOL | {"parameters": {"type": "string"}},
            'the arguments of a function are a JSON object: its schema has `"type": "object"`',
        ),
        (McpEndpoint, {"type": "mcp"}, "a server has either `url` or `command`: give one of them"),
        (McpEndpoint, MCP | {"command": "c"}, "a server has either `url` or `command`: give one of them"),
        (
            McpEndpoint,
            {"type": "mcp", "command": "c", "headers": {"X": "v"}},
            "`headers` go with `url`: a command gets none",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused_in_these_words(
    kind: type[BaseModel], body: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert [problem["msg"].removeprefix("Value error, ") for problem in caught.value.errors()] == [why]


def test_nearly_too_much_is_accepted() -> None:
    assert FunctionSpec(name="f", parameters=nested(64)).parameters == nested(64)
    assert FunctionSpec(name="f", parameters={"a": "x" * 65_527}).parameters == {"a": "x" * 65_527}
    assert Sampling.model_validate({"max_tokens": 0, "echo": True, "logprobs": 0}).scores_prompt
    assert not Sampling.model_validate({"echo": True}).scores_prompt
    assert not Sampling.model_validate({"logprobs": 1}).scores_prompt
    assert ServerTools.model_validate({"names": ["a"], "tool_choice": "required", "max_tool_calls": 1}).names == ("a",)
    assert RankingOptions.model_validate({"hybrid_search": {"embedding_weight": 0, "text_weight": 1000}}).hybrid_search


class TestMessages:
    def test_an_answer_may_be_empty_and_a_call_has_no_text(self) -> None:
        assert ChatMessage.model_validate({"role": "assistant"}).content == ""
        called = {"role": "assistant", "tool_calls": [call("1")]}
        assert [ChatMessage.model_validate(called | {"content": text}).content for text in (None, "", "a")] == [
            None,
            None,
            "a",
        ]

    def test_images_stand_in_the_text_in_their_order(self) -> None:
        images = [{"url": "https://example.com/b", "at": 9}, {"url": "https://example.com/a", "at": 1}]
        message = ChatMessage.model_validate({"role": "user", "content": "abc", "images": images})
        later, sooner = message.images or ()
        assert list(message.parts) == ["a", sooner, "bc", later]
        moved = message.after("xy")
        assert [part if isinstance(part, str) else part.url for part in moved.parts] == [
            "xya",
            "https://example.com/a",
            "bc",
            "https://example.com/b",
        ]
        plain = ChatMessage.model_validate({"role": "user", "content": "c"}).after("b")
        assert (plain.content, plain.images) == ("bc", None)

    @pytest.mark.parametrize(
        ("roles", "why"),
        [
            ("u1", None),
            ("a12 t2 t1 u", None),
            ("a1 t1 a1 t1", None),
            ("a1 t1 t1", "message 2 answers a call that the assistant's turn before it has not made"),
            ("u t1", "message 1 answers a call that the assistant's turn before it has not made"),
            ("a21 u", "message 1 comes before the results of 1, 2"),
            ("a12 t1 u", "message 2 comes before the results of 2"),
            ("a11", "message 0 has two calls of one id"),
            ("u a21", "the results of 1, 2 are missing at the end"),
        ],
    )
    def test_the_results_of_all_calls_follow_them(self, roles: str, why: str | None) -> None:
        made: dict[str, Any] = {
            "u": lambda _ids: {"role": "user", "content": "a"},
            "a": lambda ids: {"role": "assistant", "tool_calls": [call(one) for one in ids]},
            "t": lambda ids: {"role": "tool", "content": "a", "tool_call_id": ids},
        }
        messages = [ChatMessage.model_validate(made[word[0]](word[1:])) for word in roles.split()]
        if why is None:
            check_tool_results(messages)
            return
        with pytest.raises(ValueError, match=f"^{why}$"):
            check_messages(messages)

    def test_all_messages_together_have_a_bound_of_images(self) -> None:
        def shown(count: int) -> ChatMessage:
            images = [{"url": "https://example.com/a"}] * count
            return ChatMessage.model_validate({"role": "user", "content": "a", "images": images})

        check_messages([shown(40), shown(24)])
        why = "the messages have 65 images: at most 64 are accepted in one request"
        with pytest.raises(ValueError, match=f"^{why}$"):
            check_messages([shown(40), shown(25)])


def test_images_are_found_with_the_place_of_their_urls() -> None:
    data, server, file = Image(url="DATA:image/png,x"), Image.model_validate("https://a"), Image(file_id="file-1")
    assert (data.data_url, data.server_url) == ("DATA:image/png,x", None)
    assert (server.data_url, server.server_url) == (None, "https://a")
    assert (file.data_url, file.server_url) == (None, None)
    assert urls_of((data, server, file, server), "images") == (("images[1]", "https://a"), ("images[3]", "https://a"))
    assert urls_of((server,)) == (("input.images[0]", "https://a"),)
    assert urls_of(None) == ()

    class Source(BaseModel):
        images: tuple[Image, ...]
        messages: tuple[ChatMessage, ...]

    message = ChatMessage.model_validate({"role": "user", "content": "", "images": [{"file_id": "file-2"}]})
    found = images_of(Source(images=(data, file), messages=(message,)))
    assert [one.url or one.file_id for one in found] == ["DATA:image/png,x", "file-1", "file-2"]
    assert images_of("a text") == ()


def test_an_order_to_read_a_file_needs_one_and_is_equal_to_no_other() -> None:
    order = IngestOrder.model_validate({"model": "vectors"})
    with pytest.raises(ValueError, match="an order to read a file has no file"):
        _ = order.source
    source = IngestSource.model_validate(SOURCE | {"num_bytes": 11})
    made = order.with_source(source)
    assert (made.source, made.digest_fields(), source.expected_tokens) == (source, {"ticket": "t"}, 2)
    assert IngestSource.model_validate(SOURCE).expected_tokens == 1
    assert (order.fixed_texts(), order.revealing_field(), order.called_urls()) == ((), None, ())
    assert (is_ingest({"ingest": {}}), is_ingest({"input": {}})) == (True, False)
    assert JobTerms().digest_fields() == {}


def test_a_better_class_has_a_lower_rank() -> None:
    assert {name.value: rank for name, rank in CLASS_RANKS.items()} == {"interactive": 0, "standard": 1, "batch": 2}
    assert {rank: name.value for rank, name in CLASS_NAMES.items()} == {0: "interactive", 1: "standard", 2: "batch"}


def test_usage_and_policies_of_an_older_release_have_defaults() -> None:
    usage = Usage(input_tokens=5, output_tokens=2, queue_ms=1.0, compute_ms=2.0)
    assert (usage.total_tokens, usage.cached_tokens, usage.reasoning_tokens) == (7, 0, 0)
    assert (usage.first_token_ms, usage.attempt_first_token_ms) == (None, None)
    pinned = PinnedPolicy(model="any", version=1)
    assert (pinned.flagged, pinned.counts, pinned.vault) == ((), {}, None)


def test_a_payload_that_cannot_be_read_names_its_fields_and_no_value() -> None:
    assert read_payload(CutInput, {"index": 1, "tokens": 2}) == CutInput(index=1, tokens=2)
    with pytest.raises(InvalidRequest) as caught:
        read_payload(PinnedPolicy, {"model": "m", "version": "secret", "counts": {"a": "secret"}, "other": 1})
    assert caught.value.message == "the stored payload cannot be read: counts.a, other, version"
    assert caught.value.code == "invalid_payload"


@pytest.mark.parametrize(
    ("ranker", "reranker"),
    [(None, None), ("auto", None), ("none", None), ("default-2024", None), ("bge", "bge"), ("automatic", "automatic")],
)
def test_a_ranker_with_another_name_is_a_model(ranker: str | None, reranker: str | None) -> None:
    assert RankingOptions(ranker=ranker).reranker == reranker


def test_a_request_says_which_tokens_it_names_and_which_defaults_it_sets() -> None:
    found = Sampling.model_validate({"stop_token_ids": [3], "logit_bias": {"7": 1}, "top_p": 1, "temperature": 0})
    assert found.named_tokens == {"stop_token_ids": (3,), "logit_bias": (7,)}
    assert found.explicit_defaults() == ["top_p"]
    assert Sampling().named_tokens == {"stop_token_ids": (), "logit_bias": ()}
    both = Sampling.model_validate({"top_k": 0, "presence_penalty": 0, "seed": None})
    assert both.explicit_defaults() == ["presence_penalty", "top_k"]


class TestReferences:
    def test_a_path_begins_with_the_input_or_with_a_step(self) -> None:
        assert (step_of("input.a"), step_of("a.output.b"), step_of("a.output")) == (None, "a", "a")
        for path in ("a", "a.text"):
            with pytest.raises(InvalidRequest) as caught:
                step_of(path)
            assert caught.value.message == (
                f"`{path}` is no reference: after the step comes `output`, as in `a.output.text`"
            )

    @pytest.mark.parametrize(
        "mark",
        [
            {"$from": "input.a", "other": 1},
            {"$from": 1},
            {"$from": "1a.output"},
            {"$from": "a." + "b" * 65},
            {"$from": "a" * 65},
            {"$from": "a" + ".b" * 16},
            {"$from": ".".join(["a" * 60] * 5)},
            {"$from": "input.a "},
        ],
    )
    def test_a_malformed_reference_is_refused_wherever_it_stands(self, mark: dict[str, Any]) -> None:
        for body in (mark, {"a": [mark]}, ({"b": mark},)):
            with pytest.raises(InvalidRequest, match=r"^a reference is "):
                list(references(body))
            with pytest.raises(InvalidRequest, match=r"^a reference is "):
                replaced(body, str.upper)

    def test_the_longest_path_is_found_in_all_lists_and_objects(self) -> None:
        longest = ".".join(["a" * 64, *("b" * 14,) * 15])
        body = {"x": [{"$from": longest}, {"y": ({"$from": "input.q"}, 1)}], "z": None}
        assert (len(longest), list(references(body))) == (289, [longest, "input.q"])
        assert replaced(body, str.upper) == {"x": [longest.upper(), {"y": ["INPUT.Q", 1]}], "z": None}

    def test_a_value_that_is_no_text_is_written_as_json(self) -> None:
        values = {"a": [0, None, True, "é", {"b": 1}], "t": ("x", "y")}
        found = [look_up(values, path) for path in ("a.0", "a.2", "a.3", "a.4", "t.1")]
        assert found == ["0", "true", "é", '{"b":1}', "y"]
        for path, why in (
            ("a.1", "there is no `a.1`: it is null"),
            ("a.5", "there is no `a.5`: `5` was not found"),
            ("a.-1", "there is no `a.-1`: `-1` was not found"),
            ("a.3.0", "there is no `a.3.0`: `0` was not found"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                look_up(values, path)
            assert caught.value.message == why

    def test_marks_are_replaced_in_tuples_and_inside_of_texts(self) -> None:
        marks = Marks()
        first, second = marks.mark("a.output"), marks.mark("b.output")
        assert (len({first, second}), marks.paths) == (2, {first: "a.output", second: "b.output"})
        assert not first.isascii()
        assert len(first) == len(second) == 18
        body = {"x": (f"<{first}{second}>", 1), "y": first}
        assert with_texts(body, {first: "1", second: "2"}) == {"x": ["<12>", 1], "y": "1"}
        assert with_references(body, str.upper, marks.paths) == {"x": [f"<{first}{second}>", 1], "y": "A.OUTPUT"}


class TestTemplateVariables:
    variables = TypeAdapter[dict[str, Any]](TemplateVariables)

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (numbered(16, 1), None),
            (numbered(17, 1), "17 variables: at most 16 are accepted"),
            ({"a": 1_000_000, "b": [-1_000_000.0]}, None),
            ({"a": 1_000_001}, "numbers are between -1000000 and 1000000"),
            ({"a": {"b": [-1_000_001]}}, "numbers are between -1000000 and 1000000"),
            ({"a": nested(6)}, None),
            ({"a": nested(7)}, "nested more than 8 deep"),
            ({"a": [[[[[[[[]]]]]]]]}, "nested more than 8 deep"),
            ({"a": "x" * 4087}, None),
            ({"a": "x" * 4088}, "more than 4096 characters as JSON"),
            ({"tools": []}, "`tools` is set by the server: leave it out"),
        ],
    )
    def test_they_are_few_small_and_not_ours(self, given: dict[str, Any], why: str | None) -> None:
        if why is None:
            assert self.variables.validate_python(given) == given
            return
        with pytest.raises(ValidationError) as caught:
            self.variables.validate_python(given)
        assert [problem["msg"] for problem in caught.value.errors()] == [f"Value error, {why}"]

    @pytest.mark.parametrize("name", ["", "1a", "_a", "a-b", "a" * 65])
    def test_a_name_is_one_of_the_template_language(self, name: str) -> None:
        assert self.variables.validate_python({"a" * 64: 1, "A_1": 2}) == {"a" * 64: 1, "A_1": 2}
        with pytest.raises(ValidationError, match="pattern"):
            self.variables.validate_python({name: 1})


def by_name(**lists: list[str]) -> ApprovalByName:
    return ApprovalByName.model_validate({rule: {"tool_names": names} for rule, names in lists.items()})


class TestApprovals:
    @pytest.mark.parametrize(
        ("rule", "waiting"),
        [
            ("always", ["a", "b", "c"]),
            ("never", []),
            (by_name(always=["a"]), ["a"]),
            (by_name(never=["a"]), ["b", "c"]),
            (by_name(always=["a"], never=["b"]), ["a", "c"]),
        ],
    )
    def test_a_rule_says_which_calls_wait(self, rule: Any, waiting: list[str]) -> None:
        assert [name for name in "abc" if needs_approval(rule, name)] == waiting

    def test_a_tool_may_be_named_in_several_ways(self) -> None:
        assert needs_approval(by_name(always=["short"]), "server__short", "short")
        assert not needs_approval(by_name(never=["short"]), "server__short", "short")
        assert named_in(by_name(always=["a"], never=["b"])) == {"a", "b"}
        assert named_in("always") == frozenset()

    def test_a_server_of_mcp_is_asked_by_its_own_names(self) -> None:
        told = {"a_b": {"name": "a.b", "parameters": {}}, "c": {"name": "c", "description": "d", "parameters": {}}}
        stored = MCP | {"tools": told, "require_approval": {"always": {"tool_names": ["a.b"]}}}
        server = read_definition(stored)
        assert isinstance(server, McpServer)
        assert [server.needs_approval(name) for name in ("s__a_b", "s__c", "s__unknown")] == [True, False, False]
        assert server.functions("s") == {
            "s__a_b": {"description": "", "parameters": {}},
            "s__c": {"description": "d", "parameters": {}},
        }
        others = server.model_copy(update={"require_approval": by_name(never=["c"])})
        assert [others.needs_approval(name) for name in ("s__a_b", "s__c", "s__unknown")] == [True, False, True]
        # An older release reads a definition without the fields that it does not know.
        assert McpEndpoint.model_validate(MCP).model_dump().keys().isdisjoint({"require_approval", "command"})

    def test_a_tool_of_its_own_is_told_by_its_name(self) -> None:
        tool = read_definition(TOOL | {"description": "d", "require_approval": "always"})
        assert isinstance(tool, HttpTool)
        assert tool.functions("t") == {"t": {"description": "d", "parameters": {"type": "object", "properties": {}}}}
        assert tool.needs_approval("t")
        assert not HttpTool.model_validate(TOOL).needs_approval("t")
        assert "require_approval" not in HttpTool.model_validate(TOOL).model_dump()

    @pytest.mark.parametrize(
        ("name", "server"), [("s__t", "s"), ("s__t__u", "s"), ("t", None), ("__t", None), ("s__", None)]
    )
    def test_the_server_is_the_first_part_of_a_name(self, name: str, server: str | None) -> None:
        assert server_of(name) == server


def test_two_truncations_of_one_input_are_added() -> None:
    first, second = (
        Truncated(strategy=Truncation.LEFT, tokens=3),
        Truncated(strategy=Truncation.AUTO, tokens=4, turns=2),
    )
    assert (first.turns, second.plus(None)) == (0, second)
    assert second.plus(first) == Truncated(strategy=Truncation.AUTO, tokens=7, turns=2)
    assert second.as_header() == "auto; tokens=4; turns=2"
    assert {one.value for one in Truncation if one.refuses} == {"refuse", "disabled"}
    assert {one.value for one in Truncation if one.cuts_texts} == {"left", "middle"}
