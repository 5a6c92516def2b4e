"""The job, the answer and the errors of each URL that a line of a batch may name, field by field. No server."""

from dataclasses import replace
from typing import Any

import pytest

from producer_api.tasks.registry import TASK_URLS, read_task
from producer_api.tasks.transcription_form import MemoryDraft, fields_of
from store.errors import InvalidRequest
from store.jobs.jobs import Job
from tests.producer_api.answered_jobs import ended, job_of

SERVER = "https://example.com/mill.jpg"
ROW = {"amount": 1, "at": "2026-11-28T12:30:00Z"}
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"model": "m", "input": "hi"},
    "/v1/rerank": {"model": "m", "query": "q", "documents": ["a", {"text": "b"}]},
    "/v1/classify": {"model": "m", "input": "hi"},
    "/v1/token_classify": {"model": "m", "input": "hi"},
    "/v1/score": {"model": "m", "text_1": "a", "text_2": ["b", "c"]},
    "/v1/images/classify": {"model": "m", "images": [SERVER]},
    "/v1/images/zero_shot": {"model": "m", "images": [SERVER], "candidate_labels": ["a", "b"]},
    "/v1/tabular/predictions": {"model": "m", "rows": [ROW]},
    "/v1/recommendations": {"model": "m", "history": [{"id": "i"}]},
    "/v1/audio/transcriptions": {"model": "m", "file_id": "file-1"},
}
TOP = "model", "service_class", "metadata", "task"


def read(name: str, changes: dict[str, Any]) -> Any:
    return read_task(f"/v1/{name}", PLAIN[f"/v1/{name}"] | changes)


def job(name: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of the job but those that are the same for all."""
    made: dict[str, Any] = read(name, changes or {}).job.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    assert (made.pop("model"), made.pop("service_class"), made.pop("metadata", {})) == ("m", "interactive", {})
    return made


def answer(name: str, output: dict[str, Any], payload: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The whole answer of a job with this output; the usage is counted as 5 tokens."""
    return read(name, changes).answer(replace(job_of("", payload), output=output))


def uncounted(job: Job) -> Job:
    """A job whose worker has not counted: its tokens are those of its acceptance, 3."""
    return replace(job, usage=None)


def test_a_batch_may_name_the_urls_of_these_tasks() -> None:
    assert [url for url in TASK_URLS if not url.startswith("/v1/tasks/")] == [*PLAIN]


def test_each_url_has_its_job() -> None:
    assert job("embeddings") == {"task": "embed", "input": {"texts": ["hi"]}, "truncate": False}
    assert job("rerank") == {"task": "rerank", "input": {"query": "q", "documents": ["a", "b"]}, "truncate": False}
    assert job("classify") == {"task": "classify", "input": {"texts": ["hi"]}, "truncate": False}
    assert job("token_classify") == {
        "task": "token_classify",
        "input": {"texts": ["hi"]},
        "aggregation_strategy": "simple",
        "ignore_labels": ["O"],
        "truncate": False,
    }
    assert job("score") == {"task": "score", "input": {"text_1": ["a"], "text_2": ["b", "c"]}, "truncate": False}
    assert job("images/classify") == {
        "task": "image_classify",
        "input": {"images": [{"url": "https://example.com/mill.jpg"}]},
    }
    assert job("images/zero_shot") == {
        "task": "image_zero_shot",
        "input": {
            "images": [{"url": "https://example.com/mill.jpg"}],
            "candidate_labels": ["a", "b"],
            "hypothesis_template": "This is a photo of {}.",
        },
    }
    assert job("tabular/predictions") == {
        "task": "predict",
        "input": {"rows": [{"amount": 1, "at": "2026-11-28T12:30:00Z"}]},
        "explain": False,
    }
    assert job("recommendations") == {
        "task": "recommend",
        "input": {"history": [{"id": "i", "weight": 1.0}]},
        "filter": {},
        "top_k": 10,
        "exclude_history": True,
    }
    assert job("audio/transcriptions") == {"task": "transcribe", "input": {"file_id": "file-1"}}
    assert job("completions") == {"input": {"prompt": "hi"}, "sampling": {"max_tokens": 16}, "truncation": "disabled"}


def test_the_fields_of_each_task_reach_its_job() -> None:
    assert job("rerank", {"top_n": 1, "truncate": "END", "user": "ann"}) == {
        "user": "ann",
        "task": "rerank",
        "input": {"query": "q", "documents": ["a", "b"]},
        "top_n": 1,
        "truncate": True,
    }
    assert job("classify", {"input": ["a", ["b", "c"]], "top_k": 2, "truncate": True}) == {
        "task": "classify",
        "input": {"texts": ["a", ["b", "c"]]},
        "top_k": 2,
        "truncate": True,
    }
    assert job("token_classify", {"input": ["a"], "aggregation_strategy": "first", "ignore_labels": []}) == {
        "task": "token_classify",
        "input": {"texts": ["a"]},
        "aggregation_strategy": "first",
        "ignore_labels": [],
        "truncate": False,
    }
    assert job("score", {"text_1": ["a", "b"], "text_2": ["c", "d"], "truncate": "end"}) == {
        "task": "score",
        "input": {"text_1": ["a", "b"], "text_2": ["c", "d"]},
        "truncate": True,
    }
    assert job("images/classify", {"images": [SERVER, {"file_id": "file-1"}], "top_k": 2}) == {
        "task": "image_classify",
        "input": {"images": [{"url": "https://example.com/mill.jpg"}, {"file_id": "file-1"}]},
        "top_k": 2,
    }
    assert job("images/zero_shot", {"hypothesis_template": "a {}", "top_k": 1}) == {
        "task": "image_zero_shot",
        "input": {
            "images": [{"url": "https://example.com/mill.jpg"}],
            "candidate_labels": ["a", "b"],
            "hypothesis_template": "a {}",
        },
        "top_k": 1,
    }
    assert job("tabular/predictions", {"explain": True, "job": {"priority": 1}}) == {
        "priority": 1,
        "task": "predict",
        "input": {"rows": [{"amount": 1, "at": "2026-11-28T12:30:00Z"}]},
        "explain": True,
    }
    picked = {"history": None, "vector": [0.5, 1], "filter": {"exclude_ids": ["x"]}}
    assert job("recommendations", {**picked, "top_k": 3, "exclude_history": False}) == {
        "task": "recommend",
        "input": {"vector": [0.5, 1.0]},
        "filter": {"exclude_ids": ["x"]},
        "top_k": 3,
        "exclude_history": False,
    }
    assert job("recommendations", {"history": None, "features": {"age": 3}}) == {
        "task": "recommend",
        "input": {"features": {"age": 3}},
        "filter": {},
        "top_k": 10,
        "exclude_history": True,
    }
    assert job("audio/transcriptions", {"language": "en", "temperature": 0, "chunking_strategy": "auto"}) == {
        "task": "transcribe",
        "input": {"file_id": "file-1"},
        "language": "en",
    }


@pytest.mark.parametrize(
    ("tier", "service_class"), [("auto", "interactive"), ("default", "standard"), ("flex", "batch")]
)
@pytest.mark.parametrize("name", ["rerank", "tabular/predictions", "audio/transcriptions"])
def test_a_tier_and_options_of_the_job(name: str, tier: str, service_class: str) -> None:
    options = {"priority": 2, "deadline_ms": 1000, "max_attempts": 1, "webhook": {"url": "https://h.example/x"}}
    asked = {"service_tier": tier, "metadata": {"n": 1}, "user": "", "job": {**options, "on_disconnect": "continue"}}
    made = read(name, asked).job.model_dump(mode="json", exclude_unset=True)
    assert made.items() >= {**options, "service_class": service_class, "metadata": {"n": "1"}, "user": None}.items()


def test_each_task_has_its_answer() -> None:
    cut = [{"index": 1, "tokens": 9}]
    assert answer("embeddings", {"embeddings": ["AACAPwAAAEA=", "", "AAAAAA=="], "failed": [{"index": 1}]}) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": (1.0, 2.0)},
            {"object": "embedding", "index": 2, "embedding": (0.0,)},
        ],
        "model": "tiny@1",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "failed": [{"index": 1}],
    }
    assert answer("embeddings", {"embeddings": ["AACAPw=="], "truncated": cut}, encoding_format="base64") == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": "AACAPw=="}],
        "model": "tiny@1",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "truncated": [{"index": 1, "tokens": 9}],
    }
    scores = [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]
    assert answer("classify", {"labels": ["a", "b"], "classifications": [scores, scores[:1]], "truncated": cut}) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "data": [
            {
                "index": 0,
                "label": "b",
                "num_classes": 2,
                "scores": [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}],
                "probs": [0.25, 0.75],
            },
            {"index": 1, "label": "b", "num_classes": 2, "scores": [{"label": "b", "score": 0.75}]},
        ],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "truncated": [{"index": 1, "tokens": 9}],
    }
    assert answer("token_classify", {"entities": [[{"word": "Ann"}], []], "truncated": []}) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "data": [{"index": 0, "entities": [{"word": "Ann"}]}, {"index": 1, "entities": []}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    assert answer("score", {"scores": [0.5, 0.25], "truncated": cut}) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "created": 1795564800,
        "data": [{"object": "score", "index": 0, "score": 0.5}, {"object": "score", "index": 1, "score": 0.25}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "truncated": [{"index": 1, "tokens": 9}],
    }
    results = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}]
    documents = {"input": {"documents": ["<EMAIL_1>", "b"]}}
    assert answer("rerank", {"results": results}, documents) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    shown = answer("rerank", {"results": results}, documents, return_documents=True)["results"]
    assert shown == [
        {"index": 1, "relevance_score": 0.5, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.25, "document": {"text": "<EMAIL_1>"}},
    ]
    purged = answer("rerank", {"results": results}, {}, return_documents=True)["results"]
    assert purged == results
    failed = [{"index": 1, "error": "unreadable"}]
    assert answer("images/classify", {"classifications": [scores, []], "failed": failed}) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "data": [{"index": 0, "label": "b", "scores": [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]}],
        "failed": [{"index": 1, "error": "unreadable"}],
        "usage": {"images": 2, "total_tokens": 5},
    }
    assert answer("images/zero_shot", {"classifications": [scores], "failed": []}) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "data": [{"index": 0, "label": "b", "scores": [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]}],
        "usage": {"images": 1, "total_tokens": 5},
    }
    assert answer("tabular/predictions", {"predictions": [{"label": "ok"}, {"label": "no"}]}) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "predictions": [{"label": "ok"}, {"label": "no"}],
        "usage": {"rows": 2, "total_tokens": 5},
    }
    assert answer("recommendations", {"items": [{"id": "i", "score": 1.0}], "unknown_ids": ["x"]}) == {
        "object": "list",
        "id": "job_1",
        "model": "tiny@1",
        "items": [{"id": "i", "score": 1.0}],
        "unknown_ids": ["x"],
    }
    said = {"text": "Hi", "duration": 1.5, "language": "en", "segments": [{"start": 0.0, "end": 1.5, "text": "Hi"}]}
    assert answer("audio/transcriptions", said) == {"text": "Hi", "usage": {"type": "duration", "seconds": 2}}
    assert answer("audio/transcriptions", said, response_format="verbose_json")["segments"] == [
        {"id": 0, "seek": 0, "temperature": 0.0, "start": 0.0, "end": 1.5, "text": "Hi"}
    ]


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("embeddings", {"embeddings": []}),
        ("classify", {"labels": [], "classifications": []}),
        ("images/classify", {"classifications": []}),
        ("tabular/predictions", {"predictions": []}),
    ],
)
def test_tokens_that_a_worker_has_not_counted_are_those_of_the_acceptance(name: str, output: dict[str, Any]) -> None:
    assert read(name, {}).answer(uncounted(ended("", output=output)))["usage"]["total_tokens"] == 3


def test_what_is_stored_beside_the_job_of_a_line() -> None:
    assert read("chat/completions", {"store": True}).is_stored is True
    assert read("chat/completions", {"store": False}).is_stored is False
    assert read("chat/completions", {}).is_stored is None
    assert read("completions", {}).is_stored is None
    response = read("responses", {"service_tier": "priority", "background": True})
    assert response.response.request["service_tier"] == "flex"
    assert (response.response.is_background, response.with_tools, response.read_answer) == (True, None, None)
    assert response.answer(job_of("Hi."))["service_tier"] == "flex"
    calls = read("responses", {"server_tools": {"names": ["calculator"]}})
    assert None not in (calls.with_tools, calls.read_answer)
    assert read("messages", {"server_tools": {"names": ["calculator"]}}).read_answer is not None
    assert read("messages", {}).read_answer is None
    several = read("chat/completions", {"n": 2})
    outputs = [{"text": text, "finish_reason": "stop"} for text in ("a", "b")]
    payload = {"n": 2, "input": PLAIN["/v1/chat/completions"]["messages"] and {"prompt": "x"}, "sampling": {}}
    found = several.answer(replace(job_of("", payload), output={"choices": outputs}))["choices"]
    assert [one["message"]["content"] for one in found] == ["a", "b"]


def test_a_form_is_read_as_json() -> None:
    form = {"model": "m", "language": "", "metadata[run]": "7", "metadata[a b]": "x", "job[priority]": "2"}
    form |= {
        "job[on_disconnect]": "continue",
        "job[max_attempts]": "1" * 13,
        "timestamp_granularities[]": "segment,word",
    }
    form |= {"metadata[]": "x", "other[x]": "1", f"metadata[{'k' * 65}]": "v"}
    assert fields_of(form) == {
        "model": "m",
        "metadata": ["x"],
        "job": {"priority": 2, "on_disconnect": "continue", "max_attempts": "1111111111111"},
        "timestamp_granularities": ["segment", "word"],
        "other[x]": "1",
        "metadata[kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk]": "v",
    }
    draft = MemoryDraft()
    draft.write(b"ab")
    draft.write(b"c")
    assert (draft.data, draft.num_bytes, draft.sha256[:12]) == (b"abc", 3, "ba7816bf8f01")
    draft.drop()
    assert draft.data == b""


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
            with pytest.raises(InvalidRequest) as raised:
                read(name, changes)
            assert (raised.value.code, raised.value.param, raised.value.message) == (code, param, message)
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
