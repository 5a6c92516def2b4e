"""Token ids to text: one output as it grows, and the spelling of single tokens for logprobs."""

import codecs
from collections.abc import Iterable

from headrace.prompts.tokenizer import Tokenizer
from headrace.store.streams.checkpoints import LogprobRow
from headrace.store.tasks.generate import TokenLogprob, TopLogprob


def spell(tokenizer: Tokenizer, logprobs: Iterable[LogprobRow]) -> tuple[TokenLogprob, ...]:
    """Return one entry for each token that is part of the text: end-of-sequence and other special tokens are not.

    Joined, the entries' bytes are the text's, but for what a stop string cut off its last token and the space before
    its first that SentencePiece drops.
    """
    return tuple(
        TokenLogprob(
            **_spelled(tokenizer, one.token_id, one.logprob),
            top_logprobs=tuple(TopLogprob(**_spelled(tokenizer, *top)) for top in one.top),
        )
        for one in logprobs
        if not tokenizer.is_silent(one.token_id)
    )


def _spelled(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, object]:
    own = tokenizer.spelling(token_id)
    return {"token": own.decode(errors="replace"), "logprob": logprob, "bytes": tuple(own)}


class Detokenizer:
    """The text of one request's output so far: ids to text, one token at a time.

    It returns only text that no later token can change. Joined, the texts equal ``Tokenizer.decode`` of all ids. The
    cost of a token does not grow with the length of the text.

    A byte-level vocabulary is a stream of bytes, so an incremental UTF-8 decoder holds exactly the bytes of an
    unfinished character. Other vocabularies decode a short window::

        ... returned ....  | context | pending |
                           '---- decode -------'   minus decode(context) = the new text

    where the context lets a decoder that treats the first token specially (SentencePiece drops its space) see that
    it is not the first. A run of byte-fallback tokens is decoded as one by the reference, all of it or none, so it
    stays pending until it ends.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._context: list[int] = []
        self._pending: list[int] = []

    def add(self, token_id: int) -> str:
        """Take the next token and return the new certain text, often empty inside a character."""
        own = self._tokenizer.token_bytes(token_id)
        if own is not None:
            return self._utf8.decode(own)
        if self._tokenizer.is_silent(token_id):
            return ""
        self._pending.append(token_id)
        if self._tokenizer.is_byte_fallback(token_id):
            return ""
        return self._decode_pending()

    def flush(self) -> str:
        """Return the rest of the text, with U+FFFD for half a character. The last call."""
        return self._utf8.decode(b"", final=True) + self._decode_pending()

    def _decode_pending(self) -> str:
        if not self._pending:
            return ""
        decode = self._tokenizer.decode
        text = decode(self._context + self._pending)[len(decode(self._context)) :]
        # A context that decodes to nothing would not stand between the next token and the start of the text.
        self._context = self._pending if decode(self._pending) else self._context + self._pending
        self._pending = []
        return text
