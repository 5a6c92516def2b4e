"""Every answer that the tool grammar allows parses as calls with valid arguments."""

import json
import random
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
import tokenizers
from pydantic import BaseModel, ConfigDict, Field

from headrace.prompts.answer_reader import reader_for
from headrace.prompts.grammar import Grammars
from headrace.prompts.tokenizer import load_tokenizer
from headrace.prompts.tool_calls import HERMES_TAGS, Reading, merged
from headrace.prompts.tool_grammar import with_tools
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import ToolChoiceMode
from headrace.store.payloads.sampling_params import GrammarKind, GrammarSpec, Sampling
from headrace.store.tasks.generate import AnswerShape, GenerateInput, GeneratePayload, ToolStyle
from tests.refusals import Naming


class _Unit(StrEnum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class _Weather(BaseModel):
    """Nested, with definitions, a choice, bounds and something optional."""

    model_config = ConfigDict(extra="forbid")

    class Place(BaseModel):
        model_config = ConfigDict(extra="forbid")

        city: Annotated[str, Field(max_length=5)]
        at: tuple[int, int] | None = None

    place: Place
    units: Annotated[list[_Unit], Field(max_length=2)]
    days: Annotated[int, Field(ge=1, le=7)] = 1
    mode: Literal["now", "later"]


class _Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


MODELS: dict[str, type[BaseModel]] = {"get_weather": _Weather, "stop": _Nothing}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": _Weather.model_json_schema()}},
    {"type": "function", "function": {"name": "stop"}},
]


class Babbler:
    """A model that generates any tokens that a grammar allows."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.tokenizer = load_tokenizer(files)
        (self._eos,) = self.tokenizer.eos_token_ids
        self.grammars = Grammars(
            files["tokenizer.json"],
            vocab_size=self.tokenizer.vocab_size,
            eos_token_ids=self.tokenizer.eos_token_ids,
        )

    def asked(self, style: ToolStyle, answer: GrammarSpec | None = None, **fields: Any) -> GeneratePayload:
        """The payload of a request with tools, if the model's style is this one."""
        self.tokenizer.tool_style = style
        body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **fields}
        free = GeneratePayload(input=GenerateInput.model_validate(body), sampling=Sampling(grammar=answer))
        return with_tools(free, self.tokenizer, self.grammars)

    def say(self, grammar: GrammarSpec, seed: int) -> str:
        chance = random.Random(seed)
        matcher = self.grammars.matcher(grammar.kind, grammar.text)
        said: list[int] = []
        while len(said) < 2_000:
            matcher.follow(said)
            allowed = _tokens_of(matcher.masks()[0])
            words = allowed - {self._eos}
            if not words or (words != allowed and chance.random() < 0.3):
                break
            said.append(chance.choice(sorted(words)))
        return self.tokenizer.decode(said)

    def accepts(self, grammar: GrammarSpec, text: str) -> bool:
        """True if the text is a whole answer."""
        matcher = self.grammars.matcher(grammar.kind, grammar.text)
        tokens = self.tokenizer.encode(text, add_special=False)
        for length, token in enumerate([*tokens, self._eos]):
            matcher.follow(tokens[:length])
            if token not in _tokens_of(matcher.masks()[0]):
                return False
        return True


def _tokens_of(mask: bytes) -> set[int]:
    return {8 * place + bit for place, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1}


@pytest.fixture(scope="module")
def plain(smollm2_files: dict[str, bytes]) -> Babbler:
    return Babbler(smollm2_files)


@pytest.fixture(scope="module")
def tagged(smollm2_files: dict[str, bytes]) -> Babbler:
    """Has each tag as a token of its own that is no special one, as Qwen has them."""
    backend = tokenizers.Tokenizer.from_str(smollm2_files["tokenizer.json"].decode())
    backend.add_tokens([tokenizers.AddedToken(tag, special=False, normalized=False) for tag in HERMES_TAGS])
    return Babbler({**smollm2_files, "tokenizer.json": backend.to_str().encode()})


@pytest.fixture(params=["plain", "tagged"])
def babbler(request: pytest.FixtureRequest, plain: Babbler, tagged: Babbler) -> Babbler:
    return plain if request.param == "plain" else tagged


def reading_of(asked: GeneratePayload, text: str, *, is_cut: bool = False) -> Reading:
    reader = reader_for(asked)
    assert reader is not None
    whole = merged([*reader.add(text), *reader.finish(is_cut=is_cut)])
    again = reader_for(asked)
    assert again is not None
    assert merged([*(piece for letter in text for piece in again.add(letter)), *again.finish(is_cut=is_cut)]) == whole
    return whole


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("style", ToolStyle)
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_answer_is_calls_that_validate_and_nothing_else(
    babbler: Babbler, style: ToolStyle, choice: Any
) -> None:
    asked = babbler.asked(style, tool_choice=choice, parallel_tool_calls=True)
    assert asked.sampling.grammar is not None
    numbers = set()
    for seed in range(6):
        reading = reading_of(asked, babbler.say(asked.sampling.grammar, seed))
        assert (reading.content, len(reading.calls) > 0) == ("", True)
        numbers.add(len(reading.calls))
        for call in reading.calls:
            MODELS[call.name].model_validate_json(call.arguments)
            assert choice != NAMED or call.name == "get_weather"
    assert (max(numbers) > 1) == (choice == "required" and style is not ToolStyle.LLAMA3)


def test_forced_calls_side_by_side_are_made_only_if_they_are_asked_for(plain: Babbler) -> None:
    one = '{"name": "stop", "arguments": {}}'
    for is_parallel, number, allowed in [
        *[(True, 8, True), (True, 9, False), (False, 1, True), (False, 2, False), (None, 1, True), (None, 2, False)],
    ]:
        grammar = plain.asked(ToolStyle.JSON, tool_choice="required", parallel_tool_calls=is_parallel).sampling.grammar
        assert grammar is not None
        assert plain.accepts(grammar, "\n".join([one] * number)) is allowed


def test_an_answer_is_free_unless_a_function_is_strict(babbler: Babbler) -> None:
    assert babbler.asked(ToolStyle.HERMES).sampling.grammar is None
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]  # type: ignore[dict-item]
    assert babbler.asked(ToolStyle.JSON, tools=strict).sampling.grammar is None
    grammar = babbler.asked(ToolStyle.HERMES, tools=strict).sampling.grammar
    assert grammar is not None
    good = '{"place": {"city": "Oslo"}, "units": [], "mode": "now"}'
    call = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
    assert babbler.accepts(grammar, "No <b>call</b> at all.")
    assert babbler.accepts(grammar, "Let me see. " + call.format("get_weather", good) + " Seen.")
    assert babbler.accepts(grammar, call.format("stop", '{"what": "ever"}'))
    assert not babbler.accepts(grammar, call.format("get_weather", "{}"))
    assert not babbler.accepts(grammar, call.format("get_weather", good) + " <tool_call> what?")


class _LikeACall(BaseModel):
    """An answer that could be mistaken for a call."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["stop", "get_weather"]
    arguments: _Nothing
    text: Annotated[str, Field(max_length=9)]


CALL = {
    ToolStyle.HERMES: '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    ToolStyle.LLAMA3: '{"name": "stop", "parameters": {}}',
    ToolStyle.JSON: '{"name": "stop", "arguments": {}}',
}


@pytest.mark.parametrize("style", ToolStyle)
def test_an_answer_in_its_form_and_a_call_are_told_apart_from_the_first_characters(
    babbler: Babbler, style: ToolStyle
) -> None:
    form = GrammarSpec(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(_LikeACall.model_json_schema()))
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]  # type: ignore[dict-item]
    asked = babbler.asked(style, form, tools=strict)
    grammar = asked.sampling.grammar
    assert grammar is not None
    answer = '{"name":"stop","arguments":{},"text":"<tool {"}'
    assert babbler.accepts(grammar, answer)
    assert reading_of(asked, answer) == Reading(answer, ())
    assert babbler.accepts(grammar, CALL[style])
    assert babbler.accepts(grammar, f"{CALL[style]}\n{CALL[style]}") is (style is not ToolStyle.LLAMA3)
    assert not babbler.accepts(grammar, "a")
    assert not babbler.accepts(grammar, f"{CALL[style]}\n{answer}")
    for seed in range(4):
        text = babbler.say(grammar, seed)
        reading = reading_of(asked, text)
        if reading.calls:
            assert reading.content == ""
        else:
            assert reading.content == text
            _LikeACall.model_validate_json(text)
    # Cut anywhere, neither is taken for the other.
    for end in range(len(answer)):
        assert reading_of(asked, answer[:end], is_cut=True).calls == ()
    for end in range(len(CALL[style])):
        assert reading_of(asked, CALL[style][:end], is_cut=True).content == ""


def test_another_form_of_the_answer_leaves_no_room_for_calls(plain: Babbler) -> None:
    form = GrammarSpec(kind=GrammarKind.REGEX, text="[a-z]+")
    with pytest.raises(InvalidRequest, match="or give a JSON schema") as caught:
        plain.asked(ToolStyle.JSON, form)
    assert caught.value.param == "input.tool_choice"
    forced = plain.asked(ToolStyle.JSON, form, tool_choice="required").sampling.grammar
    assert forced is not None
    assert "stop" in forced.text


def test_properties_that_are_not_named_are_left_out_unless_they_may_be_meant(plain: Babbler) -> None:
    named = {"properties": {"a": {"type": "integer"}}}
    for parameters, extra in [
        (named, False),
        (named | {"additionalProperties": True}, True),
        (named | {"required": ["b"]}, True),
        (named | {"patternProperties": {"^b$": {"type": "integer"}}}, True),
    ]:
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        grammar = plain.asked(ToolStyle.JSON, tools=tools, tool_choice="required").sampling.grammar
        assert grammar is not None
        assert plain.accepts(grammar, '{"name": "f", "arguments": {"a": 1, "b": 2}}') is extra, parameters


def test_schemas_that_are_too_long_together_are_refused(plain: Babbler) -> None:
    long = {"properties": {"a": {"enum": ["x" * 30_000]}}}
    tools = [{"type": "function", "function": {"name": name, "parameters": long}} for name in "abc"]
    with pytest.raises(InvalidRequest, match="at most 65536") as caught:
        plain.asked(ToolStyle.JSON, tools=tools, tool_choice="required")
    assert caught.value.param == "input.tools"


def test_a_payload_says_in_which_form_its_answer_is(plain: Babbler) -> None:
    form = GrammarSpec(kind=GrammarKind.JSON_SCHEMA, text='{"type": "integer"}')
    forms = {}
    for choice in ("required", NAMED, "auto", "none"):
        for answer in (None, form):
            asked = plain.asked(ToolStyle.LLAMA3, answer, tool_choice=choice)
            assert asked.tool_style is ToolStyle.LLAMA3
            forms[str(choice), answer is None] = (asked.answer_shape, asked.sampling.grammar is not None)
    calls, either = AnswerShape.CALLS, AnswerShape.ANSWER_OR_CALLS
    assert forms == {
        ("required", True): (calls, True),
        ("required", False): (calls, True),
        (str(NAMED), True): (calls, True),
        (str(NAMED), False): (calls, True),
        ("auto", True): (None, False),
        ("auto", False): (either, True),
        ("none", True): (None, False),
        ("none", False): (either, True),
    }


def test_parameters_that_cannot_be_followed_are_named(plain: Babbler) -> None:
    bad = {"properties": {"a": {"type": "strin"}}}
    tools = [{"function": {"name": "f"}}, {"function": {"name": "g", "parameters": bad}}]
    with pytest.raises(InvalidRequest) as refused:
        plain.asked(ToolStyle.JSON, tools=tools, tool_choice="required")
    assert (refused.value.code, refused.value.param) == ("invalid_json_schema", "input.tools[1].function.parameters")
    assert refused.value.message == Naming("calls of g ", ": Invalid type: strin")


@pytest.mark.parametrize("name", ["ignore_eos", "min_tokens"])
def test_a_grammar_of_calls_ends_the_answer(plain: Babbler, name: str) -> None:
    asked = plain.asked(ToolStyle.JSON)
    sampling = Sampling.model_validate({name: 1 if name == "min_tokens" else True})
    free = asked.model_copy(update={"sampling": sampling})
    assert with_tools(free, plain.tokenizer, plain.grammars).sampling == sampling
    forced = free.model_copy(update={"input": free.input.model_copy(update={"tool_choice": ToolChoiceMode.REQUIRED})})
    with pytest.raises(InvalidRequest) as refused:
        with_tools(forced, plain.tokenizer, plain.grammars)
    assert (refused.value.message, refused.value.param) == (
        Naming(f"leave out `{name}`"),
        f"sampling.{name}",
    )
