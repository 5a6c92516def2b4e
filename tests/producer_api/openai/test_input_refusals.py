"""Completions and embeddings that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from tests.producer_api.openai.openai_requests import completion_job, embed_job
from tests.producer_api.request_outcomes import Refused, refuse_all

REFUSED_COMPLETIONS: Refused = [
    ({"echo": True, "stream": True}, "unsupported_parameter", "echo", "`echo` is not streamed: leave out `stream`"),
    ({"prompt": []}, "invalid_value", "prompt", "`prompt`: array should have at least 1 item, not 0"),
    (
        {"prompt": ["a", "b"], "suffix": "z"},
        "invalid_value",
        "prompt",
        "`prompt`: `suffix` goes with `prompt` as text: it is what follows the gap",
    ),
    (
        {"prompt": ["a"] * 9, "n": 16},
        "invalid_value",
        "n",
        "`n`: this makes 144 answers: at most 128 are generated for one request",
    ),
    ({"prompt": [-1]}, "invalid_value", "token_ids[0]", "`token_ids[0]`: input should be greater than or equal to 0"),
    (
        {"max_tokens": 0},
        "invalid_value",
        "max_tokens",
        "`max_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    ({"messages": []}, "unsupported_parameter", "messages", "`messages` is not supported: leave it out"),
]
REFUSED_INPUTS: Refused = [
    (
        {"input": []},
        "invalid_value",
        "input",
        "`input` is a text, a list of texts, a list of token ids, or a list of such lists, and not empty",
    ),
    (
        {"input": {}},
        "invalid_value",
        "input",
        "`input` is a text, a list of texts, a list of token ids, or a list of such lists, and not empty",
    ),
    ({"input": ["a", 1]}, "invalid_value", "input[1]", "`input[1]` must be a text, like the first entry"),
    (
        {"input": [[1], "a"]},
        "invalid_value",
        "input[1]",
        "`input[1]` must be a list of token ids, like the first entry",
    ),
    (
        {"input": [[1], [True]]},
        "invalid_value",
        "input[1]",
        "`input[1]` must be a list of token ids, like the first entry",
    ),
    (
        {"input": [{"image": "x"}, {"img": "y"}]},
        "invalid_value",
        "input[1]",
        '`input[1]` must be an image as `{"image": "https://…"}`, like the first entry',
    ),
    (
        {"input": [{"text": "t"}]},
        "invalid_value",
        "input[0]",
        "`input[0]` is an object with a text: send the text itself, and images in a request of their own",
    ),
    (
        {"input": [{"image": "x", "text": "t"}]},
        "invalid_value",
        "input[0]",
        "`input[0]` is an object with a text: send the text itself, and images in a request of their own",
    ),
    ({"input": ""}, "invalid_value", "input", "`input`: string should have at least 1 character"),
    ({"input": ["a", ""]}, "invalid_value", "input[1]", "`input[1]`: string should have at least 1 character"),
    (
        {"input": [-1], "own_token_ids": True},
        "invalid_value",
        "input[0]",
        "`input[0]`: input should be greater than or equal to 0",
    ),
    (
        {"input": [[1], []], "own_token_ids": True},
        "invalid_value",
        "input[1]",
        "`input[1]`: array should have at least 1 item, not 0",
    ),
    ({"input": ["a"] * 2049}, "invalid_value", "input", "`input`: array should have at most 2048 items, not 2049"),
    ({"dimensions": 0}, "invalid_value", "dimensions", "`dimensions`: input should be greater than or equal to 1"),
    (
        {"job": {"priority": 99}},
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    (
        {"normalize": True},
        "unsupported_parameter",
        "normalize",
        "`normalize` is not supported: the model's own files decide",
    ),
    (
        {"input": [1]},
        "invalid_value",
        "input",
        "`input` has token ids, and clients make them with the tokenizer of OpenAI's models: send texts (LangChain's "
        "OpenAIEmbeddings: `check_embedding_ctx_length=False`), or set `own_token_ids` to true if the ids are of this "
        "model's own vocabulary",
    ),
]


@pytest.mark.parametrize(
    ("make", "cases"),
    [(completion_job, REFUSED_COMPLETIONS), (embed_job, REFUSED_INPUTS)],
    ids=["completion", "embeddings"],
)
def test_an_error_names_the_field_of_the_request(make: Any, cases: Refused, subtests: pytest.Subtests) -> None:
    refuse_all(make, cases, subtests)
