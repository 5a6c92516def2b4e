"""The errors of each URL that a line of a batch may name: they say which field of the body is wrong. No server."""

from typing import Any

import pytest

from headrace.producer_api.tasks.registry import read_task
from headrace.store.errors import InvalidRequest
from tests.producer_api.request_outcomes import refusal_of
from tests.producer_api.tasks.task_bodies import ROW, SERVER, read

REFUSED: list[tuple[tuple[str, dict[str, Any]], str, str | None, str]] = [
    (("rerank", {"stream": True}), "invalid_value", "stream", "a batch has no streams: leave `stream` out"),
    (("rerank", {"query": ""}), "invalid_value", "query", "`query`: string should have at least 1 character"),
    (
        ("rerank", {"documents": ["a", ""]}),
        "invalid_value",
        "documents[1]",
        "`documents[1]`: string should have at least 1 character",
    ),
    (
        ("rerank", {"documents": ["a", 3]}),
        "invalid_value",
        "documents[1]",
        "`documents[1]`: a document is a text, or an object with a `text`",
    ),
    (("rerank", {"top_n": 0}), "invalid_value", "top_n", "`top_n`: input should be greater than or equal to 1"),
    (
        ("rerank", {"job": {"priority": 10}}),
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    (
        ("rerank", {"document": "x"}),
        "unsupported_parameter",
        "document",
        "unknown field `document`: did you mean `documents`?",
    ),
    (
        ("rerank", {"max_tokens_per_doc": 5}),
        "unsupported_parameter",
        "max_tokens_per_doc",
        "`max_tokens_per_doc` is not supported: send `truncate`",
    ),
    (
        ("rerank", {"metadata": {"k": "x" * 513}}),
        "invalid_value",
        "metadata.k",
        "`metadata.k`: string should have at most 512 characters",
    ),
    (
        ("classify", {"input": ""}),
        "invalid_value",
        "input",
        "`input`: string should have at least 1 character, or input should be a valid array",
    ),
    (
        ("classify", {"input": ["a", ["b", ""]]}),
        "invalid_value",
        "input[1][1]",
        "`input[1][1]`: string should have at least 1 character",
    ),
    (("classify", {"input": ["a", ["b"]]}), "invalid_value", "input[1][1]", "`input[1][1]` is required"),
    (("classify", {"top_k": 0}), "invalid_value", "top_k", "`top_k`: input should be greater than or equal to 1"),
    (
        ("classify", {"normalize": True}),
        "unsupported_parameter",
        "normalize",
        "`normalize` is not supported: the model's own files decide",
    ),
    (
        ("token_classify", {"input": [["a", "b"]]}),
        "invalid_value",
        "input[0]",
        "`input[0]`: input should be a valid string",
    ),
    (("token_classify", {"input": ""}), "invalid_value", "input", "`input`: string should have at least 1 character"),
    (("score", {"text_1": ""}), "invalid_value", "text_1", "`text_1`: string should have at least 1 character"),
    (
        ("score", {"text_2": ["b", ""]}),
        "invalid_value",
        "text_2[1]",
        "`text_2[1]`: string should have at least 1 character",
    ),
    (
        ("score", {"text_1": ["a", "b", "c"]}),
        "invalid_value",
        "text_1",
        "`text_1`: `text_1` has 3 texts and `text_2` has 2: give one text in `text_1`, or as many as in `text_2`",
    ),
    (
        ("images/classify", {"images": []}),
        "invalid_value",
        "images",
        "`images`: array should have at least 1 item, not 0",
    ),
    (
        ("images/classify", {"images": [SERVER, {}]}),
        "invalid_value",
        "images[1]",
        "`images[1]`: an image is a URL, or an object with one of `url` and `file_id`",
    ),
    (
        ("images/classify", {"top_k": 0}),
        "invalid_value",
        "top_k",
        "`top_k`: input should be greater than or equal to 1",
    ),
    (
        ("images/zero_shot", {"candidate_labels": ["a", "a"]}),
        "invalid_value",
        "candidate_labels",
        "`candidate_labels`: a label is listed twice",
    ),
    (
        ("images/zero_shot", {"hypothesis_template": "a photo"}),
        "invalid_value",
        "hypothesis_template",
        "`hypothesis_template`: it has `{}` once, where the label stands",
    ),
    (
        ("tabular/predictions", {"rows": []}),
        "invalid_value",
        "rows",
        "`rows`: array should have at least 1 item, not 0",
    ),
    (
        ("tabular/predictions", {"row": [ROW]}),
        "unsupported_parameter",
        "row",
        "`row` is not a field that is known here: remove it or correct its name",
    ),
    (
        ("recommendations", {"vector": [1.0]}),
        "invalid_value",
        None,
        "give exactly one of `vector`, `history` and `features`",
    ),
    (
        ("recommendations", {"history": None}),
        "invalid_value",
        None,
        "give exactly one of `vector`, `history` and `features`",
    ),
    (
        ("recommendations", {"top_k": 0}),
        "invalid_value",
        "top_k",
        "`top_k`: input should be greater than or equal to 1",
    ),
    (
        ("recommendations", {"history": [{"id": "i", "weight": 0}]}),
        "invalid_value",
        "history[0].weight",
        "`history[0].weight`: input should be greater than 0",
    ),
    (
        ("audio/transcriptions", {"file_id": None}),
        "unsupported_parameter",
        "file_id",
        "a line of a batch names the audio by `file_id`, an uploaded file",
    ),
    (
        ("audio/transcriptions", {"response_format": "srt"}),
        "unsupported_parameter",
        "response_format",
        "an answer in a batch is JSON: send json or verbose_json",
    ),
    (
        ("audio/transcriptions", {"response_format": "text"}),
        "unsupported_parameter",
        "response_format",
        "an answer in a batch is JSON: send json or verbose_json",
    ),
    (
        ("audio/transcriptions", {"prompt": "x"}),
        "unsupported_parameter",
        "prompt",
        "`prompt` is not supported: leave it out",
    ),
    (
        ("audio/transcriptions", {"temperature": 0.5}),
        "unsupported_parameter",
        "temperature",
        "`temperature` is not supported: transcripts are the likeliest text, send 0",
    ),
    (
        ("audio/transcriptions", {"timestamp_granularities": ["segment", "word"]}),
        "unsupported_parameter",
        "timestamp_granularities",
        "times of words are not supported: send `segment`",
    ),
    (
        ("audio/transcriptions", {"chunking_strategy": "server_vad"}),
        "unsupported_parameter",
        "chunking_strategy",
        "`chunking_strategy` is not supported: send `auto`",
    ),
    (
        ("audio/transcriptions", {"include": ["logprobs"]}),
        "unsupported_parameter",
        "include",
        "`include` is not supported: leave it out",
    ),
    (
        ("audio/transcriptions", {"language": "english"}),
        "invalid_value",
        "language",
        "`language`: string should match pattern '^[a-z]{2,3}$'",
    ),
    (
        ("responses", {"previous_response_id": "resp_1"}),
        "unsupported_parameter",
        "previous_response_id",
        "`previous_response_id` is not supported in a batch: send what it stands for",
    ),
    (
        ("responses", {"conversation": "conv_1"}),
        "unsupported_parameter",
        "conversation",
        "`conversation` is not supported in a batch: send what it stands for",
    ),
    (
        ("responses", {"prompt": {"id": "p"}}),
        "unsupported_parameter",
        "prompt",
        "`prompt` is not supported in a batch: send what it stands for",
    ),
    (
        ("responses", {"input": [{"type": "mcp_approval_response", "approval_request_id": "a", "approve": True}]}),
        "invalid_value",
        "input[0].approval_request_id",
        "`input[0].approval_request_id` needs `previous_response_id`: the response that asked for the approval",
    ),
    (
        ("embeddings", {"input": []}),
        "invalid_value",
        "input",
        "`input` is a text, a list of texts, a list of token ids, or a list of such lists, and not empty",
    ),
]


def test_an_error_names_the_field_of_the_body(subtests: pytest.Subtests) -> None:
    for (name, changes), code, param, message in REFUSED:
        with subtests.test(name, message=message):
            assert refusal_of(read, name, changes) == (code, param, message)
    with pytest.raises(InvalidRequest, match="`url` must be one of /v1/audio/transcriptions, /v1/chat/completions, "):
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
        ("audio/transcriptions", "input.file_id", "file_id"),
        ("embeddings", "input.texts[0]", "input"),
        ("tabular/predictions", "webhook.url", "job.webhook.url"),
        ("recommendations", "filter.where[0]", "filter.where[0]"),
        ("chat/completions", "sampling.temperature", "temperature"),
        ("responses", "sampling.max_tokens", "max_output_tokens"),
        ("messages", "sampling.stop[1]", "stop_sequences[1]"),
    ],
)
def test_an_error_about_the_job_is_told_of_the_body(name: str, given: str, sent: str) -> None:
    error = read(name, {}).complain(InvalidRequest(f"`{given}` is wrong", param=given))
    assert (error.param, error.message) == (sent, f"`{sent}` is wrong")
    assert read(name, {}).complain(InvalidRequest("wrong")).param is None
