"""Prompts from inputs, and the context window."""

import json
from typing import Any

import pytest

from headrace.prompts.bad_words import banned_sequences
from headrace.prompts.chat_template import MAX_RENDERED_CHARS, ChatTemplate
from headrace.prompts.fill_in_middle import around_gap
from headrace.prompts.tasks.generate import (
    DEFAULT_MAX_TOKENS,
    build_prompt,
    count_tokens,
    cut_to_length,
    fit,
    prepare,
    render,
)
from headrace.prompts.tokenizer import ByteTokenizer, load_tokenizer
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.sampling_params import Truncated, Truncation
from headrace.store.tasks.generate import GenerateInput, GenerateRequest
from tests.prompts.tasks.test_prepared import Model


def test_messages_go_through_the_template_and_a_raw_prompt_does_not() -> None:
    tokenizer = ByteTokenizer()
    chat = GenerateInput(messages=(ChatMessage(role=Role.USER, content="hi"),))
    assert build_prompt(tokenizer, chat) == list(b"user: hi\n")
    assert build_prompt(tokenizer, GenerateInput(prompt="hi")) == list(b"hi")


def test_a_template_that_renders_nothing_is_refused(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer({**smollm2_files, "chat_template.jinja": b"{% if false %}x{% endif %}"})
    chat = GenerateInput(messages=(ChatMessage(role=Role.USER, content="hi"),))
    with pytest.raises(InvalidRequest, match="no tokens") as caught:
        build_prompt(tokenizer, chat)
    assert caught.value.param == "input.messages"


def test_a_template_that_repeats_without_end_is_stopped() -> None:
    source = "{% for a in messages %}{% for b in messages %}{{ a.content }}{% endfor %}{% endfor %}"
    template = ChatTemplate(source, {})
    message = ChatMessage(role=Role.USER, content="x" * 10_000)
    assert len(template.render([message] * 10)) == 1_000_000
    assert MAX_RENDERED_CHARS == 8_000_000
    with pytest.raises(InvalidRequest, match="8000000 characters"):
        template.render([message] * 1024)  # ten gigabytes


def test_a_template_gets_the_variables_of_the_request_but_not_in_the_place_of_its_own() -> None:
    template = ChatTemplate("{{ bos_token }}{{ style or 'plain' }}:{{ messages[0].content }}", {"bos_token": "<s>"})
    message = ChatMessage(role=Role.USER, content="hi")
    assert template.render([message]) == "<s>plain:hi"
    assert template.render([message], variables={"style": "brief", "bos_token": "x", "messages": []}) == "<s>brief:hi"


def test_a_gap_is_between_the_tokens_that_the_model_was_trained_with(smollm2_files: dict[str, bytes]) -> None:
    source = GenerateInput(prompt="def f(", suffix="return 1")
    with pytest.raises(InvalidRequest, match="the middle") as caught:
        build_prompt(load_tokenizer(smollm2_files), source)
    assert caught.value.param == "input.suffix"
    file = json.loads(smollm2_files["tokenizer.json"])
    marks = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file["added_tokens"] += [{"id": 49152 + n, "content": mark} | plain for n, mark in enumerate(marks)]
    tokenizer = load_tokenizer(smollm2_files | {"tokenizer.json": json.dumps(file).encode()})
    before, after = (tokenizer.encode(text, add_special=False) for text in ("def f(", "return 1"))
    assert build_prompt(tokenizer, source) == [49152, *before, 49153, *after, 49154]


class Vocabulary:
    """A vocabulary of these added tokens."""

    def __init__(self, *added: str) -> None:
        self._added = added

    def added_token_id(self, text: str) -> int | None:
        return self._added.index(text) if text in self._added else None

    def encode(self, text: str, add_special: bool) -> list[int]:
        return [self._added.index(part) for part in (["<s>"] if add_special else []) + text.split()]


@pytest.mark.parametrize(
    ("added", "prompt"),
    [
        ("<|fim_prefix|> <|fim_suffix|> <|fim_middle|>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"),
        ("<fim-middle> <fim-prefix> <fim-suffix>", "<fim-prefix>a<fim-suffix>b<fim-middle>"),
        ("<｜fim▁begin｜> <｜fim▁hole｜> <｜fim▁end｜>", "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"),
    ],
)
def test_each_family_has_its_own_marks_around_the_gap(added: str, prompt: str) -> None:
    tokenizer: Any = Vocabulary(*added.split())
    assert around_gap(tokenizer, "a", "b") == prompt
    some: Any = Vocabulary(*added.split()[:2])
    with pytest.raises(InvalidRequest) as refused:
        around_gap(some, "a", "b")
    assert refused.value.param == "input.suffix"
    assert "the middle" in refused.value.message


def test_bad_words_are_banned_at_the_start_of_a_text_and_after_a_space(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    words = banned_sequences(tokenizer, (" water", "water", "Schmetterling"))
    assert [tokenizer.decode(word) for word in words] == ["water", " water", "Schmetterling", " Schmetterling"]
    assert [len(word) > 1 for word in words] == [False, False, True, True]
    own: Any = Vocabulary("<s>", "mill", "river")
    assert banned_sequences(own, ("mill", " ", "river mill")) == ((1,), (2, 1))


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "expected"),
    [(90, None, 10), (1, None, 99), (90, 10, 10), (99, 1, 1), (1, 5, 5)],
)
def test_what_fits(prompt_len: int, max_tokens: int | None, expected: int) -> None:
    assert fit(100, prompt_len, max_tokens) == expected


def test_without_a_limit_the_default_applies() -> None:
    assert fit(1_000_000, 10, None) == DEFAULT_MAX_TOKENS


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "param", "said"),
    [
        (100, None, "input", "shorten"),
        (101, 1, "input", "shorten"),
        (99, 2, "sampling.max_tokens", "at most 1 tokens"),
    ],
)
def test_what_does_not_fit(prompt_len: int, max_tokens: int | None, param: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        fit(100, prompt_len, max_tokens)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


def requested(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"model": "m", "input": {"prompt": "ab"}, **fields})


@pytest.mark.parametrize(
    ("num_chars", "n", "logprobs", "is_refused"),
    [(131_072, 1, 0, False), (131_073, 1, 0, True), (65_536, 1, 1, False), (65_537, 1, 1, True), (65_537, 2, 0, True)],
)
def test_the_log_probabilities_of_a_prompt_are_bounded(num_chars: int, n: int, logprobs: int, is_refused: bool) -> None:
    sampling = {"echo": True, "logprobs": logprobs, "max_tokens": 1}
    request = requested(input={"prompt": "x" * num_chars}, n=n, sampling=sampling)
    model = Model(None, window=1 << 20)
    if not is_refused:
        prepare(request, model, None)
        return
    with pytest.raises(InvalidRequest) as refused:
        prepare(request, model, None)
    assert refused.value.param == "sampling.logprobs"
    assert f"{num_chars * n} tokens, and at most 131072 " in refused.value.message


@pytest.mark.parametrize(
    ("window", "max_tokens", "num_kept"), [(100, None, 75), (100, 30, 70), (4096, None, 3072), (8192, None, 7168)]
)
def test_a_shortened_prompt_leaves_room_for_its_answer(window: int, max_tokens: int | None, num_kept: int) -> None:
    request = requested(
        input={"prompt": "x" * 9000}, truncation="left", sampling={"max_tokens": max_tokens} if max_tokens else {}
    )
    model = Model(None, window=window)
    cut = cut_to_length(request, model)
    assert (cut.input.prompt, cut.truncated) == (
        "x" * num_kept,
        Truncated(strategy=Truncation.LEFT, tokens=9000 - num_kept),
    )
    assert count_tokens(request, model) == num_kept
    assert prepare(request, model, None).num_tokens == num_kept


def test_a_render_has_the_text_and_the_number_of_its_tokens() -> None:
    model = Model(None)
    assert render(GenerateInput(prompt="ab"), model) == ("ab", 2)
    assert render(GenerateInput(messages=(ChatMessage(role=Role.USER, content="é"),)), model) == ("user: é\n", 9)
