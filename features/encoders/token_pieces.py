"""The tokens of a vocabulary as text, for putting them together to words and entities."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import tokenizers

from headrace.prompts.tokenizer import ByteTokenizer, special_token
from headrace.store.errors import ModelLoadError

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class TokenPieces(Protocol):
    """A vocabulary. ``marks_subwords``: its pieces inside a word begin with a mark, such as BERT's ``##``."""

    unknown_id: int | None
    marks_subwords: bool

    def text(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it."""
        ...

    def join(self, pieces: Sequence[str]) -> str:
        """Return spelled tokens as plain text."""
        ...


class FilePieces:
    """The vocabulary of a model folder's ``tokenizer.json``."""

    def __init__(self, backend: tokenizers.Tokenizer, unknown: str | None) -> None:
        self._backend = backend
        unknown = unknown or getattr(backend.model, "unk_token", None)
        self.unknown_id = None if unknown is None else backend.token_to_id(unknown)
        self.marks_subwords = bool(getattr(backend.model, "continuing_subword_prefix", None))

    def text(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it."""
        return self._backend.id_to_token(token_id) or ""

    def join(self, pieces: Sequence[str]) -> str:
        """Return spelled tokens as plain text."""
        decoder = self._backend.decoder
        return " ".join(pieces) if decoder is None else str(decoder.decode(list(pieces)))


class BytePieces:
    """The vocabulary of the models without weights: a token is a byte."""

    marks_subwords = False

    def __init__(self) -> None:
        self.unknown_id: int | None = None
        self._tokenizer = ByteTokenizer()

    def text(self, token_id: int) -> str:
        """Return the byte as a character."""
        return self._tokenizer.decode([token_id])

    def join(self, pieces: Sequence[str]) -> str:
        """Return the characters."""
        return "".join(pieces)


def load_pieces(files: Mapping[str, bytes]) -> FilePieces:
    """Return the vocabulary of a model folder's files, by name. Raises ModelLoadError if they are damaged."""
    try:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise ModelLoadError(f"tokenizer.json cannot be read: {error}") from error
    return FilePieces(backend, special_token(files, "unk_token"))


def pieces_for(version: "ModelVersion", read_file: Callable[[str], bytes]) -> TokenPieces:
    """Return the vocabulary of a registered version. Raises ModelLoadError if its files are damaged."""
    if version.is_fake:
        return BytePieces()
    return load_pieces({name: read_file(digest) for name, digest in version.files.items() if name in _FILES})
