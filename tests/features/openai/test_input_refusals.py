"""Completions and embeddings that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from tests.features.openai.openai_requests import completion_job, embed_job
from tests.producer_api.request_outcomes import Refused, refusal_of
from tests.refusals import Naming

REFUSED_COMPLETIONS: Refused = [
    ({"echo": True, "stream": True}, "unsupported_parameter", "echo", "stream"),
    ({"prompt": []}, "invalid_value", "prompt", "1 item"),
    ({"prompt": ["a", "b"], "suffix": "z"}, "invalid_value", "prompt", "suffix"),
    ({"prompt": ["a"] * 9, "n": 16}, "invalid_value", "n", "most 128"),
    ({"prompt": [-1]}, "invalid_value", "token_ids[0]", "to 0"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens", "echo"),
    ({"messages": []}, "unsupported_parameter", "messages"),
]
REFUSED_INPUTS: Refused = [
    ({"input": []}, "invalid_value", "input", "not empty"),
    ({"input": {}}, "invalid_value", "input", "not empty"),
    ({"input": ["a", 1]}, "invalid_value", "input[1]", "be a text"),
    ({"input": [[1], "a"]}, "invalid_value", "input[1]", "token ids"),
    ({"input": [[1], [True]]}, "invalid_value", "input[1]", "token ids"),
    ({"input": [{"image": "x"}, {"img": "y"}]}, "invalid_value", "input[1]", '{"image": "https://…"}'),
    ({"input": [{"text": "t"}]}, "invalid_value", "input[0]", "images"),
    ({"input": [{"image": "x", "text": "t"}]}, "invalid_value", "input[0]", "images"),
    ({"input": ""}, "invalid_value", "input", "1 character"),
    ({"input": ["a", ""]}, "invalid_value", "input[1]", "1 character"),
    ({"input": [-1], "own_token_ids": True}, "invalid_value", "input[0]", "to 0"),
    ({"input": [[1], []], "own_token_ids": True}, "invalid_value", "input[1]", "1 item"),
    ({"input": ["a"] * 2049}, "invalid_value", "input", "most 2048"),
    ({"dimensions": 0}, "invalid_value", "dimensions", "to 1"),
    ({"job": {"priority": 99}}, "invalid_value", "job.priority", "to 9"),
    ({"normalize": True}, "unsupported_parameter", "normalize"),
    ({"input": [1]}, "invalid_value", "input", "check_embedding_ctx_length=False", "own_token_ids"),
]


@pytest.mark.parametrize(
    ("make", "cases"),
    [(completion_job, REFUSED_COMPLETIONS), (embed_job, REFUSED_INPUTS)],
    ids=["completion", "embeddings"],
)
def test_an_error_names_the_field_of_the_request(make: Any, cases: Refused, subtests: pytest.Subtests) -> None:
    for changes, code, param, *named in cases:
        with subtests.test(f"{code} {param}", named=named):
            assert refusal_of(make, changes) == (code, param, Naming(*named))
