"""The job and the answer of each URL that a line of a batch may name, field by field. No server."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.producer_api.tasks.registry import TASK_URLS
from headrace.store.jobs.jobs import Job
from tests.producer_api.answered_jobs import ended, job_of
from tests.producer_api.tasks.task_bodies import PLAIN, SERVER, read


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


@pytest.mark.whole
def test_a_batch_may_name_the_urls_of_these_tasks() -> None:
    assert {url for url in TASK_URLS if not url.startswith("/v1/tasks/")} == {*PLAIN}


JOBS_OF_PLAIN_BODIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("embeddings", {}, {"task": "embed", "input": {"texts": ["hi"]}, "truncate": False}),
    ("rerank", {}, {"task": "rerank", "input": {"query": "q", "documents": ["a", "b"]}, "truncate": False}),
    ("classify", {}, {"task": "classify", "input": {"texts": ["hi"]}, "truncate": False}),
    (
        "token_classify",
        {},
        {
            "task": "token_classify",
            "input": {"texts": ["hi"]},
            "aggregation_strategy": "simple",
            "ignore_labels": ["O"],
            "truncate": False,
        },
    ),
    ("score", {}, {"task": "score", "input": {"text_1": ["a"], "text_2": ["b", "c"]}, "truncate": False}),
    ("images/classify", {}, {"task": "image_classify", "input": {"images": [{"url": "https://example.com/mill.jpg"}]}}),
    (
        "images/zero_shot",
        {},
        {
            "task": "image_zero_shot",
            "input": {
                "images": [{"url": "https://example.com/mill.jpg"}],
                "candidate_labels": ["a", "b"],
                "hypothesis_template": "This is a photo of {}.",
            },
        },
    ),
    (
        "tabular/predictions",
        {},
        {"task": "predict", "input": {"rows": [{"amount": 1, "at": "2026-11-28T12:30:00Z"}]}, "explain": False},
    ),
    (
        "recommendations",
        {},
        {
            "task": "recommend",
            "input": {"history": [{"id": "i", "weight": 1.0}]},
            "filter": {},
            "top_k": 10,
            "exclude_history": True,
        },
    ),
    ("audio/transcriptions", {}, {"task": "transcribe", "input": {"file_id": "file-1"}}),
    ("completions", {}, {"input": {"prompt": "hi"}, "sampling": {"max_tokens": 16}, "truncation": "disabled"}),
]
JOBS_OF_EVERY_FIELD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "rerank",
        {"top_n": 1, "truncate": "END", "user": "ann"},
        {
            "user": "ann",
            "task": "rerank",
            "input": {"query": "q", "documents": ["a", "b"]},
            "top_n": 1,
            "truncate": True,
        },
    ),
    (
        "classify",
        {"input": ["a", ["b", "c"]], "top_k": 2, "truncate": True},
        {"task": "classify", "input": {"texts": ["a", ["b", "c"]]}, "top_k": 2, "truncate": True},
    ),
    (
        "token_classify",
        {"input": ["a"], "aggregation_strategy": "first", "ignore_labels": []},
        {
            "task": "token_classify",
            "input": {"texts": ["a"]},
            "aggregation_strategy": "first",
            "ignore_labels": [],
            "truncate": False,
        },
    ),
    (
        "score",
        {"text_1": ["a", "b"], "text_2": ["c", "d"], "truncate": "end"},
        {"task": "score", "input": {"text_1": ["a", "b"], "text_2": ["c", "d"]}, "truncate": True},
    ),
    (
        "images/classify",
        {"images": [SERVER, {"file_id": "file-1"}], "top_k": 2},
        {
            "task": "image_classify",
            "input": {"images": [{"url": "https://example.com/mill.jpg"}, {"file_id": "file-1"}]},
            "top_k": 2,
        },
    ),
    (
        "images/zero_shot",
        {"hypothesis_template": "a {}", "top_k": 1},
        {
            "task": "image_zero_shot",
            "input": {
                "images": [{"url": "https://example.com/mill.jpg"}],
                "candidate_labels": ["a", "b"],
                "hypothesis_template": "a {}",
            },
            "top_k": 1,
        },
    ),
    (
        "tabular/predictions",
        {"explain": True, "job": {"priority": 1}},
        {
            "priority": 1,
            "task": "predict",
            "input": {"rows": [{"amount": 1, "at": "2026-11-28T12:30:00Z"}]},
            "explain": True,
        },
    ),
    (
        "recommendations",
        {"history": None, "vector": [0.5, 1], "filter": {"exclude_ids": ["x"]}, "top_k": 3, "exclude_history": False},
        {
            "task": "recommend",
            "input": {"vector": [0.5, 1.0]},
            "filter": {"exclude_ids": ["x"]},
            "top_k": 3,
            "exclude_history": False,
        },
    ),
    (
        "recommendations",
        {"history": None, "features": {"age": 3}},
        {"task": "recommend", "input": {"features": {"age": 3}}, "filter": {}, "top_k": 10, "exclude_history": True},
    ),
    (
        "audio/speech",
        {"voice": "low", "response_format": "opus", "speed": 2, "stream_format": "sse", "instructions": ""},
        {"task": "speech", "input": {"text": "hi"}, "voice": "low", "response_format": "opus", "speed": 2.0},
    ),
    (
        "audio/transcriptions",
        {"language": "en", "temperature": 0, "chunking_strategy": "auto"},
        {"task": "transcribe", "input": {"file_id": "file-1"}, "language": "en"},
    ),
]


@pytest.mark.parametrize(("name", "changes", "expected"), JOBS_OF_PLAIN_BODIES + JOBS_OF_EVERY_FIELD)
def test_a_body_becomes_this_job(name: str, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert job(name, changes) == expected


@pytest.mark.parametrize(
    ("truncate", "cuts"),
    [(True, True), ("end", True), ("END", True), (False, False), ("none", False), ("NONE", False), (None, False)],
)
def test_inputs_are_cut_only_if_that_is_asked_for(truncate: object, cuts: bool) -> None:
    assert job("rerank", {"truncate": truncate})["truncate"] == cuts


@pytest.mark.parametrize(
    ("tier", "service_class"), [("auto", "interactive"), ("default", "standard"), ("flex", "batch")]
)
@pytest.mark.parametrize("name", ["rerank", "tabular/predictions", "audio/transcriptions"])
def test_a_tier_and_options_of_the_job(name: str, tier: str, service_class: str) -> None:
    options = {"priority": 2, "deadline_ms": 1000, "max_attempts": 1, "webhook": {"url": "https://h.example/x"}}
    asked = {"service_tier": tier, "metadata": {"n": 1}, "user": "", "job": {**options, "on_disconnect": "continue"}}
    made = read(name, asked).job.model_dump(mode="json", exclude_unset=True)
    assert made.items() >= {**options, "service_class": service_class, "metadata": {"n": "1"}, "user": None}.items()


LIST = {"object": "list", "id": "job_1", "model": "tiny@1"}
TEXT_USAGE = {"prompt_tokens": 5, "total_tokens": 5}
CUT = [{"index": 1, "tokens": 9}]
SCORES = [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]
SHOWN_SCORES = [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]
SHOWN_CUT = [{"index": 1, "tokens": 9}]


def test_the_answers_of_embeddings() -> None:
    assert answer("embeddings", {"embeddings": ["AACAPwAAAEA=", "", "AAAAAA=="], "failed": [{"index": 1}]}) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": (1.0, 2.0)},
            {"object": "embedding", "index": 2, "embedding": (0.0,)},
        ],
        "model": "tiny@1",
        "usage": TEXT_USAGE,
        "failed": [{"index": 1}],
    }
    assert answer("embeddings", {"embeddings": ["AACAPw=="], "truncated": CUT}, encoding_format="base64") == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": "AACAPw=="}],
        "model": "tiny@1",
        "usage": TEXT_USAGE,
        "truncated": SHOWN_CUT,
    }


def test_the_answers_of_classes_of_texts() -> None:
    assert answer("classify", {"labels": ["a", "b"], "classifications": [SCORES, SCORES[:1]], "truncated": CUT}) == {
        **LIST,
        "data": [
            {"index": 0, "label": "b", "num_classes": 2, "scores": SHOWN_SCORES, "probs": [0.25, 0.75]},
            {"index": 1, "label": "b", "num_classes": 2, "scores": [{"label": "b", "score": 0.75}]},
        ],
        "usage": TEXT_USAGE,
        "truncated": SHOWN_CUT,
    }
    assert answer("token_classify", {"entities": [[{"word": "Ann"}], []], "truncated": []}) == {
        **LIST,
        "data": [{"index": 0, "entities": [{"word": "Ann"}]}, {"index": 1, "entities": []}],
        "usage": TEXT_USAGE,
    }


def test_the_answers_of_scores_and_ranks() -> None:
    assert answer("score", {"scores": [0.5, 0.25], "truncated": CUT}) == {
        **LIST,
        "created": 1795564800,
        "data": [{"object": "score", "index": 0, "score": 0.5}, {"object": "score", "index": 1, "score": 0.25}],
        "usage": TEXT_USAGE,
        "truncated": SHOWN_CUT,
    }
    results = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}]
    documents = {"input": {"documents": ["<EMAIL_1>", "b"]}}
    assert answer("rerank", {"results": results}, documents) == {
        **LIST,
        "results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}],
        "usage": TEXT_USAGE,
    }
    shown = answer("rerank", {"results": results}, documents, return_documents=True)["results"]
    assert shown == [
        {"index": 1, "relevance_score": 0.5, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.25, "document": {"text": "<EMAIL_1>"}},
    ]
    purged = answer("rerank", {"results": results}, {}, return_documents=True)["results"]
    assert purged == results


def test_the_answers_of_classes_of_images() -> None:
    failed = [{"index": 1, "error": "unreadable"}]
    assert answer("images/classify", {"classifications": [SCORES, []], "failed": failed}) == {
        **LIST,
        "data": [{"index": 0, "label": "b", "scores": SHOWN_SCORES}],
        "failed": [{"index": 1, "error": "unreadable"}],
        "usage": {"images": 2, "total_tokens": 5},
    }
    assert answer("images/zero_shot", {"classifications": [SCORES], "failed": []}) == {
        **LIST,
        "data": [{"index": 0, "label": "b", "scores": SHOWN_SCORES}],
        "usage": {"images": 1, "total_tokens": 5},
    }


@pytest.mark.uses("predict", "recommend")
def test_the_answers_of_rows_and_recommendations() -> None:
    assert answer("tabular/predictions", {"predictions": [{"label": "ok"}, {"label": "no"}]}) == {
        **LIST,
        "predictions": [{"label": "ok"}, {"label": "no"}],
        "usage": {"rows": 2, "total_tokens": 5},
    }
    assert answer("recommendations", {"items": [{"id": "i", "score": 1.0}], "unknown_ids": ["x"]}) == {
        **LIST,
        "items": [{"id": "i", "score": 1.0}],
        "unknown_ids": ["x"],
    }


@pytest.mark.uses("transcribe")
def test_the_answers_of_transcriptions() -> None:
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
    for asked, told in (({"service_tier": "priority"}, "flex"), ({}, None)):
        assert read("chat/completions", asked).answer(job_of("Hi.")).get("service_tier") == told
    calls = read("responses", {"server_tools": {"names": ["calculator"]}})
    assert None not in (calls.with_tools, calls.read_answer)
    several = read("chat/completions", {"n": 2})
    outputs = [{"text": text, "finish_reason": "stop"} for text in ("a", "b")]
    payload = {"n": 2, "input": {"prompt": "x"}, "sampling": {}}
    found = several.answer(replace(job_of("", payload), output={"choices": outputs}))["choices"]
    assert [one["message"]["content"] for one in found] == ["a", "b"]


@pytest.mark.uses("anthropic")
def test_a_line_of_anthropics_face_with_tools_is_read_by_its_own_form() -> None:
    assert read("messages", {"server_tools": {"names": ["calculator"]}}).read_answer is not None
    assert read("messages", {}).read_answer is None
