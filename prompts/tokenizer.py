"""Tokenizers: text to ids and back, for the files of a registered model and for the fake.

A tokenizer is made from bytes, never from a path or the network, because the API reads the files from the registry. It
has the chat template and the end-of-sequence ids of its model. Special tokens in the text of a user are parsed as
special tokens, as in the reference implementation, unless the request says otherwise (``prompts.special_tokens``).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import tokenizers
from tokenizers import decoders

from headrace.prompts.answer_reader import ReasoningSupport, check_without_reasoning, tags_of
from headrace.prompts.chat_template import ChatTemplate, Variables, in_plain_json
from headrace.prompts.encoded_texts import EncodedTexts
from headrace.prompts.special_tokens import divided
from headrace.prompts.tool_calls import HERMES_TAGS
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.conversation import ChatMessage, Tool
from headrace.store.payloads.reasoning import ReasoningOptions
from headrace.store.payloads.sampling_params import SamplingDefaults, read_generation
from headrace.store.tasks.generate import ToolStyle

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

_GENERATION = "generation_config.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    _GENERATION,
    "chat_template.jinja",
)
"""The files of a model folder that a tokenizer reads; only the first must exist."""

_SPACE = "\u2581"
"""How SentencePiece writes a space."""

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer(Protocol):
    """What prompts and detokenizers need of a tokenizer."""

    eos_token_ids: frozenset[int]
    vocab_size: int
    tool_style: ToolStyle
    reasoning: ReasoningSupport | None
    """What requests can change of the model's reasoning; None if it does not reason."""

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Return the ids of ``text``; ``add_special`` adds what the model expects around a raw prompt."""
        ...

    def encode_texts(self, first: str, second: str | None = None) -> EncodedTexts:
        """Return a text or a pair as one sequence, with the special tokens that the model expects around it."""
        ...

    def without_special(self, text: str) -> list[str]:
        """Return the text in parts, none of which has a special token when it is encoded by itself."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        Special tokens are left out, but for the marks of reasoning.
        """
        ...

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        variables: Variables = None,
        reasoning: ReasoningOptions | None = None,
    ) -> str:
        """Return the conversation, and the tools it may call, as the model's chat template writes them."""
        ...

    def added_token_id(self, text: str) -> int | None:
        """Return the id of the token that was added to the vocabulary for just this text, None if there is none."""
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the bytes that a token adds whatever surrounds it, or None if its text depends on its neighbours."""
        ...

    def spelling(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for in the middle of a text; for a special token, its name."""
        ...

    def is_byte_fallback(self, token_id: int) -> bool:
        """Return True if the token stands for one byte of a character that spans several such tokens."""
        ...

    def is_silent(self, token_id: int) -> bool:
        """Return True for special and unknown tokens, which ``decode`` skips."""
        ...


@cache
def byte_of_letter() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the rest for letters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


class FileTokenizer:
    """The tokenizer of a model folder: ``tokenizer.json`` and the chat template beside it."""

    def __init__(
        self, backend: tokenizers.Tokenizer, eos_token_ids: frozenset[int], template: ChatTemplate | None
    ) -> None:
        self._backend = backend
        self._template = template
        self.eos_token_ids = eos_token_ids
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._special_texts = [token.content for token in added.values() if token.special]
        self._is_bytewise = isinstance(backend.decoder, decoders.ByteLevel)
        self.tool_style = self._readable_style()
        self.reasoning = self._readable_reasoning()
        marks = () if self.reasoning is None else tags_of(self.reasoning.format)
        # The marks are text for the readers of answers, also where they are special tokens.
        self._marks = self._special & {self._added[mark] for mark in marks}

    def _readable_reasoning(self) -> ReasoningSupport | None:
        """Return what the template knows, if the marks are tokens: only then is their place in an output certain."""
        support = None if self._template is None else self._template.reasoning
        return support if support is not None and all(tag in self._added for tag in tags_of(support.format)) else None

    def _readable_style(self) -> ToolStyle:
        """Return how calls stand in decoded text: without tags, if these are special tokens, which are skipped."""
        style = ToolStyle.JSON if self._template is None else self._template.tool_style
        is_skipped = self.added_token_id(HERMES_TAGS[0]) in self._special
        return ToolStyle.JSON if style is ToolStyle.HERMES and is_skipped else style

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Return the ids of ``text``; ``add_special`` adds what the model expects around a raw prompt."""
        return list(self._backend.encode(text, add_special_tokens=add_special).ids)

    def encode_texts(self, first: str, second: str | None = None) -> EncodedTexts:
        """Return a text or a pair as one sequence, as the tokenizer's post-processor writes it."""
        found = self._backend.encode(first, second)
        return EncodedTexts(tuple(found.ids), tuple(found.type_ids), tuple(found.sequence_ids), tuple(found.offsets))

    def without_special(self, text: str) -> list[str]:
        """Return the text, divided after the first letter of each special token in it."""
        return divided(text, self._special_texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens, but for the marks of reasoning."""
        if self._marks.isdisjoint(ids):
            return str(self._backend.decode(list(ids), skip_special_tokens=True))
        parts = (list(part) for _, part in groupby(ids, key=self._marks.__contains__))
        return "".join(self._backend.decode(part, skip_special_tokens=part[0] not in self._marks) for part in parts)

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        variables: Variables = None,
        reasoning: ReasoningOptions | None = None,
    ) -> str:
        """Return the conversation, and the tools it may call, as the model's chat template writes them."""
        if self._template is None:
            raise InvalidRequest("this model has no chat template: send `input.prompt` instead", param="input.messages")
        if self.reasoning is None:
            check_without_reasoning(reasoning)
            reasoning = None
        return self._template.render(messages, tools, variables, reasoning)

    def added_token_id(self, text: str) -> int | None:
        """Return the id of the token that was added to the vocabulary for just this text, None if there is none."""
        return self._added.get(text)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the token's own bytes for a byte-level vocabulary, else None."""
        if not self._is_bytewise:
            return None
        if self.is_silent(token_id):
            return b""
        letters = self._backend.id_to_token(token_id) or ""
        table = byte_of_letter()
        # An added token holds plain text; one letter outside the alphabet makes the whole token plain text.
        if all(letter in table for letter in letters):
            return bytes(table[letter] for letter in letters)
        return letters.encode()

    def spelling(self, token_id: int) -> bytes:
        """Return the token's bytes: its own, the one of a ``<0xE2>``, or its piece's, where U+2581 is a space."""
        own = self.token_bytes(token_id)
        piece = self._backend.id_to_token(token_id) or ""
        if own:
            return own
        if self.is_byte_fallback(token_id):
            return bytes([int(piece[3:5], 16)])
        return (piece if self.is_silent(token_id) else piece.replace(_SPACE, " ")).encode()

    def is_byte_fallback(self, token_id: int) -> bool:
        """Return True for the ``<0xE2>`` tokens of SentencePiece vocabularies."""
        piece = self._backend.id_to_token(token_id) or ""
        return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")

    def is_silent(self, token_id: int) -> bool:
        """Return True for special tokens, but for the marks of reasoning, and for unused ids of a padded vocabulary."""
        is_special = token_id in self._special and token_id not in self._marks
        return is_special or self._backend.id_to_token(token_id) is None


class ByteTokenizer:
    """One token a UTF-8 byte, for the fake model: 256 ends the sequence."""

    EOS = 256

    def __init__(self) -> None:
        self.eos_token_ids = frozenset({self.EOS})
        self.vocab_size = 257
        self.tool_style = ToolStyle.JSON
        self.reasoning: ReasoningSupport | None = None

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Return the bytes of ``text``; there are no special tokens to add."""
        return list(text.encode(errors="replace"))

    def encode_texts(self, first: str, second: str | None = None) -> EncodedTexts:
        """Return the bytes of the texts, one after the other."""
        texts = (first,) if second is None else (first, second)
        spans = [
            [(at, at + 1) for at, char in enumerate(text) for _ in char.encode(errors="replace")] for text in texts
        ]
        of_text = tuple(number for number, text in enumerate(spans) for _ in text)
        ids = tuple(token for text in texts for token in self.encode(text, add_special=True))
        return EncodedTexts(ids, of_text, of_text, tuple(span for text in spans for span in text))

    def without_special(self, text: str) -> list[str]:
        """Return the text: there are no special tokens."""
        return [text]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the bytes."""
        return bytes(token for token in ids if token < self.EOS).decode(errors="replace")

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        variables: Variables = None,
        reasoning: ReasoningOptions | None = None,
    ) -> str:
        """Return one ``role: content`` line a message."""
        check_without_reasoning(reasoning)
        turns = in_plain_json(messages, tools, has_system=True)
        return "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns)

    def added_token_id(self, text: str) -> int | None:
        """Return None: there are bytes and the end."""
        return None

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the byte."""
        return bytes([token_id]) if token_id < self.EOS else b""

    def spelling(self, token_id: int) -> bytes:
        """Return the byte, or a name for the end of the sequence."""
        return bytes([token_id]) if token_id < self.EOS else b"</s>"

    def is_byte_fallback(self, token_id: int) -> bool:
        """Return False: ``token_bytes`` is always complete."""
        return False

    def is_silent(self, token_id: int) -> bool:
        """Return True for the end of the sequence."""
        return token_id >= self.EOS


class ApproximateTokenizer(ByteTokenizer):
    """Estimates the number of tokens, as one for four bytes, for a server that takes messages and not token ids.

    The ids mean nothing: they are never sent.
    """

    _BYTES_A_TOKEN = 4

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        variables: Variables = None,
        reasoning: ReasoningOptions | None = None,
    ) -> str:
        """As the fake. Only the server knows if the model reasons."""
        return super().render(messages, tools)

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Return one id for each four bytes of ``text``, and for the rest."""
        return super().encode(text, add_special)[:: self._BYTES_A_TOKEN]


def _parse(files: Mapping[str, bytes], name: str) -> dict[str, object]:
    """Return a JSON object of the folder, empty if the file is not there."""
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise ModelLoadError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{name} is not a JSON object")
    return value


def _token_text(value: object) -> str | None:
    """Return a special token's text; older files spell it as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    named = _parse(files, "special_tokens_map.json") | _parse(files, "tokenizer_config.json")
    found = {name: _token_text(named.get(name)) for name in _SPECIAL_NAMES}
    return {name: text for name, text in found.items() if text is not None}


def special_token(files: Mapping[str, bytes], name: str) -> str | None:
    """Return a special token's text, such as that of ``unk_token``, if the folder's files name it."""
    return _special_tokens(files).get(name)


def _template_source(files: Mapping[str, bytes]) -> str | None:
    """Return the chat template: a file of its own, or inside the tokenizer's configuration (one, or a named list)."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    stored = _parse(files, "tokenizer_config.json").get("chat_template")
    if isinstance(stored, list):
        named = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
        stored = named.get("default")
    return stored if isinstance(stored, str) else None


def _id_set(value: object) -> frozenset[int]:
    values: Iterable[object] = value if isinstance(value, list) else (value,)
    return frozenset(item for item in values if isinstance(item, int))


def eos_token_ids(files: Mapping[str, bytes]) -> frozenset[int]:
    """Return the ids that end a sequence: the generation configuration's, else the model configuration's."""
    generation = _id_set(_parse(files, _GENERATION).get("eos_token_id"))
    return generation or _id_set(_parse(files, "config.json").get("eos_token_id"))


def load_tokenizer(files: Mapping[str, bytes]) -> FileTokenizer:
    """Make a tokenizer from the files of a model folder (``TOKENIZER_FILES``), by name.

    Raises ModelLoadError if ``tokenizer.json`` is missing or damaged, or the chat template does not parse.
    """
    if "tokenizer.json" not in files:
        raise ModelLoadError("tokenizer.json is missing: the model needs a fast (tokenizers) tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise ModelLoadError(f"tokenizer.json cannot be read: {error}") from error
    # The file may carry the settings of a training run; a prompt is never cut or padded.
    backend.no_truncation()
    backend.no_padding()
    source = _template_source(files)
    template = None if source is None else ChatTemplate(source, _special_tokens(files))
    return FileTokenizer(backend, eos_token_ids(files), template)


def tokenizer_for(version: "ModelVersion", read_file: Callable[[str], bytes]) -> Tokenizer:
    """Make the tokenizer of a registered version; ``read_file`` returns a stored file's bytes by its digest."""
    if version.is_fake:
        return ByteTokenizer()
    if version.is_without_tokenizer:
        return ApproximateTokenizer()
    wanted = {name: digest for name, digest in version.files.items() if name in TOKENIZER_FILES}
    return load_tokenizer({name: read_file(digest) for name, digest in wanted.items()})


def sampling_defaults_for(version: "ModelVersion", read_file: Callable[[str], bytes]) -> SamplingDefaults:
    """Return how a registered version's own ``generation_config.json`` wants tokens to be chosen; see above."""
    digest = version.files.get(_GENERATION)
    return read_generation(_parse({} if digest is None else {_GENERATION: read_file(digest)}, _GENERATION))
