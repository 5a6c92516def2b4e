"""Requests to an SGLang server, and its answers: recorded from a real one, compared with those of the fake one.

python -m tests.models.external.sglang_exchanges URL > tests/models/external/recordings/sglang-0.5.23.json

The server serves ``tiny`` with the options of docs/engines.md, without --incremental-streaming-output.
"""

import json
import sys
from typing import Any

from tests.models.external.fake_sglang import FakeSglang
from tests.models.external.vllm_exchanges import ask_server

_PROMPT = [116, 104, 101, 32, 109, 105, 108, 108]
_GREEDY = {
    "max_new_tokens": 3,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": -1,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": True,
}


def exchanges() -> dict[str, tuple[str, str, dict[str, Any] | None]]:
    """Return the requests by name: method, path, body."""

    def generate(rid: str, sampling: dict[str, Any] | None = None, **more: Any) -> tuple[str, str, dict[str, Any]]:
        body = {"rid": rid, "input_ids": _PROMPT, "stream": True, "sampling_params": _GREEDY | (sampling or {})}
        return "POST", "/generate", body | more

    return {
        "server info": ("GET", "/server_info", None),
        "models": ("GET", "/v1/models", None),
        "load": ("GET", "/v1/loads?include=core", None),
        "abort of an unknown id": ("POST", "/abort_request", {"rid": "unknown."}),
        "tokens": generate("job-1.", extra_key="tenant", priority=-1),
        "tokens with logprobs": generate("job-2.", return_logprob=True, logprob_start_len=-1, top_logprobs_num=2),
        "tokens with a grammar": generate("job-3.", {"ebnf": 'start: "a"', "ignore_eos": False}),
        "a penalty out of range": generate("job-4.", {"repetition_penalty": 5.0}),
    }


def play(url: str) -> dict[str, Any]:
    """Ask a server all of it; return status and events, or the JSON value, of each answer."""
    answers = {name: ask_server(url, *request) for name, request in exchanges().items()}
    info = answers["server info"]["value"]
    answers["server info"]["value"] = {name: info[name] for name in FakeSglang.INFO} | {"model_path": "/models/tiny"}
    return answers


if __name__ == "__main__":
    json.dump(play(sys.argv[1]), sys.stdout, indent=1)
    sys.stdout.write("\n")
