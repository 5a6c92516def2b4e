"""Detokenizer: ids to text, one token at a time. Returns only text that no later token can change.

Joined, the texts equal ``Tokenizer.decode`` of all ids. The cost a token does not grow with the length of the text.
"""

import codecs

from prompts.tokenizer import Tokenizer


class Detokenizer:
    """The text of one request's output so far.

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
