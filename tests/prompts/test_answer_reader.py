"""A whole answer in its parts: reasoning, calls with their ids, and the rest."""

from typing import Any

import pytest

from headrace.prompts.answer_reader import (
    AnswerReader,
    ReadAnswer,
    ReasoningReader,
    read_answer,
    reader_for,
    turn_reader,
)
from headrace.prompts.tool_calls import CallPiece, ContentPiece, call_id
from headrace.store.payloads.conversation import FunctionCall, ToolCall
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.tasks.generate import GenerateInput, GeneratePayload, ToolStyle
from headrace.store.tasks.turn_form import TurnForm

THINK = ReasoningFormat(opening="<think>", closing="</think>")
CALL = '{"name": "add", "arguments": {"a": 1}}'


def payload(
    *, style: ToolStyle | None = None, reasoning: ReasoningFormat | None = None, **more: Any
) -> GeneratePayload:
    tools = {} if style is None else {"tools": [{"function": {"name": "add"}}]}
    source = {"messages": [{"role": "user", "content": "hi"}], **tools, **more}
    return GeneratePayload(
        input=GenerateInput.model_validate(source), sampling=Sampling(), tool_style=style, reasoning=reasoning
    )


def called(index: int, arguments: str = '{"a": 1}') -> ToolCall:
    return ToolCall(id=call_id("job", index), function=FunctionCall(name="add", arguments=arguments))


@pytest.mark.parametrize(
    ("asked", "text", "answer"),
    [
        (payload(), "<think>a</think>b", ReadAnswer("<think>a</think>b")),
        (payload(reasoning=THINK), "<think>a</think>b", ReadAnswer("b", (), "a")),
        (payload(reasoning=THINK), "b", ReadAnswer("b", (), None)),
        (payload(reasoning=THINK), "<think>a</think>", ReadAnswer("", (), "a")),
        (payload(style=ToolStyle.JSON), "", ReadAnswer("")),
        (payload(style=ToolStyle.JSON), CALL, ReadAnswer(None, (called(0),))),
        (payload(style=ToolStyle.JSON), f"So\n{CALL}\n{CALL}", ReadAnswer("So", (called(0), called(1)))),
        (
            payload(style=ToolStyle.JSON, parallel_tool_calls=False),
            f"{CALL}\n{CALL}",
            ReadAnswer(None, (called(0),)),
        ),
        (
            payload(style=ToolStyle.JSON, parallel_tool_calls=True),
            f"{CALL}{CALL}",
            ReadAnswer(None, (called(0), called(1))),
        ),
        (
            payload(style=ToolStyle.JSON, reasoning=THINK),
            f"<think>{CALL}</think>{CALL}",
            ReadAnswer(None, (called(0),), CALL),
        ),
        # With `none` no function may be called.
        (payload(style=ToolStyle.JSON, tool_choice="none"), CALL, ReadAnswer(CALL)),
    ],
)
def test_an_answer_has_its_parts(asked: GeneratePayload, text: str, answer: ReadAnswer) -> None:
    assert read_answer(asked, "job", text, is_cut=False) == answer


def test_the_beginning_of_a_call_is_an_answer_unless_it_was_cut_off() -> None:
    asked = payload(style=ToolStyle.JSON)
    assert read_answer(asked, "job", CALL[:20], is_cut=False) == ReadAnswer(CALL[:20])
    assert read_answer(asked, "job", CALL[:20], is_cut=True) == ReadAnswer("")


def test_without_reasoning_the_answer_begins_at_once() -> None:
    assert (reader_for(payload()), turn_reader(None, FORM, None)) == (None, None)
    reader = reader_for(payload(style=ToolStyle.JSON))
    assert reader is not None
    assert reader.answer_at == 0
    thinking = AnswerReader(ReasoningReader(THINK), None)
    assert (thinking.answer_at, thinking.add("<think>é</think>b"), thinking.answer_at) == (
        None,
        [*ReasoningReader(THINK).add("<think>é</think>b")[:1], ContentPiece("b")],
        17,
    )


FORM = TurnForm(functions=("add",), left=1, most=1)


def test_a_turn_reads_calls_while_some_are_left() -> None:
    reader = turn_reader(ToolStyle.JSON, FORM, None)
    assert reader is not None
    assert [*reader.add(f"{CALL}\n{CALL}"), *reader.finish()] == [
        CallPiece(0, "add", ""),
        CallPiece(0, None, '{"a": 1}'),
    ]
    done = turn_reader(ToolStyle.JSON, FORM.after(1), THINK)
    assert done is not None
    read = [*done.add(f"<think>a</think>{CALL}"), *done.finish()]
    assert [piece for piece in read if isinstance(piece, CallPiece)] == []
    assert ContentPiece(CALL) in read
    assert turn_reader(ToolStyle.JSON, FORM.after(1), None) is None
