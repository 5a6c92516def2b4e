"""The inputs of requests for text: which go together, and which make no prompt."""

from typing import Any

import pytest
from pydantic import ValidationError

from headrace.store.tasks.generate import GenerateInput
from tests.store.tasks.making import AT_MOST, CHAT, MESSAGE, NAMED, TOOL, read


@pytest.mark.parametrize(
    ("source", "place", "said"),
    [
        ({"prompts": ["a", [1]]}, ".prompts", "not both"),
        ({"prompts": ["a"] * 129}, ".prompts", f"{AT_MOST} 128"),
        (
            {**CHAT, "tools": [TOOL, NAMED, TOOL]},
            ".tools",
            "named f",
        ),
        (
            {**CHAT, "tool_choice": "all"},
            ".tool_choice",
            "`none`, `auto`, `required`",
        ),
        (
            {**CHAT, "tool_choice": "required"},
            ".tool_choice",
            "`tools`",
        ),
        ({**CHAT, "tools": [TOOL], "tool_choice": NAMED}, ".tool_choice", "named g"),
        (
            {"template": {"id": "x"}, "prompt": "a"},
            "",
            "a `template` goes with `messages`",
        ),
        (
            {"template": {"id": "x"}, "suffix": "a"},
            "",
            "a `template` goes with `messages`",
        ),
        (
            {"prompt": "a", "token_ids": [1]},
            "",
            "`messages`, `prompt`, `token_ids` and `prompts`",
        ),
        ({}, "", "`messages`, `prompt`, `token_ids` and `prompts`"),
        (
            {"token_ids": [1], "special_tokens": "text"},
            "",
            "`special_tokens` goes with",
        ),
        (
            {"prompt": "a", "tools": [TOOL]},
            "",
            "`tools` go with `messages`",
        ),
        (
            {"prompt": "a", "chat_template_kwargs": {"a": 1}},
            "",
            "`chat_template_kwargs` go with `messages`",
        ),
        (
            {"token_ids": [1], "suffix": "b"},
            "",
            "`suffix` goes with `prompt`",
        ),
        (
            {"prompt": "a", "reasoning": {"effort": "low"}},
            "",
            "`reasoning` goes with `messages`",
        ),
    ],
)
def test_an_input_that_makes_no_prompt_is_refused(source: dict[str, Any], place: str, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        read("generate", source or {"suffix": None})
    (problem,) = error.value.errors()
    assert "".join(f".{part}" for part in problem["loc"][2:]) == place
    assert said in problem["msg"]


def test_a_chat_may_have_what_goes_with_it() -> None:
    for source in (
        {**CHAT, "tools": [TOOL, NAMED], "tool_choice": NAMED, "chat_template_kwargs": {"a": 1}},
        {**CHAT, "tool_choice": "none"},
        {**CHAT, "tool_choice": "auto", "special_tokens": "text", "reasoning": {"effort": "low"}},
        {"prompt": "a", "suffix": "b", "special_tokens": "text"},
        {"template": {"id": "x"}, "messages": [MESSAGE]},
        {"template": {"id": "x"}},
        {"prompts": ["a"] * 128},
    ):
        assert read("generate", source).has_steps is False
    given = GenerateInput.model_validate({**CHAT, "tools": [TOOL, NAMED], "tool_choice": "none"})
    assert given.callable_tools == ()
    assert given.model_copy(update={"tool_choice": None}).callable_tools == given.tools
    both = GenerateInput.model_validate({"prompts": ["a", "b"]})
    assert both.each_prompt == (GenerateInput(prompt="a"), GenerateInput(prompt="b"))
    ids = GenerateInput.model_validate({"prompts": [[1, 2]]})
    assert ids.each_prompt == (GenerateInput(token_ids=(1, 2)),)
    assert given.each_prompt == (given,)
