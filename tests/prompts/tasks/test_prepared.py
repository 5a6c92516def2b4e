"""The stored form and the cost of a request of each task, and the error for one that does not fit the model."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from headrace.features.encoders.classifier_folder import Activation, ClassifierSettings
from headrace.features.encoders.classify.inputs import FAKE as CLASSIFIER
from headrace.features.encoders.embed.inputs import FAKE as EMBEDDER
from headrace.features.encoders.fitted_inputs import cuts_of, fit_texts
from headrace.features.encoders.rerank.inputs import FAKE as RERANKER
from headrace.features.encoders.token_classify.inputs import FAKE as TOKEN_CLASSIFIER
from headrace.features.images.classify.inputs import FAKE as IMAGE_CLASSIFIER
from headrace.features.retrieval.ingest_order import passage_prompt, passage_window
from headrace.features.retrieval.questions import query_prompt_name
from headrace.prompts.chat_server import ChatServer
from headrace.prompts.grammar import Grammars
from headrace.prompts.tasks.registry import TASK_INPUTS, inputs_of_folder
from headrace.prompts.tasks.task_inputs import Prepared
from headrace.prompts.tokenizer import ApproximateTokenizer, ByteTokenizer, Tokenizer
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.tasks.registry import TASKS
from tests.png import png, url_of


@dataclass
class Model:
    """A model of bytes with these settings."""

    settings: Any
    window: int = 8192
    context_window: int = 8192
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    grammars: Grammars = field(default_factory=lambda: Grammars(None, vocab_size=257, eos_token_ids=frozenset([256])))

    def is_compiled(self, kind: str, text: str) -> bool:
        return self.grammars.is_compiled(kind, text)


def prepared(task: str, model: Model, **body: Any) -> Prepared:
    request = TypeAdapter(TASKS[task].request).validate_python({"task": task, "model": "m", **body})
    return TASK_INPUTS[task].prepare(request, model, None)


def refused(task: str, model: Model, **body: Any) -> tuple[str, str | None, str | None]:
    """Return message, code and param of the error."""
    with pytest.raises(InvalidRequest) as error:
        prepared(task, model, **body)
    return error.value.message, error.value.code, error.value.param


SMALL = replace(CLASSIFIER, context_window=6)
PAIRS = {"query": "ab", "documents": ["cde", "f"]}
LONG, INVALID = "context_length_exceeded", "invalid_value"
IMAGE = {"url": url_of(png(2))}


@pytest.mark.parametrize(
    ("task", "settings", "body", "cost"),
    [
        ("rerank", RERANKER, {"input": PAIRS, "top_n": 1}, 8),
        ("rerank", replace(RERANKER, context_window=4), {"input": PAIRS, "truncate": True}, 7),
        ("classify", CLASSIFIER, {"input": {"texts": ["abc", ["de", "f"]]}, "top_k": 2}, 6),
        (
            "classify",
            replace(CLASSIFIER, context_window=4),
            {"input": {"texts": [["ab", "cdef"]]}, "truncate": True},
            4,
        ),
        (
            "token_classify",
            TOKEN_CLASSIFIER,
            {"input": {"texts": ["abc"]}, "ignore_labels": ["X"], "aggregation_strategy": "max"},
            3,
        ),
        ("score", RERANKER, {"input": {"text_1": ["ab"], "text_2": ["c", "de"]}}, 7),
        ("score", EMBEDDER, {"input": {"text_1": ["ab"], "text_2": ["c", "de"]}, "truncate": True}, 5),
        # The second text is cut to the room that the first one leaves; of vectors, each text.
        (
            "score",
            replace(RERANKER, context_window=4),
            {"input": {"text_1": ["ab"], "text_2": ["cdefgh"]}, "truncate": True},
            4,
        ),
        (
            "score",
            replace(EMBEDDER, context_window=4),
            {"input": {"text_1": ["abcdefgh"], "text_2": ["c"]}, "truncate": True},
            5,
        ),
        ("embed", EMBEDDER, {"input": {"texts": ["ab", "c"]}, "dimensions": 4}, 3),
        ("embed", EMBEDDER, {"input": {"token_ids": [[1, 2], [3]]}}, 3),
        ("embed", EMBEDDER, {"input": {"images": [IMAGE, IMAGE]}}, 100),
        ("image_classify", IMAGE_CLASSIFIER, {"input": {"images": [IMAGE] * 3}, "top_k": 1}, 150),
        (
            "image_zero_shot",
            EMBEDDER,
            {"input": {"images": [IMAGE], "candidate_labels": ["a", "bc"], "hypothesis_template": "{}"}, "top_k": 1},
            53,
        ),
    ],
)
def test_the_payload_has_the_fields_of_the_request(task: str, settings: Any, body: dict[str, Any], cost: int) -> None:
    found = prepared(task, Model(settings), **body)
    assert (found.num_tokens, found.max_tokens) == (cost, 0)
    kept = found.payload.model_dump(mode="json", exclude_unset=True)
    assert {name: kept[name] for name in body if name != "input"} == {
        name: value for name, value in body.items() if name != "input"
    }
    assert kept["input"].keys() >= body["input"].keys()


def test_a_payload_that_is_not_truncated_is_one_for_older_workers() -> None:
    assert prepared("rerank", Model(RERANKER), input=PAIRS).payload.model_dump(exclude_none=True) == {
        "input": {"query": "ab", "documents": ("cde", "f")}
    }


@pytest.mark.parametrize(
    ("task", "settings", "body", "error"),
    [
        (
            "rerank",
            SMALL,
            {"input": {"query": "abcdef", "documents": ["x"]}, "truncate": True},
            (" 6", LONG, "input.query"),
        ),
        (
            "rerank",
            SMALL,
            {"input": {"query": "abc", "documents": ["x", "defg"]}},
            (" 7", LONG, "input.documents[1]"),
        ),
        (
            "classify",
            SMALL,
            {"input": {"texts": ["x", "abcdefg"]}},
            (" 7", LONG, "input.texts[1]"),
        ),
        (
            "classify",
            SMALL,
            {"input": {"texts": [["abcdefg", "x"]]}, "truncate": True},
            (" 8", LONG, "input.texts[0]"),
        ),
        (
            "token_classify",
            SMALL,
            {"input": {"texts": ["abcdefg"]}},
            (" 7", LONG, "input.texts[0]"),
        ),
        (
            "score",
            SMALL,
            {"input": {"text_1": ["ab"], "text_2": ["c", "defgh"]}},
            (" 7", LONG, "input.text_2[1]"),
        ),
        (
            "score",
            replace(EMBEDDER, context_window=6),
            {"input": {"text_1": ["abcdefg"], "text_2": ["c"]}},
            (" 7", LONG, "input.text_1[0]"),
        ),
        (
            "score",
            replace(EMBEDDER, context_window=6),
            {"input": {"text_1": ["a"], "text_2": ["c", "abcdefg"]}},
            (" 7", LONG, "input.text_2[1]"),
        ),
        (
            "score",
            replace(EMBEDDER, has_texts=False),
            {"input": {"text_1": ["a"], "text_2": ["c"]}},
            ("images alone", INVALID, "input"),
        ),
        (
            "embed",
            replace(EMBEDDER, image_tokens=None),
            {"input": {"images": [IMAGE]}},
            ("no images", INVALID, "input"),
        ),
        (
            "embed",
            replace(EMBEDDER, has_texts=False),
            {"input": {"texts": ["a"]}},
            ("images alone", INVALID, "input"),
        ),
        (
            "embed",
            EMBEDDER,
            {"input": {"token_ids": [[1], [256, 257]]}},
            ("257", INVALID, "input.token_ids[1]"),
        ),
        (
            "embed",
            replace(EMBEDDER, context_window=6),
            {"input": {"token_ids": [[1] * 7]}},
            (" 7", LONG, "input.token_ids[0]"),
        ),
        (
            "embed",
            EMBEDDER,
            {"input": {"texts": ["a"]}, "prompt_name": "query"},
            ("query", INVALID, "prompt_name"),
        ),
        (
            "image_zero_shot",
            replace(EMBEDDER, image_tokens=None),
            {"input": {"images": [IMAGE], "candidate_labels": ["a", "b"]}},
            ("one space", INVALID, "model"),
        ),
        (
            "image_zero_shot",
            replace(EMBEDDER, has_texts=False),
            {"input": {"images": [IMAGE], "candidate_labels": ["a", "b"]}},
            ("one space", INVALID, "model"),
        ),
        (
            "image_zero_shot",
            replace(EMBEDDER, context_window=6),
            {"input": {"images": [IMAGE], "candidate_labels": ["a", "bcdefgh"], "hypothesis_template": "{}"}},
            (" 7", LONG, "input.candidate_labels[1]"),
        ),
    ],
)
def test_a_request_that_does_not_fit_is_told_its_place(
    task: str, settings: Any, body: dict[str, Any], error: tuple[str, str | None, str | None]
) -> None:
    message, code, param = refused(task, Model(settings), **body)
    assert (code, param) == error[1:]
    assert error[0] in message


@pytest.mark.parametrize(
    ("task", "settings", "text"),
    [
        ("classify", CLASSIFIER, "input.texts"),
        ("token_classify", TOKEN_CLASSIFIER, "input.texts"),
        ("embed", EMBEDDER, "input.texts"),
    ],
)
def test_the_tokens_of_all_inputs_together_are_bounded(
    task: str, settings: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.encoders.fitted_inputs.MAX_TOKENS_TOGETHER", 6)
    assert prepared(task, Model(settings), input={"texts": ["abc", "def"]}).num_tokens == 6
    message, code, param = refused(task, Model(settings), input={"texts": ["abc", "defg"]})
    assert (code, param) == (INVALID, text)
    assert " 6: " in message


def test_a_cut_input_keeps_its_beginning() -> None:
    tokenizer = ByteTokenizer()
    cut = fit_texts(tokenizer, "abcdef", 4, "p", truncate=True)
    assert (cut.encoded.ids, cut.num_cut) == (tuple(b"abcd"), 2)
    cut = fit_texts(tokenizer, ("ab", "cdef"), 3, "p", truncate=True)
    assert (cut.encoded.ids, cut.encoded.text_of, cut.num_cut) == (tuple(b"abc"), (0, 0, 1), 3)
    with pytest.raises(InvalidRequest, match="`p` has 6"):
        fit_texts(tokenizer, ("ab", "cdef"), 2, "p", truncate=True)
    assert [(one.index, one.tokens) for one in cuts_of([0, 3, 0, 1]) or ()] == [(1, 3), (3, 1)]
    assert cuts_of([0, 0]) is None


def test_a_prompt_of_an_encoder_is_part_of_its_input() -> None:
    embedder = replace(EMBEDDER, prompts={"query": "q: ", "document": "d: "}, default_prompt="x ")
    named = prepared("embed", Model(embedder), input={"texts": ["ab"]}, prompt_name="query")
    assert (named.num_tokens, named.payload.model_dump()["prompt_name"]) == (5, "query")
    assert prepared("embed", Model(embedder), input={"texts": ["ab"]}).num_tokens == 4
    assert prepared("score", Model(embedder), input={"text_1": ["a"], "text_2": ["b"]}).num_tokens == 6
    assert (passage_prompt(embedder), query_prompt_name(embedder.prompts)) == ("d: ", "query")
    assert (passage_prompt(EMBEDDER), query_prompt_name(EMBEDDER.prompts)) == ("", None)
    assert passage_window(ByteTokenizer(), embedder) == 8192 - 3


GENERATE: dict[str, Any] = {"input": {"prompt": "ab"}}


def generated(settings: Any = None, model: Model | None = None, **body: Any) -> Prepared:
    return prepared("generate", model or Model(settings), **GENERATE | body)


def test_a_generate_request_is_stored_with_the_tokens_that_it_may_make() -> None:
    found = generated(sampling={"max_tokens": 5, "temperature": 0.5})
    assert (found.num_tokens, found.max_tokens) == (2, 5)
    assert found.payload.model_dump(mode="json", exclude_unset=True)["sampling"]["max_tokens"] == 5
    assert generated().max_tokens == 1024
    assert generated(model=Model(None, window=100)).max_tokens == 98
    assert generated(model=Model(None, window=100), sampling={"max_tokens": 98}).max_tokens == 98
    several = generated(input={"prompts": ["ab", "abcdef"]}, n=3, model=Model(None, window=100))
    assert (several.num_tokens, several.max_tokens) == (8, 94 * 6)
    assert generated(n=1).payload.model_dump()["n"] is None
    server = Model(ChatServer(takes_images=False), tokenizer=ApproximateTokenizer())
    chat = generated(input={"messages": [{"role": "user", "content": "hi"}]}, n=2, model=server)
    assert (chat.num_tokens, chat.max_tokens) == (3, 2048)


@pytest.mark.parametrize(
    ("model", "body", "error"),
    [
        (
            Model(None, window=2),
            {},
            ("8192", LONG, "input"),
        ),
        (
            Model(None, window=10, context_window=10),
            {"sampling": {"max_tokens": 9}},
            ("at most 8 ", LONG, "sampling.max_tokens"),
        ),
        (
            Model(None, window=4, context_window=4),
            {"input": {"prompts": ["ab", "abcd"]}},
            (" 4 tokens", LONG, "input.prompts[1]"),
        ),
        (Model(None), {"input": {"token_ids": [1, 257]}}, ("257", INVALID, "input.token_ids")),
        (Model(None), {"input": {"prompts": [[1], [257]]}}, ("257", INVALID, "input.prompts[1]")),
        (
            Model(None),
            {"sampling": {"min_tokens": 6, "max_tokens": 5}},
            ("at most 5 ", INVALID, "sampling.min_tokens"),
        ),
        (
            Model(None),
            {"sampling": {"stop_token_ids": [3, 257]}},
            ("257", INVALID, "sampling.stop_token_ids"),
        ),
        (
            Model(None),
            {"sampling": {"logit_bias": {"257": 1}}},
            ("257", INVALID, "sampling.logit_bias"),
        ),
        (
            Model(ChatServer(takes_images=False), tokenizer=ApproximateTokenizer()),
            {},
            ("`messages`", INVALID, "input.prompt"),
        ),
        *(
            (
                Model(ChatServer(takes_images=False), tokenizer=ApproximateTokenizer()),
                {"input": {"messages": [{"role": "user", "content": "hi"}]}, "sampling": {name: value}},
                (f"`{name}`", INVALID, f"sampling.{name}"),
            )
            for name, value in (
                ("top_k", 3),
                ("repetition_penalty", 1.1),
                ("ignore_eos", True),
                ("logprobs", 0),
                ("min_p", 0.1),
                ("min_tokens", 1),
                ("stop_token_ids", [3]),
                ("bad_words", ["x"]),
            )
        ),
        (
            Model(ChatServer(takes_images=False), tokenizer=ApproximateTokenizer()),
            {"input": {"messages": [{"role": "user", "content": "hi"}], "reasoning": {"max_tokens": 5}}},
            ("the effort", INVALID, "input.reasoning.max_tokens"),
        ),
        (
            Model(ChatServer(takes_images=False), tokenizer=ApproximateTokenizer()),
            {
                "input": {"messages": [{"role": "user", "content": "hi"}]},
                "sampling": {"grammar": {"kind": "regex", "text": "a"}},
            },
            ("no regex", INVALID, "sampling.grammar"),
        ),
        (
            Model(ChatServer(takes_images=False), tokenizer=ApproximateTokenizer()),
            {"truncation": "left"},
            ("`oldest_turns`", INVALID, "truncation"),
        ),
    ],
)
def test_a_generate_request_that_does_not_fit_is_told_why(
    model: Model, body: dict[str, Any], error: tuple[str, str | None, str | None]
) -> None:
    message, code, param = refused("generate", model, **GENERATE | body)
    assert (code, param) == error[1:]
    assert error[0] in message


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"model_type": "headrace-tabular"}, "predict"),
        ({"model_type": "headrace-recommender"}, "recommend"),
        ({"model_type": "whisper"}, "transcribe"),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 1}, "rerank"),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}}, "rerank"),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, "classify"),
        ({"model_type": "bert", "architectures": ["BertForTokenClassification"]}, "token_classify"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "image_classify"),
        ({"model_type": "vit"}, "embed"),
        ({"model_type": "clip"}, "embed"),
        ({"model_type": "bert"}, "embed"),
        ({"model_type": "mpnet", "architectures": ["MPNetForMaskedLM"]}, "embed"),
        ({"model_type": "chatglm", "architectures": ["ChatGLMModel"]}, "generate"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "generate"),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, "generate"),
        ({}, "generate"),
    ],
)
def test_a_folder_serves_one_task(config: dict[str, Any], task: str) -> None:
    assert inputs_of_folder(config).spec.name == task


def test_the_models_without_weights_are_as_documented() -> None:
    assert ClassifierSettings(8192, ("negative", "neutral", "positive"), Activation.SOFTMAX) == CLASSIFIER
    assert (EMBEDDER.width, EMBEDDER.context_window, EMBEDDER.longest_input) == (8, 8192, 8192)
    assert replace(EMBEDDER, context_window=7).longest_input == 50
