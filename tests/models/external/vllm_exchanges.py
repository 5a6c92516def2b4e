"""Requests to a vLLM server, and its answers: recorded from a real one, compared with those of the fake one.

python -m tests.models.external.vllm_exchanges URL MODEL > tests/models/external/recordings/vllm-0.32.json
"""

import json
import sys
import urllib.error
import urllib.request
from typing import Any

_PROMPT = [116, 104, 101, 32, 109, 105, 108, 108]
_GREEDY = {"max_tokens": 3, "temperature": 0, "ignore_eos": True}


def exchanges(model: str) -> dict[str, tuple[str, str, dict[str, Any] | None]]:
    """Return the requests by name: method, path, body."""
    streamed = {"request_id": "job-1", "model": model, "stream": True, "stream_options": {"include_usage": True}}

    def generate(**sampling: Any) -> tuple[str, str, dict[str, Any]]:
        return (
            "POST",
            "/inference/v1/generate",
            streamed | {"token_ids": _PROMPT, "sampling_params": _GREEDY | sampling},
        )

    completion = streamed | _GREEDY | {"prompt": _PROMPT, "return_token_ids": True, "return_tokens_as_token_ids": True}
    return {
        "version": ("GET", "/version", None),
        "models": ("GET", "/v1/models", None),
        "abort of an unknown id": ("POST", "/inference/v1/abort_requests", {"request_ids": ["unknown"]}),
        "tokens": generate(),
        "tokens with logprobs": generate(logprobs=2),
        "tokens with a grammar": generate(ignore_eos=False, structured_outputs={"choice": ["a"]}),
        "a grammar that cannot be read": generate(structured_outputs={"grammar": "%llguidance {}\nstart: no("}),
        "a token outside of the vocabulary": (*generate()[:2], generate()[2] | {"token_ids": [10**8]}),
        "another model": (*generate()[:2], generate()[2] | {"model": "another"}),
        "text": ("POST", "/v1/completions", completion),
        "text with logprobs": ("POST", "/v1/completions", completion | {"logprobs": 2}),
    }


def play(url: str, model: str) -> dict[str, Any]:
    """Ask a server all of it; return status and events, or the JSON value, of each answer."""
    return {name: ask_server(url, *request) for name, request in exchanges(model).items()}


def shape(value: Any) -> Any:
    """Return the names and types of a JSON value. Null is any type."""
    if isinstance(value, dict):
        return {_name(name): shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return type(value).__name__ if value is not None else None


def _name(name: str) -> str:
    return "token_id:" if name.startswith("token_id:") else name


def ask_server(url: str, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Ask a server; return the status and the events, or the JSON value, of its answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    if text.startswith("data:"):
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        return {"status": status, "events": [each if each == "[DONE]" else json.loads(each) for each in events]}
    return {"status": status, "value": json.loads(text) if text else None}


if __name__ == "__main__":
    json.dump(play(sys.argv[1], sys.argv[2]), sys.stdout, indent=1)
    sys.stdout.write("\n")
