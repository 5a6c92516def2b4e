"""Prompts from inputs, and the context window."""

import json

import pytest

from prompts.bad_words import banned_sequences
from prompts.chat_template import MAX_RENDERED_CHARS, ChatTemplate
from prompts.tasks.generate import DEFAULT_MAX_TOKENS, build_prompt, fit
from prompts.tokenizer import ByteTokenizer, load_tokenizer
from store.errors import InvalidRequest
from store.payloads.conversation import ChatMessage, Role
from store.tasks.generate import GenerateInput


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
    with pytest.raises(InvalidRequest, match=str(MAX_RENDERED_CHARS)):
        template.render([message] * 1024)  # ten gigabytes


def test_a_template_gets_the_variables_of_the_request_but_not_in_the_place_of_its_own() -> None:
    template = ChatTemplate("{{ bos_token }}{{ style or 'plain' }}:{{ messages[0].content }}", {"bos_token": "<s>"})
    message = ChatMessage(role=Role.USER, content="hi")
    assert template.render([message]) == "<s>plain:hi"
    assert template.render([message], variables={"style": "brief", "bos_token": "x", "messages": []}) == "<s>brief:hi"


def test_a_gap_is_between_the_tokens_that_the_model_was_trained_with(smollm2_files: dict[str, bytes]) -> None:
    source = GenerateInput(prompt="def f(", suffix="return 1")
    with pytest.raises(InvalidRequest, match="filling in the middle") as caught:
        build_prompt(load_tokenizer(smollm2_files), source)
    assert caught.value.param == "input.suffix"
    file = json.loads(smollm2_files["tokenizer.json"])
    marks = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file["added_tokens"] += [{"id": 49152 + n, "content": mark} | plain for n, mark in enumerate(marks)]
    tokenizer = load_tokenizer(smollm2_files | {"tokenizer.json": json.dumps(file).encode()})
    before, after = (tokenizer.encode(text, add_special=False) for text in ("def f(", "return 1"))
    assert build_prompt(tokenizer, source) == [49152, *before, 49153, *after, 49154]


def test_bad_words_are_banned_at_the_start_of_a_text_and_after_a_space(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    words = banned_sequences(tokenizer, (" water", "water", "Schmetterling"))
    assert [tokenizer.decode(word) for word in words] == ["water", " water", "Schmetterling", " Schmetterling"]
    assert [len(word) > 1 for word in words] == [False, False, True, True]


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
        (100, None, "input", "shorten the prompt"),
        (101, 1, "input", "shorten the prompt"),
        (99, 2, "sampling.max_tokens", "at most 1 tokens"),
    ],
)
def test_what_does_not_fit(prompt_len: int, max_tokens: int | None, param: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        fit(100, prompt_len, max_tokens)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)
