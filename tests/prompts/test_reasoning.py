"""Reasoning: what templates know of it, and how it is read in the text of an answer."""

import json
import random
from typing import Any

import pytest

from headrace.prompts.answer_reader import ReasoningPiece, ReasoningReader, reader_for
from headrace.prompts.chat_template import ChatTemplate
from headrace.prompts.tokenizer import load_tokenizer
from headrace.prompts.tool_calls import ContentPiece
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.reasoning import ReasoningEffort, ReasoningFormat, ReasoningOptions
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.tasks.generate import GenerateInput, GeneratePayload, ToolStyle
from tests.prompts.reasoning_templates import ALWAYS, LEVELS, SWITCHED, SWITCHED_ON
from tests.prompts.tool_templates import HERMES
from tests.refusals import Naming

THINK = ReasoningFormat(opening="<think>", closing="</think>")
ASKED = (ChatMessage(role=Role.USER, content="Why?"),)


def rendered(template: str, **reasoning: Any) -> str:
    return ChatTemplate(template, {}).render(ASKED, reasoning=ReasoningOptions(**reasoning) if reasoning else None)


@pytest.mark.parametrize(
    ("template", "efforts", "is_default"),
    [
        (SWITCHED, ["none", "minimal", "low", "medium", "high", "xhigh"], True),
        (SWITCHED_ON, ["none", "minimal", "low", "medium", "high", "xhigh"], False),
        (LEVELS, ["minimal", "low", "medium", "high"], True),
        (ALWAYS, ["minimal", "low", "medium", "high", "xhigh"], True),
    ],
)
def test_a_template_says_what_a_request_can_change(template: str, efforts: list[str], is_default: bool) -> None:
    support = ChatTemplate(template, {}).reasoning
    assert support is not None
    assert (list(support.efforts), support.is_default) == (efforts, is_default)


LEVELS_WITH_NONE = (
    "{{ 'effort: ' + (reasoning_effort or 'medium') }}{{ '[THINK]' }}"
    "{% if reasoning_effort == 'none' %}{{ '[/THINK]\n' }}{% endif %}"
)
"""Levels, one of which switches the reasoning off."""


SUPPORTED = {
    "switched": SWITCHED,
    "switched on": SWITCHED_ON,
    "levels": LEVELS,
    "always": ALWAYS,
    "levels with none": LEVELS_WITH_NONE,
    "seed": "{# </seed:think> #}",
    "channels of another kind": "{# <|channel|> #}",
    "none": HERMES,
}


def test_marks_switch_and_levels_are_found_by_rendering() -> None:
    found = {name: ChatTemplate(source, {}).reasoning for name, source in SUPPORTED.items()}
    assert {name: support and support.format.opening for name, support in found.items()} == {
        "switched": "<think>",
        "switched on": "<think>",
        "levels": "<|channel|>analysis<|message|>",
        "always": "<think>",
        "levels with none": "[THINK]",
        "seed": "<seed:think>",
        "channels of another kind": None,
        "none": None,
    }
    assert {name: (one.on, one.off, one.levels, one.is_controlled) for name, one in found.items() if one} == {
        "switched": ({"enable_thinking": True}, {"enable_thinking": False}, (), True),
        "switched on": ({"thinking": True}, {"thinking": False}, (), True),
        "levels": ({}, None, ("low", "medium", "high"), True),
        "always": ({}, None, (), False),
        "levels with none": ({}, {"reasoning_effort": "none"}, ("low", "medium", "high"), True),
        "seed": ({}, None, (), False),
    }


BOTH = LEVELS_WITH_NONE + "{% if enable_thinking %}!{% endif %}"


@pytest.mark.parametrize(
    ("template", "variables"),
    [
        (ALWAYS, [{}, None, {}, {}, {}, {}, {}]),
        (SWITCHED, [{"enable_thinking": True}, *[{"enable_thinking": False}] * 2, *[{"enable_thinking": True}] * 4]),
        (
            LEVELS_WITH_NONE,
            [{}, *[{"reasoning_effort": name} for name in ("none", "none", "low", "medium", "high")], None],
        ),
        (LEVELS, [{}, None, *[{"reasoning_effort": name} for name in ("low", "low", "medium", "high")], None]),
        (
            BOTH,
            [
                {"enable_thinking": True},
                *[{"enable_thinking": False}] * 2,
                *[{"enable_thinking": True, "reasoning_effort": name} for name in ("low", "medium", "high")],
                None,
            ],
        ),
    ],
)
def test_each_effort_is_said_in_the_variables_of_the_template(
    template: str, variables: list[dict[str, Any] | None]
) -> None:
    """Without an effort, then each of them; None is refused, and optional it is the nearest one."""
    support = ChatTemplate(template, {}).reasoning
    assert support is not None
    assert support.variables(None) == {}
    efforts = (None, *ReasoningEffort)
    for effort, wanted in zip(efforts, variables, strict=True):
        if wanted is not None:
            assert support.variables(ReasoningOptions(effort=effort)) == wanted
            continue
        with pytest.raises(InvalidRequest):
            support.variables(ReasoningOptions(effort=effort))
        nearest = variables[2] if effort is ReasoningEffort.NONE else variables[5]
        assert support.variables(ReasoningOptions(effort=effort, optional=True)) == nearest


def test_an_effort_is_given_to_the_template_in_its_own_variables() -> None:
    assert rendered(SWITCHED, effort="none") == rendered(SWITCHED, effort="minimal") != rendered(SWITCHED)
    assert rendered(SWITCHED, effort="none").endswith("</think>\n\n")
    assert rendered(SWITCHED_ON, max_tokens=9).endswith("<think>\n")
    assert rendered(SWITCHED_ON).endswith("</think>\n")
    assert "effort: high" in rendered(LEVELS, effort="high")
    assert "effort: low" in rendered(LEVELS, effort="minimal")


@pytest.mark.parametrize(
    ("template", "reasoning", "param", "said"),
    [
        (
            HERMES,
            {"effort": "medium"},
            "input.reasoning.effort",
            Naming("effort medium", "`none`"),
        ),
        (
            HERMES,
            {"max_tokens": 5},
            "input.reasoning.max_tokens",
            Naming("leave out `input.reasoning.max_tokens`"),
        ),
        (HERMES, {}, "input.reasoning", Naming("does not reason")),
        (LEVELS, {"effort": "none"}, "input.reasoning.effort", Naming("minimal, low, medium, high")),
        (LEVELS, {"effort": "xhigh"}, "input.reasoning.effort", Naming("minimal, low, medium, high")),
        (
            ALWAYS,
            {"effort": "none"},
            "input.reasoning.effort",
            Naming("minimal, low, medium, high, xhigh"),
        ),
    ],
)
def test_what_the_model_cannot_do_is_refused_unless_it_is_optional(
    template: str, reasoning: dict[str, Any], param: str, said: Naming
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ChatTemplate(template, {}).render(ASKED, reasoning=ReasoningOptions(**reasoning))
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    assert refused.value.message == said
    assert rendered(template, optional=True, **reasoning)
    assert rendered(LEVELS, effort="xhigh", optional=True) == rendered(LEVELS, effort="high")
    assert rendered(HERMES, effort="none") == rendered(HERMES, effort="minimal") == rendered(HERMES)


def test_where_a_template_has_no_levels_an_effort_is_a_share_of_the_answer() -> None:
    switched, levels = ChatTemplate(SWITCHED, {}).reasoning, ChatTemplate(LEVELS, {}).reasoning
    assert switched is not None
    assert levels is not None
    assert {effort: switched.budget(ReasoningOptions(effort=effort), 1000) for effort in ReasoningEffort} == {
        "none": None,
        "minimal": 100,
        "low": 200,
        "medium": 500,
        "high": 800,
        "xhigh": 950,
    }
    assert switched.budget(ReasoningOptions(effort=ReasoningEffort.MINIMAL), 9) == 1
    assert switched.budget(ReasoningOptions(effort=ReasoningEffort.HIGH, max_tokens=3), 1000) == 3
    assert (switched.budget(None, 1000), switched.budget(ReasoningOptions(), 1000)) == (None, None)
    assert levels.budget(ReasoningOptions.model_validate({"effort": "low"}), 1000) is None
    assert levels.budget(ReasoningOptions(max_tokens=7), 1000) == 7


def test_marks_that_are_no_tokens_are_ordinary_text(byte_fallback_files: dict[str, bytes]) -> None:
    config = json.dumps({"chat_template": SWITCHED}).encode()
    tokenizer = load_tokenizer(byte_fallback_files | {"tokenizer_config.json": config})
    assert tokenizer.reasoning is None
    with pytest.raises(InvalidRequest):
        tokenizer.render(ASKED, reasoning=ReasoningOptions(max_tokens=4))


def read(marks: ReasoningFormat, pieces: list[str], *, tools: bool = False) -> tuple[str, str]:
    tool = {"function": {"name": "add"}}
    source = {"messages": [{"role": "user", "content": "hi"}]} | ({"tools": [tool]} if tools else {})
    payload = GeneratePayload(
        input=GenerateInput.model_validate(source),
        sampling=Sampling(),
        tool_style=ToolStyle.HERMES if tools else None,
        reasoning=marks,
    )
    reader = reader_for(payload)
    assert reader is not None
    found = [piece for text in pieces for piece in reader.add(text)] + reader.finish(is_cut=True)
    reasoning = "".join(piece.text for piece in found if isinstance(piece, ReasoningPiece))
    return reasoning, "".join(piece.text for piece in found if isinstance(piece, ContentPiece))


HARMONY = ChatTemplate(LEVELS, {}).reasoning
assert HARMONY is not None
READ = [
    (THINK, "<think>\nWhy  so?\n\n</think>\n\nBecause.\n", ("Why  so?", "Because.\n")),
    (THINK, "\n<think>a</think>b<think>c</think>", ("a", "b<think>c</think>")),
    (THINK, " <thin ice", ("", " <thin ice")),
    (THINK, "<", ("", "<")),
    (THINK, "<think>\n\n</think>\n\nAt once", ("", "At once")),
    (THINK, "<think>cut </thi", ("cut", "")),
    (THINK, "<think>a <", ("a <", "")),
    (THINK, "<think>a < b </b ", ("a < b </b", "")),
    (THINK.model_copy(update={"is_open": True}), "\nso ü🦆</think>\nyes", ("so ü🦆", "yes")),
    (THINK.model_copy(update={"is_open": True}), "<think>so</think>yes", ("so", "yes")),
    (THINK.model_copy(update={"is_open": True}), "never ends", ("never ends", "")),
    (
        HARMONY.format,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4",
        ("hm", "4"),
    ),
    (HARMONY.format, "<|channel|>final<|message|>4", ("", "4")),
]


@pytest.mark.parametrize(("marks", "text", "expected"), READ)
def test_reasoning_and_answer_are_the_same_however_the_text_is_cut(
    marks: ReasoningFormat, text: str, expected: tuple[str, str]
) -> None:
    assert read(marks, [text]) == expected
    assert read(marks, list(text)) == expected
    draw = random.Random(text)
    for _ in range(20):
        cuts = sorted(draw.sample(range(len(text) + 1), min(4, len(text))))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(marks, pieces) == expected, pieces


@pytest.mark.parametrize(
    ("marks", "text", "at"),
    [
        (THINK, "\n<think>é</think>\n yes", 20),
        (THINK, "ü yes", 0),
        (THINK, " yes", 0),
        (THINK, "<think>é</think>\n", None),
        (THINK, "<think>\ud800</think>yes", 18),
        (THINK, "<thi", None),
        (THINK.model_copy(update={"is_open": True}), "é</think>yes", 10),
    ],
)
def test_the_place_of_the_answer_is_counted_in_bytes(marks: ReasoningFormat, text: str, at: int | None) -> None:
    for pieces in ([text], list(text)):
        reader = ReasoningReader(marks)
        for piece in pieces:
            reader.add(piece)
        assert reader.answer_at == at


def test_calls_are_looked_for_after_the_reasoning_only() -> None:
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert read(THINK, [f"<think>I could {call}</think>No."], tools=True) == (f"I could {call}", "No.")
    assert read(THINK, [f"<think>I must</think>\n{call}"], tools=True) == ("I must", "")


def test_earlier_reasoning_is_given_to_templates_that_keep_it() -> None:
    answer = ChatMessage(role=Role.ASSISTANT, content="4", reasoning_content="2 and 2")
    assert "<think>\n2 and 2\n</think>\n\n4" in ChatTemplate(SWITCHED, {}).render((*ASKED, answer, *ASKED))
    assert "2 and 2" not in ChatTemplate(HERMES, {}).render((*ASKED, answer, *ASKED))


def test_the_variables_of_a_request_stand_beside_those_of_its_reasoning() -> None:
    template = ChatTemplate(SWITCHED + "{{ style }}", {})
    off = template.render(ASKED, variables={"style": "x", "enable_thinking": False})
    assert off.endswith("</think>\n\nx")
    effort = ReasoningOptions(effort=ReasoningEffort.LOW)
    on = template.render(ASKED, variables={"style": "x", "enable_thinking": False}, reasoning=effort)
    assert on.endswith("assistant\nx"), "what a request says of reasoning counts"
