"""The errors of each URL that a line of a batch may name: they say which field of the body is wrong. No server."""

import pytest

from headrace.producer_api.tasks.registry import read_task
from headrace.store.errors import InvalidRequest
from tests.cases import of
from tests.producer_api.request_outcomes import Refused, refusal_of
from tests.producer_api.tasks.task_bodies import ROW, SERVER, read
from tests.refusals import Naming

REFUSED: Refused = [
    (("rerank", {"stream": True}), "invalid_value", "stream", "batch"),
    (("rerank", {"query": ""}), "invalid_value", "query", "1 character"),
    (("rerank", {"documents": ["a", ""]}), "invalid_value", "documents[1]", "1 character"),
    (("rerank", {"documents": ["a", 3]}), "invalid_value", "documents[1]", "text"),
    (("rerank", {"top_n": 0}), "invalid_value", "top_n", "to 1"),
    (("rerank", {"job": {"priority": 10}}), "invalid_value", "job.priority", "to 9"),
    (("rerank", {"document": "x"}), "unsupported_parameter", "document", "documents"),
    (("rerank", {"max_tokens_per_doc": 5}), "unsupported_parameter", "max_tokens_per_doc", "truncate"),
    (("rerank", {"metadata": {"k": "x" * 513}}), "invalid_value", "metadata.k", "most 512"),
    (("classify", {"input": ""}), "invalid_value", "input", "1 character", "array"),
    (("classify", {"input": ["a", ["b", ""]]}), "invalid_value", "input[1][1]", "1 character"),
    (("classify", {"input": ["a", ["b"]]}), "invalid_value", "input[1][1]", "required"),
    (("classify", {"top_k": 0}), "invalid_value", "top_k", "to 1"),
    (("classify", {"normalize": True}), "unsupported_parameter", "normalize"),
    (("token_classify", {"input": [["a", "b"]]}), "invalid_value", "input[0]"),
    (("token_classify", {"input": ""}), "invalid_value", "input", "1 character"),
    (("score", {"text_1": ""}), "invalid_value", "text_1", "1 character"),
    (("score", {"text_2": ["b", ""]}), "invalid_value", "text_2[1]", "1 character"),
    (("score", {"text_1": ["a", "b", "c"]}), "invalid_value", "text_1", "3 texts", "`text_2` has 2"),
    (("images/classify", {"images": []}), "invalid_value", "images", "1 item"),
    (("images/classify", {"images": [SERVER, {}]}), "invalid_value", "images[1]", "url", "file_id"),
    (("images/classify", {"top_k": 0}), "invalid_value", "top_k", "to 1"),
    (("images/zero_shot", {"candidate_labels": ["a", "a"]}), "invalid_value", "candidate_labels", "twice"),
    (("images/zero_shot", {"hypothesis_template": "a photo"}), "invalid_value", "hypothesis_template", "{}"),
    *of(
        "predict",
        (("tabular/predictions", {"rows": []}), "invalid_value", "rows", "1 item"),
        (("tabular/predictions", {"row": [ROW]}), "unsupported_parameter", "row"),
    ),
    *of(
        "recommend",
        (("recommendations", {"vector": [1.0]}), "invalid_value", None, "vector", "history", "features"),
        (("recommendations", {"history": None}), "invalid_value", None, "vector", "history", "features"),
        (("recommendations", {"top_k": 0}), "invalid_value", "top_k", "to 1"),
        (("recommendations", {"history": [{"id": "i", "weight": 0}]}), "invalid_value", "history[0].weight", "than 0"),
    ),
    *of(
        "transcribe",
        (("audio/transcriptions", {"file_id": None}), "unsupported_parameter", "file_id"),
        (
            ("audio/transcriptions", {"response_format": "srt"}),
            "unsupported_parameter",
            "response_format",
            "verbose_json",
        ),
        (
            ("audio/transcriptions", {"response_format": "text"}),
            "unsupported_parameter",
            "response_format",
            "verbose_json",
        ),
        (("audio/transcriptions", {"prompt": "x"}), "unsupported_parameter", "prompt", "leave it out"),
        (("audio/transcriptions", {"temperature": 0.5}), "unsupported_parameter", "temperature"),
        (
            ("audio/transcriptions", {"timestamp_granularities": ["segment", "word"]}),
            "unsupported_parameter",
            "timestamp_granularities",
            "segment",
        ),
        (
            ("audio/transcriptions", {"chunking_strategy": "server_vad"}),
            "unsupported_parameter",
            "chunking_strategy",
            "auto",
        ),
        (("audio/transcriptions", {"include": ["logprobs"]}), "unsupported_parameter", "include"),
        (("audio/transcriptions", {"language": "english"}), "invalid_value", "language", "^[a-z]{2,3}$"),
    ),
    (("responses", {"previous_response_id": "resp_1"}), "unsupported_parameter", "previous_response_id", "in a batch"),
    (("responses", {"conversation": "conv_1"}), "unsupported_parameter", "conversation", "in a batch"),
    (("responses", {"prompt": {"id": "p"}}), "unsupported_parameter", "prompt", "in a batch"),
    (
        ("responses", {"input": [{"type": "mcp_approval_response", "approval_request_id": "a", "approve": True}]}),
        "invalid_value",
        "input[0].approval_request_id",
        "previous_response_id",
    ),
    (("embeddings", {"input": []}), "invalid_value", "input", "not empty"),
]


def test_an_error_names_the_field_of_the_body(subtests: pytest.Subtests) -> None:
    for (name, changes), code, param, *named in REFUSED:
        with subtests.test(name, param=param, named=named):
            assert refusal_of(read, name, changes) == (code, param, Naming(*named))
    with pytest.raises(InvalidRequest, match="/v1/chat/completions, "):
        read_task("/v1/other", {})


@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("rerank", "input.documents[1]", "documents[1]"),
        ("classify", "input.texts[0]", "input"),
        ("score", "input.text_1[0]", "text_1"),
        ("score", "input.text_2[0]", "text_2[0]"),
        ("score", "input", "text_1"),
        ("images/classify", "input.images[2]", "images[2]"),
        *of("transcribe", ("audio/transcriptions", "input.file_id", "file_id")),
        ("embeddings", "input.texts[0]", "input"),
        *of("predict", ("tabular/predictions", "webhook.url", "job.webhook.url")),
        *of("recommend", ("recommendations", "filter.where[0]", "filter.where[0]")),
        ("chat/completions", "sampling.temperature", "temperature"),
        ("responses", "sampling.max_tokens", "max_output_tokens"),
        *of("anthropic", ("messages", "sampling.stop[1]", "stop_sequences[1]")),
    ],
)
def test_an_error_about_the_job_is_told_of_the_body(name: str, given: str, sent: str) -> None:
    error = read(name, {}).complain(InvalidRequest(f"`{given}` is wrong", param=given))
    assert (error.param, error.message) == (sent, f"`{sent}` is wrong")
    assert read(name, {}).complain(InvalidRequest("wrong")).param is None
