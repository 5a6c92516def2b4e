"""What is left out of an input that is too long, by each strategy."""

from typing import Any

import pytest

from headrace.prompts.tasks.generate import build_prompt
from headrace.prompts.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from headrace.prompts.truncation import truncate
from headrace.store.payloads.conversation import ChatMessage, FunctionCall, Role, ToolCall, check_tool_results
from headrace.store.payloads.prompt_reference import TemplatePlace
from headrace.store.payloads.sampling_params import Truncated, Truncation
from headrace.store.tasks.generate import GenerateInput

SAID = [
    ("system", "be brief"),
    ("user", "one"),
    ("assistant", "1"),
    ("user", "two"),
    ("assistant", "2"),
    ("user", "three"),
]
CHARS = "abcdefghij"


def chat(said: list[tuple[str, str]]) -> GenerateInput:
    return GenerateInput(messages=tuple(ChatMessage(role=Role(role), content=text) for role, text in said))


def size(source: GenerateInput, tokenizer: Tokenizer | None = None) -> int:
    return len(build_prompt(tokenizer or ByteTokenizer(), source))


def cut(source: GenerateInput, how: Truncation, room: int) -> tuple[GenerateInput, Truncated | None]:
    return truncate(source, how, room, size)


@pytest.mark.parametrize(
    ("how", "num_turns", "kept"),
    [
        (Truncation.OLDEST_TURNS, 1, SAID[:1] + SAID[3:]),
        (Truncation.AUTO, 2, SAID[:1] + SAID[5:]),
        (Truncation.LEFT, 2, SAID[:1] + SAID[5:]),
        (Truncation.MIDDLE, 1, SAID[:3] + SAID[5:]),
        (Truncation.MIDDLE, 2, SAID[:1] + SAID[5:]),
    ],
)
def test_no_more_turns_are_left_out_than_it_takes(how: Truncation, num_turns: int, kept: list[tuple[str, str]]) -> None:
    room, total = size(chat(kept)), size(chat(SAID))
    told = Truncated(strategy=how, tokens=total - room, turns=num_turns)
    assert cut(chat(SAID), how, room) == (chat(kept), told)
    assert cut(chat(SAID), how, total) == (chat(SAID), None)


@pytest.mark.parametrize(("how", "left"), [(Truncation.LEFT, "fghij"), (Truncation.MIDDLE, "abcij")])
def test_at_last_the_last_user_message_is_cut(how: Truncation, left: str) -> None:
    source = chat([*SAID[:1], *SAID[1:3], ("user", CHARS), ("assistant", "go on")])
    wanted = chat([*SAID[:1], ("user", left), ("assistant", "go on")])
    shorter, told = cut(source, how, size(wanted))
    assert shorter == wanted
    assert told == Truncated(strategy=how, tokens=size(source) - size(wanted), turns=1)


@pytest.mark.parametrize("how", [Truncation.OLDEST_TURNS, Truncation.LEFT, Truncation.MIDDLE])
def test_a_result_is_never_without_its_call(how: Truncation) -> None:
    call = ToolCall(id="c", function=FunctionCall(name="f", arguments="{}"))
    messages: list[ChatMessage] = []
    for number in range(4):
        messages += [
            ChatMessage(role=Role.USER, content=f"ask {number} {CHARS}"),
            ChatMessage(role=Role.ASSISTANT, tool_calls=(call,)),
            ChatMessage(role=Role.TOOL, tool_call_id="c", content="result"),
            ChatMessage(role=Role.ASSISTANT, content="done"),
        ]
    source = GenerateInput(messages=tuple(messages[:-1]))
    for room in range(20, size(source), 7):
        shorter, _ = cut(source, how, room)
        check_tool_results(shorter.messages or ())
        assert (shorter.messages or ())[-2:] == tuple(messages[-3:-1])


@pytest.mark.parametrize(("how", "left"), [(Truncation.LEFT, "hij"), (Truncation.MIDDLE, "abj")])
def test_raw_prompts_are_cut_to_the_token(how: Truncation, left: str) -> None:
    told = Truncated(strategy=how, tokens=7)
    assert cut(GenerateInput(prompt=CHARS), how, 3) == (GenerateInput(prompt=left), told)
    ids = tuple(CHARS.encode())
    assert cut(GenerateInput(token_ids=ids), how, 3) == (GenerateInput(token_ids=tuple(left.encode())), told)
    prompts = cut(GenerateInput(prompts=("ok", CHARS)), how, 3)
    assert prompts == (GenerateInput(prompts=("ok", left)), told)


@pytest.mark.parametrize("how", [Truncation.LEFT, Truncation.MIDDLE])
def test_a_long_text_of_a_real_model_fills_the_room(how: Truncation, smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    text = " ".join(f"line {number}: größer <|im_start|> 日本" for number in range(3000))
    shorter, told = truncate(GenerateInput(prompt=text), how, 1000, lambda one: size(one, tokenizer))
    assert 980 <= size(shorter, tokenizer) <= 1000
    assert told is not None
    assert told.tokens == size(GenerateInput(prompt=text), tokenizer) - size(shorter, tokenizer)


@pytest.mark.parametrize("source", [chat(SAID[:2]), chat([("system", "only this")]), GenerateInput(prompt="a prompt")])
def test_what_cannot_be_shorter_stays_as_it_is(source: GenerateInput) -> None:
    assert cut(source, Truncation.OLDEST_TURNS, 5) == (source, None)
    assert cut(source, Truncation.LEFT, 0) == (source, None)


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (Truncation.OLDEST_TURNS, [*SAID[:3], SAID[5]]),
        (Truncation.LEFT, [*SAID[:3], SAID[5]]),
        # The only turn goes, because the message of the template behind it stays.
        (Truncation.MIDDLE, [*SAID[:3], SAID[5]]),
    ],
)
def test_the_messages_of_a_template_stay_and_no_text_is_cut(how: Truncation, kept: list[tuple[str, str]]) -> None:
    place, source, least = TemplatePlace(3, 1), chat(SAID), chat(kept)
    for room in (size(least), size(least) - 1, 1):
        shorter, told = truncate(source, how, room, size, place)
        assert (shorter, told) == (
            least,
            Truncated(strategy=how, tokens=size(source) - size(least), turns=1),
        )
    prompt = GenerateInput(prompt=CHARS)
    assert truncate(prompt, how, 3, size, TemplatePlace(0)) == (prompt, None)


def test_the_middle_keeps_the_first_turn_as_long_as_it_fits() -> None:
    turns = [("user", f"{number}") for number in range(6)]
    for num_left in range(5):
        kept = [*turns[:1], *turns[1 + num_left :]]
        assert cut(chat(turns), Truncation.MIDDLE, size(chat(kept)))[0] == chat(kept)
    assert cut(chat(turns), Truncation.MIDDLE, size(chat(turns[-1:])))[0] == chat(turns[-1:])


def test_reports_add_up() -> None:
    first: Any = Truncated(strategy=Truncation.LEFT, tokens=3, turns=1)
    assert Truncated(strategy=Truncation.LEFT, tokens=2).plus(first).as_header() == "left; tokens=5; turns=1"
