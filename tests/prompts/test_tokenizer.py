"""Tokenizers against the reference implementation, and the refusal of damaged files."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from headrace.features.encoders.token_pieces import load_pieces, pieces_for
from headrace.prompts.detokenizer import spell
from headrace.prompts.encoded_texts import EncodedTexts
from headrace.prompts.tokenizer import (
    ApproximateTokenizer,
    ByteTokenizer,
    eos_token_ids,
    load_tokenizer,
    sampling_defaults_for,
    special_token,
    tokenizer_for,
)
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.reasoning import ReasoningOptions
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry.models import ModelVersion
from headrace.store.streams.checkpoints import LogprobRow
from headrace.store.tasks.generate import ToolStyle
from tests.prompts.reasoning_templates import SWITCHED
from tests.prompts.tool_templates import HERMES

CONVERSATIONS = [
    [("user", "Name three colors.")],
    [
        ("system", "You are terse."),
        ("user", "héllo  wörld 😀\n\n<b>&amp;</b>"),
        ("assistant", "漢字"),
        ("user", "1 + 234?"),
    ],
    [
        ("user", " \tleading and trailing \n"),
        ("assistant", "ok"),
        ("user", "👩‍👩‍👧 family, {{ not_a_template }} {% raw %}"),
    ],
    [("user", "<|im_end|>\n<|im_start|>system\nspecial tokens in text")],
]


def messages(turns: list[tuple[str, str]]) -> list[ChatMessage]:
    return [ChatMessage(role=Role(role), content=content) for role, content in turns]


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_a_chat_prompt_equals_the_reference(
    smollm2: Path, smollm2_files: dict[str, bytes], turns: list[tuple[str, str]]
) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    reference = AutoTokenizer.from_pretrained(smollm2)
    plain = [{"role": role, "content": content} for role, content in turns]
    rendered = tokenizer.render(messages(turns))
    assert rendered == reference.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    expected = reference.apply_chat_template(plain, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = tokenizer.encode(rendered, add_special=False)
    assert ids == expected["input_ids"]
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    raw = plain[0]["content"]
    assert tokenizer.encode(raw, add_special=True) == reference(raw)["input_ids"]


def test_the_demo_model_ends_at_its_own_token(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.vocab_size == 49152


def test_the_generation_configuration_decides_what_ends_a_sequence() -> None:
    files = {"config.json": b'{"eos_token_id": 2}', "generation_config.json": b'{"eos_token_id": [5, 7]}'}
    assert eos_token_ids(files) == {5, 7}
    assert eos_token_ids({"config.json": b'{"eos_token_id": 2}', "generation_config.json": b"{}"}) == {2}
    assert eos_token_ids({}) == frozenset()


def with_template(files: dict[str, bytes], source: str, **config: object) -> dict[str, bytes]:
    return {
        "tokenizer.json": files["tokenizer.json"],
        "tokenizer_config.json": json.dumps({"chat_template": source, **config}).encode(),
    }


def test_a_template_has_what_templates_are_written_for(smollm2_files: dict[str, bytes]) -> None:
    source = """{{ bos_token }}
    {%- for message in messages %}
        {%- if loop.index > 2 %}{% break %}{% endif %}
        {%- generation %}[{{ message | tojson }}]{% endgeneration %}
    {%- endfor %}
    {%- if add_generation_prompt and not tools %} {{ strftime_now("%Y") }}{% endif %}"""
    files = with_template(smollm2_files, source, bos_token={"content": "<s>", "special": True})
    rendered = load_tokenizer(files).render(messages([("user", "<é>"), ("assistant", "b"), ("user", "c")]))
    year = datetime.now(UTC).astimezone().year
    assert rendered == (f'<s>[{{"role": "user", "content": "<é>"}}][{{"role": "assistant", "content": "b"}}] {year}')


def test_a_list_of_templates_gives_the_default_one(smollm2_files: dict[str, bytes]) -> None:
    files = with_template(smollm2_files, "")
    named: list[object] = [5, {"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    files["tokenizer_config.json"] = json.dumps({"chat_template": named}).encode()
    assert load_tokenizer(files).render(messages([("user", "x")])) == "yes"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[7].content + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_refuses_or_escapes_is_the_requests_error(smollm2_files: dict[str, bytes], source: str) -> None:
    tokenizer = load_tokenizer(with_template(smollm2_files, source))
    with pytest.raises(InvalidRequest, match="template refuses") as caught:
        tokenizer.render(messages([("user", "x")]))
    assert caught.value.param == "input.messages"


def test_a_model_without_a_template_takes_prompts_only(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer({"tokenizer.json": smollm2_files["tokenizer.json"]})
    with pytest.raises(InvalidRequest, match=r"`input\.prompt`"):
        tokenizer.render(messages([("user", "x")]))


def test_truncation_and_padding_of_a_training_run_are_ignored(smollm2_files: dict[str, bytes]) -> None:
    backend = json.loads(smollm2_files["tokenizer.json"])
    backend["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    backend["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    tokenizer = load_tokenizer({"tokenizer.json": json.dumps(backend).encode()})
    assert len(tokenizer.encode("one two three four five six", add_special=True)) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.json": None}, r"tokenizer\.json is"),
        ({"tokenizer.json": b"{"}, r"tokenizer\.json cannot"),
        ({"tokenizer_config.json": b"[]"}, r"tokenizer_config\.json"),
        ({"generation_config.json": b"{{"}, r"generation_config\.json is not JSON"),
        ({"chat_template.jinja": b"{% for %}"}, "does not parse"),
    ],
)
def test_damaged_files_are_a_load_error(
    smollm2_files: dict[str, bytes], change: dict[str, bytes | None], said: str
) -> None:
    files = {name: content for name, content in (smollm2_files | change).items() if content is not None}
    with pytest.raises(ModelLoadError, match=said):
        load_tokenizer(files)


def version(runner: str, files: dict[str, str]) -> ModelVersion:
    return ModelVersion("m", 1, "generate", runner, "", "", "auto", 64, files, datetime.now(UTC), None)


def test_a_registered_version_is_read_by_digest(smollm2_files: dict[str, bytes]) -> None:
    stored = {f"digest of {name}": content for name, content in smollm2_files.items()}
    named = {name: f"digest of {name}" for name in smollm2_files}
    tokenizer = tokenizer_for(version("torch", named), stored.__getitem__)
    assert tokenizer.encode("Hello", add_special=True) == load_tokenizer(smollm2_files).encode("Hello", True)
    assert isinstance(tokenizer_for(version("fake", {}), stored.__getitem__), ByteTokenizer)


def test_the_byte_tokenizer_is_utf8() -> None:
    tokenizer = ByteTokenizer()
    text = "héllo 😀"
    assert tokenizer.encode(text, add_special=True) == list(text.encode())
    assert tokenizer.decode([*text.encode(), 256]) == text
    assert tokenizer.render(messages([("system", "a"), ("user", "b")])) == "system: a\nuser: b\n"
    assert (tokenizer.eos_token_ids, tokenizer.vocab_size, tokenizer.tool_style) == ({256}, 257, ToolStyle.JSON)
    assert (tokenizer.spelling(97), tokenizer.token_bytes(97), tokenizer.token_bytes(256)) == (b"a", b"a", b"")


def test_each_byte_has_its_letter() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = load_tokenizer({"tokenizer.json": backend.to_str().encode()})
    text = "".join(map(chr, range(0x250)))
    assert (
        b"".join(tokenizer.token_bytes(one) or b"" for one in tokenizer.encode(text, add_special=False)).decode()
        == text
    )


def test_a_token_spells_its_own_bytes_whatever_stands_beside_it(
    smollm2_files: dict[str, bytes], byte_fallback_files: dict[str, bytes]
) -> None:
    bytewise, pieces = load_tokenizer(smollm2_files), load_tokenizer(byte_fallback_files)
    text = "Hello  wörld 🦆"
    ids = bytewise.encode(text, add_special=False)
    assert b"".join(map(bytewise.spelling, ids)).decode() == text
    assert bytewise.spelling(min(bytewise.eos_token_ids)) == b"<|im_end|>"
    ids = pieces.encode("Hello world é", add_special=False)
    assert b"".join(map(pieces.spelling, ids)).decode() == "Hello world é"
    words = {pieces.spelling(token_id): token_id for token_id in range(pieces.vocab_size)}
    assert {b" Hello", b"ld", b" ", b"\xe2", b"</s>", "漢".encode()} <= words.keys()
    assert ByteTokenizer().spelling(256) == b"</s>"


def test_logprobs_are_spelled_for_the_tokens_of_the_text(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    (duck, *more) = tokenizer.encode("🦆 a", add_special=False)
    end = min(tokenizer.eos_token_ids)
    rows = [LogprobRow(duck, -0.5, ((end, -0.25), (duck, -0.5))), *(LogprobRow(one, 0.0) for one in (*more, end))]
    found = spell(tokenizer, rows)
    assert b"".join(bytes(one.bytes) for one in found).decode() == "🦆 a"
    assert [top.token for top in found[0].top_logprobs] == ["<|im_end|>", found[0].token]
    assert "\ufffd" in found[0].token


def test_special_tokens_are_those_of_the_configuration_before_the_older_file() -> None:
    older = {"bos_token": "<s>", "unk_token": {"content": "<unk>"}, "sep_token": 5}
    newer = {"bos_token": {"content": "<b>"}, "cls_token": None}
    files = {
        "special_tokens_map.json": json.dumps(older).encode(),
        "tokenizer_config.json": json.dumps(newer).encode(),
    }
    names = ("bos_token", "unk_token", "sep_token", "cls_token", "pad_token", "chat_template")
    assert [special_token(files, name) for name in names] == ["<b>", "<unk>", None, None, None, None]


def test_a_template_in_a_file_of_its_own_comes_first(smollm2_files: dict[str, bytes]) -> None:
    files = with_template(smollm2_files, "inside", unk_token="<u>") | {
        "chat_template.jinja": "{{ unk_token }}é".encode()
    }
    assert load_tokenizer(files).render(messages([("user", "x")])) == "<u>é"


def test_a_server_without_a_tokenizer_has_an_estimate() -> None:
    tokenizer = ApproximateTokenizer()
    assert [len(tokenizer.encode(text, add_special=True)) for text in ("", "a", "abcd", "abcde", "éé")] == [
        0,
        1,
        1,
        2,
        1,
    ]
    asked, hi = ReasoningOptions(max_tokens=4), messages([("user", "hi")])
    assert tokenizer.render(hi, reasoning=asked) == "user: hi\n"
    with pytest.raises(InvalidRequest, match="not reason"):
        ByteTokenizer().render(hi, reasoning=asked)


def test_the_bytes_of_a_pair_have_their_text_and_their_characters() -> None:
    assert ByteTokenizer().encode_texts("é", "ab") == EncodedTexts(
        ids=(0xC3, 0xA9, 97, 98), type_ids=(0, 0, 1, 1), text_of=(0, 0, 1, 1), offsets=((0, 1), (0, 1), (0, 1), (1, 2))
    )
    assert ByteTokenizer().encode_texts("a").text_of == (0,)
    assert ByteTokenizer().encode_texts("abc", "").keep([2, 0]).ids == (99, 97)


def test_the_marks_of_reasoning_are_text_and_other_special_tokens_are_not(
    byte_fallback_files: dict[str, bytes],
) -> None:
    backend = json.loads(byte_fallback_files["tokenizer.json"])
    first = len(backend["model"]["vocab"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for number, (mark, is_special) in enumerate(
        (("<think>", True), ("</think>", True), ("<tool_call>", True), ("<pad1>", False))
    ):
        backend["added_tokens"].append({"id": first + number, "content": mark, "special": is_special, **plain})
    files = byte_fallback_files | {"tokenizer.json": json.dumps(backend).encode()}
    tokenizer = load_tokenizer(files | {"chat_template.jinja": SWITCHED.encode()})
    hello = tokenizer.encode("Hello", add_special=False)
    assert tokenizer.reasoning is not None
    assert tokenizer.decode([first, *hello, first + 1, *hello, first + 2, 2]) == "<think>Hello</think>Hello"
    assert [tokenizer.is_silent(first + number) for number in range(5)] == [False, False, True, False, True]
    assert (tokenizer.is_byte_fallback(first + 3), tokenizer.vocab_size) == (False, first + 4)
    assert tokenizer.spelling(first + 1) == b"</think>"
    # Calls between tags that are special tokens would be skipped with them.
    hermes = {"chat_template.jinja": HERMES.encode()}
    assert load_tokenizer(files | hermes).tool_style is ToolStyle.JSON
    assert load_tokenizer(byte_fallback_files | hermes).tool_style is ToolStyle.HERMES


def test_the_sampling_of_a_version_is_that_of_its_file() -> None:
    stored = {"d": b'{"temperature": 0.5, "top_k": 3, "top_p": 7}'}
    with_file = version("torch", {"generation_config.json": "d"})
    found = sampling_defaults_for(with_file, stored.__getitem__)
    assert (found.temperature, found.top_k, found.top_p) == (0.5, 3, SamplingDefaults().top_p)
    assert sampling_defaults_for(version("torch", {}), stored.__getitem__) == SamplingDefaults()


def test_pieces_are_spelled_and_joined_by_the_vocabulary(byte_fallback_files: dict[str, bytes]) -> None:
    pieces = load_pieces(byte_fallback_files)
    assert (pieces.unknown_id, pieces.marks_subwords, pieces.text(260), pieces.text(99_999)) == (0, False, "▁Hello", "")
    assert pieces.join(["▁Hello", "▁wor", "ld"]) == "Hello world"
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json cannot"):
        load_pieces({"tokenizer.json": b"{"})
    stored = {"d": byte_fallback_files["tokenizer.json"]}
    assert (
        pieces_for(version("torch", {"tokenizer.json": "d", "config.json": "e"}), stored.__getitem__).text(260)
        == "▁Hello"
    )
    fake = pieces_for(version("fake", {}), stored.__getitem__)
    assert (fake.unknown_id, fake.text(97), fake.join(["a", "b"])) == (None, "a", "ab")
