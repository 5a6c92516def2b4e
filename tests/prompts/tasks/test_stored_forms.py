"""The stored form of requests whose model reasons, calls tools or is behind a server; images, rows and users."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from headrace.features.encoders.classify.inputs import FAKE as CLASSIFIER
from headrace.features.encoders.embed.inputs import FAKE as EMBEDDER
from headrace.features.images.classify.inputs import FAKE as IMAGE_CLASSIFIER
from headrace.prompts.answer_reader import ReasoningSupport, find_support
from headrace.prompts.chat_server import ChatServer
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.prompts.tokenizer import ApproximateTokenizer, ByteTokenizer
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.tasks.registry import TASKS
from tests.png import png, url_of
from tests.prompts.tasks.test_prepared import Model, prepared, refused
from tests.refusals import Naming

IMAGE = {"url": url_of(png(2))}
BAD = {"url": "data:image/png;base64,AAAA"}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
GRAMMAR = {"grammar": {"kind": "regex", "text": "a"}}
THINK = ReasoningFormat(opening="<think>", closing="</think>")


class Thinking(ByteTokenizer):
    """A tokenizer whose template ends with this text, and knows this of reasoning."""

    def __init__(self, end: str, support: ReasoningSupport | None) -> None:
        super().__init__()
        self.reasoning = support
        self._end = end

    def render(self, *_given: Any, **_named: Any) -> str:
        return f"hi{self._end}"


def support(*, is_switched: bool = True) -> ReasoningSupport:
    found = find_support("</think>", lambda variables: str(variables.get("thinking")) if is_switched else "")
    assert found is not None
    assert found.is_controlled is is_switched
    return found


def generated(model: Model, **body: Any) -> Any:
    return prepared("generate", model, **{"input": {"messages": [{"role": "user", "content": "hi"}]}, **body}).payload


@pytest.mark.parametrize(
    ("end", "is_switched", "sampling", "found"),
    [
        ("", True, {}, {}),
        ("<think>\n", True, {}, {"is_open": True}),
        ("<think>\n\n</think>\n", True, {}, None),
        # A grammar begins behind the reasoning: the opening is forced if the model certainly reasons.
        ("", True, GRAMMAR, {"is_forced": True}),
        ("<think>", True, GRAMMAR, {"is_open": True}),
        ("", False, GRAMMAR, None),
        ("<think>", False, GRAMMAR, {"is_open": True}),
        ("", False, {}, {}),
    ],
)
def test_the_reasoning_of_an_answer_follows_from_the_end_of_its_prompt(
    end: str, is_switched: bool, sampling: dict[str, Any], found: dict[str, Any] | None
) -> None:
    model = Model(None, tokenizer=Thinking(end, support(is_switched=is_switched)))
    expected = None if found is None else THINK.model_copy(update=found)
    assert generated(model, sampling=sampling).reasoning == expected


def test_the_budget_of_a_request_is_stored_and_a_raw_prompt_has_no_reasoning() -> None:
    model = Model(None, tokenizer=Thinking("", support()))
    asked = {"messages": [{"role": "user", "content": "hi"}], "reasoning": {"effort": "low"}}
    assert generated(model, input=asked, sampling={"max_tokens": 50}).reasoning == THINK.model_copy(
        update={"max_tokens": 10}
    )
    assert generated(model, input={"prompt": "hi"}).reasoning is None
    # Where the model does not reason, the stored request has none of it.
    plain = generated(Model(None), input=asked | {"reasoning": {"effort": "none"}})
    assert (plain.input.reasoning, plain.reasoning) == (None, None)


def test_a_server_is_asked_with_its_own_style_of_calls() -> None:
    server = Model(ChatServer(takes_images=True), tokenizer=ApproximateTokenizer())
    message = {"role": "user", "content": "hi"}
    asked = {"messages": [message], "tools": TOOLS, "reasoning": {"effort": "low"}}
    with_tools = generated(server, input=asked)
    assert (with_tools.tool_style, with_tools.reasoning) == ("hermes", THINK)
    assert with_tools.input.reasoning is not None
    without = generated(server, input=asked | {"tool_choice": "none"})
    assert (without.tool_style, without.reasoning) == (None, THINK)
    pictures = {"messages": [{**message, "images": [IMAGE, {"file_id": "f", "detail": "low"}]}]}
    assert prepared("generate", server, input=pictures).num_tokens == 3 + 576 + 85
    assert refused("generate", server, input={"messages": [{**message, "images": [BAD]}]})[1:] == (
        "invalid_image",
        "input.messages.images[0]",
    )


def is_quick(model: Model, **body: Any) -> bool:
    task = "generate"
    request = TypeAdapter(TASKS[task].request).validate_python({"task": task, "model": "m", **body})
    return TASK_INPUTS[task].is_quick(request, model)


def test_a_request_is_quick_unless_a_grammar_is_new_or_it_has_images() -> None:
    model = Model(None)
    message = {"role": "user", "content": "hi"}
    assert is_quick(model, input={"prompt": "a"})
    assert not is_quick(model, input={"prompt": "a"}, sampling=GRAMMAR)
    model.grammars.check("regex", "a")
    assert is_quick(model, input={"prompt": "a"}, sampling=GRAMMAR)
    forced = {"messages": [message], "tools": TOOLS, "tool_choice": "required"}
    assert not is_quick(model, input=forced)
    assert is_quick(model, input=forced | {"tool_choice": "auto"})
    server = Model(ChatServer(takes_images=True), tokenizer=ApproximateTokenizer())
    assert is_quick(server, input=forced)
    assert not is_quick(server, input={"messages": [{**message, "images": [{"file_id": "f"}]}]})


@pytest.mark.parametrize(
    ("task", "settings", "more"),
    [
        ("image_classify", IMAGE_CLASSIFIER, {}),
        ("image_zero_shot", EMBEDDER, {"candidate_labels": ["a", "b"]}),
        ("embed", EMBEDDER, {}),
    ],
)
def test_an_image_that_cannot_be_used_is_named(task: str, settings: Any, more: dict[str, Any]) -> None:
    given = {"images": [IMAGE, BAD], **more}
    assert refused(task, Model(settings), input=given)[1:] == ("invalid_image", "input.images[1]")


def test_a_long_input_is_cut_if_the_request_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Model(EMBEDDER.__class__(context_window=3, width=8))
    cut = prepared("embed", small, input={"texts": ["abcdef", "a"]}, truncate=True)
    assert (cut.num_tokens, cut.payload.model_dump()["truncate"]) == (4, True)
    monkeypatch.setattr("headrace.features.encoders.fitted_inputs.MAX_TOKENS_TOGETHER", 3)
    for settings in (CLASSIFIER, EMBEDDER):
        given = {"text_1": ["ab"], "text_2": ["cd"]}
        assert refused("score", Model(settings), input=given) == (
            Naming("`input.text_2` ", " 4 tokens", " 3"),
            "invalid_value",
            "input.text_2",
        )
