"""Plain bodies of every URL that a line of a batch may name."""

from typing import Any

from headrace.producer_api.tasks.registry import read_task

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
    "/v1/images/generations": {"model": "m", "prompt": "hi"},
    "/v1/images/edits": {"model": "m", "prompt": "hi", "images": ["data:image/png;base64,iVBORw0KGgo="]},
    "/v1/videos": {"model": "m", "prompt": "hi"},
    "/v1/tabular/predictions": {"model": "m", "rows": [ROW]},
    "/v1/recommendations": {"model": "m", "history": [{"id": "i"}]},
    "/v1/audio/speech": {"model": "m", "input": "hi"},
    "/v1/audio/transcriptions": {"model": "m", "file_id": "file-1"},
}


def read(name: str, changes: dict[str, Any]) -> Any:
    """The task of the plain body of this URL with these changes."""
    return read_task(f"/v1/{name}", PLAIN[f"/v1/{name}"] | changes)
