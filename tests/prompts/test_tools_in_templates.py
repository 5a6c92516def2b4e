"""Tools, calls and results in a model's own template, and in one that knows none; which of both a template is."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer

from headrace.prompts.chat_template import ChatTemplate
from headrace.prompts.tokenizer import load_tokenizer
from headrace.prompts.tool_calls import HERMES_TAGS
from headrace.store.errors import InvalidRequest
from headrace.store.tasks.generate import GenerateInput, ToolStyle
from tests.prompts.tool_templates import ALTERNATING, HERMES, LLAMA3, SILENT

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
SHOWN: list[dict[str, Any]] = [
    {"type": "function", "function": {key: value for key, value in TOOLS[0]["function"].items() if key != "strict"}},  # type: ignore[attr-defined]
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


ROUND: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [call("a", "get_weather", '{"city": "Åre"}'), call("b", "now", "")],
    },
    {"role": "tool", "tool_call_id": "b", "content": "noon"},
    {"role": "tool", "tool_call_id": "a", "content": "snow"},
]


def asked(messages: list[dict[str, Any]], **fields: Any) -> GenerateInput:
    return GenerateInput.model_validate({"messages": messages, "tools": TOOLS, **fields})


def render(source: str, messages: list[dict[str, Any]] = ROUND) -> str:
    read = asked(messages)
    return ChatTemplate(source, {"bos_token": "<s>"}).render(read.messages or (), read.callable_tools)


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (HERMES, ToolStyle.HERMES),
        (LLAMA3, ToolStyle.LLAMA3),
        (SILENT, ToolStyle.JSON),
        (ALTERNATING, ToolStyle.JSON),
        # Shows tools but no calls; shows calls but no tools; an unknown call format.
        ("{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}", ToolStyle.JSON),
        (HERMES.replace("{%- if tools %}", "{%- if false %}"), ToolStyle.JSON),
        (HERMES.replace('{"name": "', "<function=").replace('", "arguments": ', ">"), ToolStyle.JSON),
        (LLAMA3.replace('"parameters": ', '"arguments": '), ToolStyle.JSON),
    ],
)
def test_the_style_is_found_by_letting_the_template_write_a_call(source: str, style: ToolStyle) -> None:
    assert ChatTemplate(source, {"bos_token": "<s>"}).tool_style is style


def test_a_template_gets_the_names_of_speakers_and_the_ids_of_results() -> None:
    source = "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.tool_call_id }};{% endfor %}"
    named = [ROUND[0] | {"name": "ann"}, *ROUND[1:3], ROUND[3] | {"name": "snow_report"}]
    shown = render(source + HERMES, named)
    assert shown.startswith("user ann ;assistant  ;tool now b;tool snow_report a;")


@pytest.mark.parametrize("source", [HERMES, LLAMA3], ids=["hermes", "llama3"])
def test_a_template_gets_what_the_reference_gives_it(smollm2: Path, source: str) -> None:
    reference = AutoTokenizer.from_pretrained(smollm2)
    one = [
        ROUND[0],
        {"role": "assistant", "content": "", "tool_calls": [call("a", "get_weather", '{"city": "Åre"}')]},
        ROUND[3],
    ]
    plain = json.loads(json.dumps(one))
    plain[1]["tool_calls"][0]["function"]["arguments"] = {"city": "Åre"}
    plain[2]["name"] = "get_weather"
    expected = reference.apply_chat_template(
        plain, tools=SHOWN, chat_template=source, add_generation_prompt=True, tokenize=False, bos_token="<s>"
    )
    assert render(source, one) == expected


def test_several_calls_stand_in_one_turn_or_where_a_template_allows_one_in_turns_of_their_own() -> None:
    together = render(HERMES)
    assert together.index("Åre") < together.index('"now"', together.index("Åre")) < together.index("noon")
    apart = render(LLAMA3)
    places = [apart.index(said, apart.index("Weather?")) for said in ('"city": "Åre"', "snow", '"name": "now"', "noon")]
    assert places == sorted(places)
    assert '"parameters": {}' in apart
    told = render(LLAMA3.replace("{%- set call =", "{{- message.content }}{%- set call ="))
    assert told.count("I look.") == 1, "what stands before the calls is said before the first"


def test_without_tools_in_the_template_everything_is_said_in_text() -> None:
    assert render(SILENT) == (
        "<system>You can call functions. These are the functions, one JSON object a line:\n"
        f"{json.dumps(SHOWN[0]['function'])}\n"
        f"{json.dumps(SHOWN[1]['function'])}\n\n"
        "To call functions, answer with nothing but the calls, each a JSON object on a line of its own:\n"
        '{"name": <name of the function>, "arguments": <object with its arguments>}\n'
        "You are given their results then. If no function is of use, answer in your own words.\n"
        "<user>Weather?\n"
        '<assistant>I look.\n{"name": "get_weather", "arguments": {"city": "Åre"}}\n{"name": "now", "arguments": {}}\n'
        "<user>Result of now:\nnoon\n\nResult of get_weather:\nsnow\n\n"
        "Now answer the question in words, or call another function.\n"
    )


def test_the_functions_follow_what_the_system_turn_says_or_stand_in_the_first_turn() -> None:
    told = render(SILENT, [{"role": "system", "content": "Be brief."}, *ROUND])
    assert told.startswith("<system>Be brief.\n\nYou can call functions.")
    assert render(ALTERNATING).startswith("<user>Weather?\n\nYou can call functions.")


def test_tools_that_may_not_be_called_are_not_shown_and_past_calls_still_are(smollm2_files: dict[str, bytes]) -> None:
    read = asked(ROUND, tool_choice="none")
    text = load_tokenizer(smollm2_files).render(read.messages or (), read.callable_tools)
    assert "You can call" not in text
    assert '{"name": "now", "arguments": {}}' in text


def test_arguments_that_are_no_object_reach_the_template_as_they_are() -> None:
    broken = [ROUND[0], {**ROUND[1], "tool_calls": [call("a", "now", '{"at": ')]}, ROUND[3]]
    assert r'"{\"at\": "' in render(HERMES, broken)


def test_two_calls_of_one_id_in_different_turns_have_results_of_their_own_names() -> None:
    first = {"role": "assistant", "tool_calls": [call("a", "now", "{}")]}
    second = {"role": "assistant", "tool_calls": [call("a", "get_weather", "{}")]}
    text = render(SILENT, [ROUND[0], first, ROUND[3], second, ROUND[3]])
    assert text.index("Result of now") < text.index("Result of get_weather")


def test_a_template_that_refuses_says_so() -> None:
    with pytest.raises(InvalidRequest, match="roles alternate") as caught:
        render(ALTERNATING, [ROUND[0], ROUND[0]])
    assert caught.value.param == "input.messages"


@pytest.mark.parametrize(("special", "style"), [(False, ToolStyle.HERMES), (True, ToolStyle.JSON)])
def test_tags_that_no_text_shows_are_not_waited_for(
    smollm2_files: dict[str, bytes], special: bool, style: ToolStyle
) -> None:
    backend = tokenizers.Tokenizer.from_str(smollm2_files["tokenizer.json"].decode())
    backend.add_tokens([tokenizers.AddedToken(tag, special=special, normalized=False) for tag in HERMES_TAGS])
    files = {"tokenizer.json": backend.to_str().encode(), "chat_template.jinja": HERMES.encode()}
    tokenizer = load_tokenizer(files)
    assert tokenizer.tool_style is style
    read = asked(ROUND)
    assert "<tools>" in tokenizer.render(read.messages or (), read.callable_tools)


def test_a_template_sees_that_there_are_no_tools_and_writes_json_as_it_says() -> None:
    message = asked(ROUND[:1]).messages or ()
    source = "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}"
    assert ChatTemplate(source, {}).render(message) == "True True True"
    value = {"b": "<é>", "a": [1]}
    written = (
        "{{ x | tojson }} {{ x | tojson(sort_keys=true, separators=(',', ':')) }} {{ x | tojson(ensure_ascii=true) }}"
    )
    assert ChatTemplate(written, {}).render(message, variables={"x": value}) == (
        '{"b": "<é>", "a": [1]} {"a":[1],"b":"<é>"} {"b": "<\\u00e9>", "a": [1]}'
    )
