"""The tasks and their runners by name."""

import pytest

from headrace.store.errors import CannotLoadHere
from headrace.store.tasks.registry import (
    BULKY_OUTPUTS,
    FAKE_RUNNERS,
    MODEL_TASKS,
    TASK_OF_RUNNER,
    TASKS,
    is_from_outside,
    known_task,
)
from tests.store.tasks.making import SOURCES

# Of each task: its runner, the one without weights, URLs, the tasks that serve it, bulky outputs, many texts or not.
MANY = True
SHOWN_TASKS = {
    "generate": (
        "torch",
        "fake",
        ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        (),
        (),
        False,
    ),
    "embed": ("encoder", "fake-encoder", ("/v1/embeddings",), (), ("embeddings",), MANY),
    "rerank": ("cross-encoder", "fake-cross-encoder", ("/v1/rerank",), (), (), MANY),
    "classify": ("classifier", "fake-classifier", ("/v1/classify",), (), ("classifications",), MANY),
    "token_classify": (
        "token-classifier",
        "fake-token-classifier",
        ("/v1/token_classify",),
        (),
        ("entities",),
        MANY,
    ),
    "score": ("", "", ("/v1/score",), ("rerank", "embed"), (), MANY),
    "image_classify": (
        "image-classifier",
        "fake-image-classifier",
        ("/v1/images/classify",),
        (),
        ("classifications",),
        MANY,
    ),
    "image_zero_shot": ("", "", ("/v1/images/zero_shot",), ("embed",), ("classifications",), MANY),
    "predict": ("tabular", "fake-tabular", ("/v1/tabular/predictions",), (), ("predictions",), False),
    "recommend": ("recommender", "fake-recommender", ("/v1/recommendations",), (), ("items",), False),
    "transcribe": ("transcriber", "fake-transcriber", ("/v1/audio/transcriptions",), (), ("segments",), False),
    "call_tool": ("own:call_tool", "own:call_tool:without-files", ("/v1/tasks/call_tool",), (), (), False),
}


@pytest.mark.whole
def test_tasks_are_known_by_names_that_stored_versions_and_clients_have() -> None:
    shown = {
        name: (spec.runner, spec.fake_runner, spec.urls, spec.served_by, spec.bulky_outputs, spec.has_many_texts)
        for name, spec in TASKS.items()
        if name in SOURCES
    }
    assert shown == SHOWN_TASKS
    assert [name for name, spec in TASKS.items() if spec.has_sampling] == ["generate"]
    assert {"score", "image_zero_shot"}.isdisjoint(MODEL_TASKS)
    assert {TASK_OF_RUNNER[name].name for name in ("torch", "fake", "vllm", "sglang", "openai")} == {"generate"}
    assert {"fake", "fake-encoder", "own:call_tool:without-files"} <= set(FAKE_RUNNERS)
    assert {"", "torch"}.isdisjoint(FAKE_RUNNERS)
    assert {"embeddings", "classifications", "entities", "predictions", "items", "segments"} <= BULKY_OUTPUTS
    assert (is_from_outside("embed"), is_from_outside("call_tool"), is_from_outside("nobody")) == (False, True, True)
    assert known_task("embed") is TASKS["embed"]
    with pytest.raises(CannotLoadHere, match="task mood"):
        known_task("mood")
