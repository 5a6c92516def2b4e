"""Parsing of tool calls, independent of how the text is split."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.prompts.tool_calls import (
    CallPiece,
    ContentPiece,
    Reading,
    ToolCallReader,
    WrittenCall,
    call_id,
    choice_name,
    merged,
)
from headrace.store.tasks.generate import ToolStyle

HERMES, LLAMA3, JSON = ToolStyle
NAMES = ("turn", "get_weather")


def read(style: ToolStyle, pieces: Iterable[str], most: int | None = None) -> Reading:
    reader = ToolCallReader(style, NAMES, most)
    told = [piece for text in pieces for piece in reader.add(text)]
    return merged([*told, *reader.finish()])


def calls(*arguments: str) -> tuple[WrittenCall, ...]:
    return tuple(WrittenCall("turn", text) for text in arguments)


CALLS: list[tuple[ToolStyle, str, Reading]] = [
    (HERMES, '<tool_call>\n{"name": "turn", "arguments": {"by": 1}}\n</tool_call>', Reading("", calls('{"by": 1}'))),
    (
        HERMES,
        'Now.\n\n<tool_call>{"name":"turn","arguments":{}}</tool_call>\n<tool_call>{"name":"turn","arguments":{"a":[]}}'
        "</tool_call>\n",
        Reading("Now.", calls("{}", '{"a":[]}')),
    ),
    (HERMES, '<tool_call>\n{ "arguments": {"by": 1}, "name": "turn"}\n</tool_call>', Reading("", calls('{"by": 1}'))),
    (HERMES, '<tool_call>{"name": "turn"}</tool_call>', Reading("", calls("{}"))),
    (HERMES, 'a<tool_call>{"name":"turn","arguments":{}}</tool_call>b', Reading("a\nb", calls("{}"))),
    # Tags and braces inside a string are the string's.
    (
        HERMES,
        '<tool_call>{"name":"turn","arguments":{"t":"</tool_call>}\\"{"}}</tool_call>',
        Reading("", calls('{"t":"</tool_call>}\\"{"}')),
    ),
    # The outer brace or the closing tag was forgotten.
    (HERMES, '<tool_call>{"name":"turn","arguments":{"a":1}</tool_call> z', Reading("z", calls('{"a":1}'))),
    (HERMES, '<tool_call>{"name":"turn","arguments":{"a":1}}', Reading("", calls('{"a":1}'))),
    # Broken or cut behind the beginning of its arguments, it is a call all the same.
    (HERMES, '<tool_call>{"name":"turn","arguments":{"a": </tool_call>', Reading("", calls('{"a": '))),
    (HERMES, '<tool_call>{"name":"turn","arguments":{"a": "x\\', Reading("", calls('{"a": "x\\'))),
    (LLAMA3, '{"name": "turn", "parameters": {"by": 1}}', Reading("", calls('{"by": 1}'))),
    (LLAMA3, '<|python_tag|>{"type": "function", "name": "turn", "parameters": {}}', Reading("", calls("{}"))),
    (
        LLAMA3,
        '{"name": "turn", "parameters": {"a": 1}}; {"name": "turn", "parameters": {}}',
        Reading("", calls('{"a": 1}', "{}")),
    ),
    (JSON, 'So:\n{"name": "turn", "arguments": {"by": 1}}\n', Reading("So:", calls('{"by": 1}'))),
    (
        JSON,
        '{"name": "turn", "arguments": {}}\n{\n "name": "turn",\n "arguments": {"a": {"b": {}}}\n}\nDone.',
        Reading("Done.", calls("{}", '{"a": {"b": {}}}')),
    ),
    (JSON, '{"name": "turn", "arguments": {}, "id": {"x": "}"}}!', Reading("!", calls("{}"))),
    # Each style reads the other's word for arguments, and a bare call may be separated by a comma.
    (HERMES, '<tool_call>{"name": "turn", "parameters": {"a": 1}}</tool_call>', Reading("", calls('{"a": 1}'))),
    (LLAMA3, '{"name": "turn", "arguments": {"a": 1}}', Reading("", calls('{"a": 1}'))),
    (
        JSON,
        '{"name": "turn", "arguments": {}}, {"name": "turn", "arguments": {"a": 1}}',
        Reading("", calls("{}", '{"a": 1}')),
    ),
    (HERMES, 'a <tool_call>{"name":"turn","arguments":{}}</tool_call>, b', Reading("a\n, b", calls("{}"))),
    (LLAMA3, 'Now <|python_tag|>{"name": "turn", "parameters": {}}', Reading("Now", calls("{}"))),
]

CONTENT: list[tuple[ToolStyle, str]] = [
    (HERMES, " Hello \n"),
    (HERMES, '{"name": "turn", "arguments": {}}'),
    (HERMES, '<tool_call>{"name": "fly", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "turn", "arguments": "by 1"}</tool_call>'),
    (HERMES, "<tool_call>{'name': 'turn'}</tool_call>"),
    (HERMES, '<tool_call>{"arguments": {"a": }, "name": "turn"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "turn", "argum'),
    (HERMES, "a < b <tool_cal"),
    (HERMES, ""),
    (LLAMA3, 'I say {"name": "turn", "parameters": {}}'),
    (LLAMA3, '{"name": "turn"}'),
    (LLAMA3, "<|python_tag|>print(1)"),
    (JSON, '{"city": "Oslo"}\n[{"a": {"name": "turn"}}]'),
    (JSON, '{"name": "turned", "arguments": {}}'),
    (JSON, '{"type": "object", "name": "turn", "arguments": {}}'),
    (JSON, '{"name": "turn" "arguments": {}}'),
    (JSON, '{{"name": "turn", "arguments": {}}}'),
    (JSON, '{"type": "method", "name": "turn", "arguments": {}}'),
    (JSON, '{"name": "turn", "arguments": [{}]}'),
    (JSON, '{"name": "turn", "input": {}}'),
    (LLAMA3, '<tool_call>{"name": "fly", "arguments": {}}</tool_call>'),
    (JSON, '<|python_tag|>x {"name": "turn", "parameters": {}}'),
]


@pytest.mark.parametrize(("style", "text", "expected"), CALLS)
def test_calls_are_read_whole_and_letter_by_letter(style: ToolStyle, text: str, expected: Reading) -> None:
    assert read(style, [text]) == expected
    assert read(style, text) == expected


@pytest.mark.parametrize(("style", "text"), CONTENT)
def test_what_is_no_call_stays_content_to_the_letter(style: ToolStyle, text: str) -> None:
    assert read(style, [text]) == Reading(text, ())
    assert read(style, text) == Reading(text, ())


@pytest.mark.parametrize(
    ("style", "text", "content"),
    [
        (HERMES, 'Now.\n<tool_call>\n{"name": "turn", "argum', "Now."),
        (HERMES, "Now. <tool_c", "Now. "),
        (HERMES, "Now. <t", "Now. "),
        (HERMES, "<tool_call>", ""),
        (LLAMA3, 'Now.\n{"name": "turn", "param', "Now."),
        (JSON, '{"name": "tu', ""),
        (JSON, '{"arguments": {"by": 1}, "name": "tu', ""),
        # These are no beginnings of calls.
        (HERMES, "a <", "a <"),
        (HERMES, '<tool_call>{"name": "fly", "argum', '<tool_call>{"name": "fly", "argum'),
        (JSON, '{"na', '{"na'),
        (JSON, '{"name": "fly', '{"name": "fly'),
    ],
)
def test_the_beginning_of_a_call_that_was_cut_off_is_dropped(style: ToolStyle, text: str, content: str) -> None:
    for pieces in ([text], text):
        reader = ToolCallReader(style, NAMES)
        told = [piece for each in pieces for piece in reader.add(each)]
        assert merged([*told, *reader.finish(is_cut=True)]) == Reading(content, ())
    assert read(style, [text]) == Reading(text, ())


def test_the_bound_drops_further_calls() -> None:
    text = '{"name": "turn", "arguments": {"a": 1}}\n{"name": "turn", "arguments": {}}\nDone.'
    assert read(JSON, [text], most=1) == Reading("Done.", calls('{"a": 1}'))


_FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        '{"name": "turn", "arguments": ',
        '{"name":"turn","parameters":',
    ),
    *('{"arguments": {"a": 1}, "name": "turn"}', '{"type": "function", "name": "turn", "arguments": {}}'),
    *('{"a": "}"}', '"name"', '{"name": "turn"', "{", "}", "[", "]", '"', "\\", "\n", " ", ";", ",", "<", "<tool", "é"),
]
Cut = st.lists(st.integers(0, 120), max_size=8).map(sorted)


@given(style=st.sampled_from(ToolStyle), fragments=st.lists(st.sampled_from(_FRAGMENTS), max_size=12), cuts=Cut)
def test_however_a_text_is_cut_the_reading_is_the_same(style: ToolStyle, fragments: list[str], cuts: list[int]) -> None:
    text = "".join(fragments)
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read(style, [text])
    assert read(style, pieces) == whole
    assert whole.calls or whole.content == text


def test_nothing_that_may_become_a_call_is_given_out_and_the_rest_at_once() -> None:
    reader = ToolCallReader(HERMES, NAMES)
    assert reader.add("Let me see.") == [ContentPiece("Let me see.")]
    assert reader.add("\n<to") == []
    assert reader.add("ad>") == [ContentPiece("\n<toad>")]
    assert reader.add('\n<tool_call>{"name": "turn", "arg') == []
    assert reader.add('uments": {"by"') == [CallPiece(0, "turn", ""), CallPiece(0, None, '{"by"')]
    assert reader.add(": 1") == [CallPiece(0, None, ": 1")]
    assert reader.add("}}</tool_call>\n") == [CallPiece(0, None, "}")]
    assert reader.finish() == []


def test_content_full_of_braces_is_one_piece() -> None:
    reader = ToolCallReader(JSON, NAMES)
    assert reader.add('if (a) {b} else {c}\n{"d": 1}') == [ContentPiece('if (a) {b} else {c}\n{"d": 1}')]


def test_a_text_of_false_beginnings_is_read_in_a_moment() -> None:
    text = '{"arguments": \n' * 5_000 + '{"arguments": {\n' * 15_000
    assert read(JSON, [text]) == Reading(text, ())


def test_ids_are_the_same_for_the_same_job_and_different_for_others() -> None:
    ids = {call_id(job_id, index) for job_id in ("job_1", "job_2") for index in range(3)}
    assert len(ids) == 6
    assert call_id("job_1", 2) in ids
    # Rows and callers have these: the next release makes the same ones.
    assert call_id("job_1", 2) == "call_cfe3a9d2f2d4ae433e3c647d"
    assert [choice_name("job_1", choice) for choice in range(3)] == ["job_1", "job_1.1", "job_1.2"]
