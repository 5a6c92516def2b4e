"""Shortens an input that leaves no room for an answer, as its request asks.

            conversation                                    raw prompt
    oldest  its oldest turns                                -
    left    its oldest turns, then the beginning of the     its beginning
            last user message
    middle  the turns after the first one, then the         its middle
            middle of the last user message

The system messages at the beginning of a conversation stay, and all messages of a prompt template. A turn is a user
message with all that follows it, so a tool's result is never without its call. Tokens are counted with the tokenizer of
the model version; a text is cut between characters, so that its special tokens stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.prompt_reference import TemplatePlace
from headrace.store.payloads.sampling_params import Truncated, Truncation
from headrace.store.tasks.generate import GenerateInput

Measure = Callable[[GenerateInput], int]
"""Returns the tokens of an input with one prompt."""

_TRIES = 12
"""Most lengths of a text that are tried: each costs an encoding of it."""

_Turn = Sequence[ChatMessage]
Items = TypeVar("Items", str, tuple[int, ...])


def truncate(
    source: GenerateInput, how: Truncation, room: int, measure: Measure, kept: TemplatePlace | None = None
) -> tuple[GenerateInput, Truncated | None]:
    """Return the input with at most ``room`` tokens for each prompt, and what was left out; None if nothing was.

    ``kept``: where the messages of a prompt template are; a raw prompt that was made from one is not cut at all.

    What cannot be shortened that far stays too long: the caller refuses it.
    """
    if source.messages is not None:
        return _conversation(source, _parts(source.messages, kept or TemplatePlace(0)), how, room, measure)
    if not how.cuts_texts or kept is not None:
        return source, None
    before = source.each_prompt
    after = [_raw_prompt(one, how, room, measure) for one in before]
    num_tokens = sum(measure(one) - measure(cut) for one, cut in zip(before, after, strict=True) if one != cut)
    if not num_tokens:
        return source, None
    if source.prompts is None:
        return after[0], Truncated(strategy=how, tokens=num_tokens)
    prompts = tuple(one.prompt if one.token_ids is None else one.token_ids for one in after)
    return source.model_copy(update={"prompts": prompts}), Truncated(strategy=how, tokens=num_tokens)


def _conversation(
    source: GenerateInput, parts: "_Parts", how: Truncation, room: int, measure: Measure
) -> tuple[GenerateInput, Truncated | None]:
    total = measure(source)
    if total <= room:
        return source, None
    options = list(_kept_turns(parts, how))

    def with_turns(kept: Sequence[_Turn]) -> GenerateInput:
        between = (message for turn in kept for message in turn)
        return source.model_copy(update={"messages": (*parts.head, *between, *parts.tail)})

    # Fewer turns never have more tokens, so the first option that fits is found by halving.
    low, high = 0, len(options) - 1
    while low < high:
        middle = (low + high) // 2
        if measure(with_turns(options[middle])) <= room:
            high = middle
        else:
            low = middle + 1
    kept = options[low]
    cut = with_turns(kept)
    if how.cuts_texts and not parts.tail and low == len(options) - 1 and measure(cut) > room:
        cut = _with_shorter_text(cut, len(parts.head), how, room, measure)
    num_turns = len(parts.turns) - len(kept)
    if cut == source:
        return source, None
    return cut, Truncated(strategy=how, tokens=max(0, total - measure(cut)), turns=num_turns)


def _kept_turns(parts: "_Parts", how: Truncation) -> Iterator[Sequence[_Turn]]:
    """Yield what may stay of the turns, the most first. The last message of the user always stays."""
    turns = parts.turns
    least = 0 if parts.tail else 1
    if how is Truncation.MIDDLE:
        for num in range(len(turns) - 1):
            yield (*turns[:1], *turns[1 + num :])
        yield turns[len(turns) - least :]
    else:
        for num in range(len(turns) + 1 - least):
            yield turns[num:]


def _with_shorter_text(
    source: GenerateInput, place: int, how: Truncation, room: int, measure: Measure
) -> GenerateInput:
    """Return the conversation with less of the text of the user message at ``place``."""
    messages = source.messages or ()
    if place >= len(messages) or messages[place].role is not Role.USER:
        return source

    def with_text(text: str) -> GenerateInput:
        message = messages[place].model_copy(update={"content": text})
        return source.model_copy(update={"messages": (*messages[:place], message, *messages[place + 1 :])})

    return _shorter(messages[place].content or "", how, room, with_text, measure) or source


def _raw_prompt(one: GenerateInput, how: Truncation, room: int, measure: Measure) -> GenerateInput:
    if one.token_ids is not None:
        if len(one.token_ids) <= room or room < 1:
            return one
        return one.model_copy(update={"token_ids": _part(one.token_ids, room, how)})
    if measure(one) <= room:
        return one
    shorter = _shorter(one.prompt or "", how, room, lambda text: one.model_copy(update={"prompt": text}), measure)
    return shorter or one


def _shorter(
    text: str, how: Truncation, room: int, with_text: Callable[[str], GenerateInput], measure: Measure
) -> GenerateInput | None:
    """Return the input with the longest part of the text that was found to fit; None if no part fits.

    The next length to try follows from the tokens that the last one had too many or too few.
    """
    total = measure(with_text(text))
    chars_a_token = len(text) / max(1, total)
    best: GenerateInput | None = None
    low, high = 0, len(text)
    size = int(room * chars_a_token)
    for _ in range(_TRIES):
        if high - low < 2:
            break
        size = min(max(size, low + 1), high - 1)
        tried = with_text(_part(text, size, how))
        num_tokens = measure(tried)
        if num_tokens <= room:
            best, low = tried, size
        else:
            high = size
        if num_tokens == room:
            break
        size += int((room - num_tokens) * chars_a_token) or (1 if num_tokens < room else -1)
    return best


def _part(items: Items, size: int, how: Truncation) -> Items:
    """Return ``size`` of the items, without those at the beginning or in the middle."""
    if how is Truncation.MIDDLE:
        return items[: (size + 1) // 2] + items[len(items) - size // 2 :]
    return items[len(items) - size :]


@dataclass(frozen=True, slots=True)
class _Parts:
    """A conversation: what stays at its beginning, its turns, and what stays at its end."""

    head: Sequence[ChatMessage]
    turns: Sequence[_Turn]
    tail: Sequence[ChatMessage]


def _parts(messages: Sequence[ChatMessage], kept: TemplatePlace) -> _Parts:
    """Divide a conversation; what is between head and tail is cut before each user message, at least one turn."""
    is_turn = (index for index, one in enumerate(messages) if index >= kept.head and one.role is not Role.SYSTEM)
    start = next(is_turn, len(messages))
    end = max(start, len(messages) - kept.tail)
    turns: list[list[ChatMessage]] = [[]]
    for message in messages[start:end]:
        if message.role is Role.USER and turns[-1]:
            turns.append([])
        turns[-1].append(message)
    return _Parts(messages[:start], turns, messages[end:])
