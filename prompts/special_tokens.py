"""Keeps special tokens in the texts of a request as text, so that no text begins another turn of the conversation.

A tokenizer finds its special tokens wherever their text stands. So a text that has one gets a mark inside it, the chat
template writes the conversation around it, and the parts between the marks are encoded each by itself. A text without a
special token gets no mark: its prompt is encoded as a whole, as always.
"""

import re
from collections.abc import Callable, Sequence

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import ChatMessage
from headrace.store.tasks.generate import GenerateInput

_MARKS = range(0xE000, 0xF8FF)
"""Characters for private use: no text and no chat template means one of them."""


def divided(text: str, special: Sequence[str]) -> list[str]:
    """Return the text in parts, none of which has one of the ``special`` texts."""
    # Of one letter there is no part, and a vocabulary has none.
    found = [re.escape(one) for one in sorted(special, key=len, reverse=True) if len(one) > 1]
    if not found:
        return [text]
    # Looking ahead also finds those that begin inside another one.
    inside = [match.start() + 1 for match in re.finditer(f"(?={'|'.join(found)})", text)]
    return [text[start:end] for start, end in zip([0, *inside], [*inside, len(text)], strict=True)]


def with_marks(source: GenerateInput, parts_of: Callable[[str], list[str]]) -> tuple[GenerateInput, str]:
    """Return the input with a mark between the parts of its texts, and the mark; it is empty if there is none.

    Raises InvalidRequest.
    """
    messages = source.messages or ()
    texts = [source.prompt, *(text for one in messages for text in (one.content, one.reasoning_content))]
    parts = {text: parts_of(text) for text in texts if text}
    if all(len(one) == 1 for one in parts.values()):
        return source, ""
    taken = set("".join(parts))
    mark = next((chr(code) for code in _MARKS if chr(code) not in taken), None)
    if mark is None:
        raise InvalidRequest("the texts have every character for private use: leave one out", param="input")

    def marked(text: str | None) -> str | None:
        return mark.join(parts[text]) if text else text

    def with_text(message: ChatMessage) -> ChatMessage:
        texts = {"content": marked(message.content), "reasoning_content": marked(message.reasoning_content)}
        return message.model_copy(update=texts)

    changed = {"prompt": marked(source.prompt), "messages": tuple(map(with_text, messages)) or None}
    return source.model_copy(update=changed), mark
