"""A scripted model: the test gives the pieces of its output, one per token."""

from collections.abc import Sequence

from headrace.models.engine.runner import Row
from headrace.models.fakes.fake import EOS, FakeRunner
from headrace.prompts.tokenizer import ByteTokenizer

_FIRST = 1000


class PieceTokenizer(ByteTokenizer):
    """Bytes, and beside them a token for every piece that was ever asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def token(self, piece: str) -> int:
        """Return a token that makes this text."""
        self._pieces.append(piece.encode())
        return _FIRST + len(self._pieces) - 1

    def token_bytes(self, token_id: int) -> bytes | None:
        return super().token_bytes(token_id) if token_id < _FIRST else self._pieces[token_id - _FIRST]

    def is_silent(self, token_id: int) -> bool:
        return EOS <= token_id < _FIRST


class SayingRunner(FakeRunner):
    """Answers a prompt that contains ``(say N)`` with the N-th script."""

    def __init__(self, tokenizer: PieceTokenizer, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._tokenizer = tokenizer
        self._scripts: list[list[int]] = []

    def script(self, pieces: Sequence[str]) -> str:
        """Return the prompt text that selects an answer of these pieces."""
        self._scripts.append([*map(self._tokenizer.token, pieces), EOS])
        return f"(say {len(self._scripts) - 1})"

    def _next(self, row: Row, tokens: Sequence[int]) -> int:
        prompt = bytes(row.request.prompt).decode()
        script = self._scripts[int(prompt.rpartition("(say ")[2].partition(")")[0])]
        return script[len(tokens) - len(row.request.prompt)]
