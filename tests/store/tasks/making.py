"""Requests of all tasks, read and refused."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from headrace.store.tasks.registry import JobRequest

REQUEST: TypeAdapter[Any] = TypeAdapter(JobRequest)
TEXTS = {"texts": ["a"]}
IMAGE = "data:image/png;base64,iVBORw0KGgo="
SOURCES: dict[str, dict[str, Any]] = {
    "generate": {"prompt": "a"},
    "embed": TEXTS,
    "rerank": {"query": "a", "documents": ["b"]},
    "classify": TEXTS,
    "token_classify": TEXTS,
    "score": {"text_1": ["a"], "text_2": ["b"]},
    "image_classify": {"images": [IMAGE]},
    "image_zero_shot": {"images": [IMAGE], "candidate_labels": ["a"]},
    "predict": {"rows": [{"a": 1}]},
    "recommend": {"history": [{"id": "a"}]},
    "transcribe": {"file_id": "file_1"},
    "call_tool": {"tool": "calculator"},
}


def read(task: str, source: dict[str, Any] | None = None, **more: Any) -> Any:
    return REQUEST.validate_python({"task": task, "model": "m", "input": source or SOURCES[task], **more})


def refused(task: str, source: dict[str, Any] | None = None, **more: Any) -> list[tuple[str, str]]:
    """The places, without the tag of the task, and the messages."""
    with pytest.raises(ValidationError) as error:
        read(task, source, **more)
    return [(".".join(map(str, one["loc"][1:])), one["msg"]) for one in error.value.errors()]


MESSAGE = {"role": "user", "content": "a"}
CHAT = {"messages": [MESSAGE]}
TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "g"}}
AT_LEAST, AT_MOST = "should have at least", "should have at most"
