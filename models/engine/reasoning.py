"""Where the reasoning of a request ends and its answer begins, by its tokens: for budgets, grammars and stop strings.

    begin ──opening──▶ reasoning ──closing──▶ answer
      └──── any other token, or a mark for an answer without reasoning ────▲

The state is a function of the tokens, so an attempt that continues another one finds it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningTokens:
    """The marks of a model's reasoning as tokens, and the bounds of one request.

    ``direct`` may stand before an answer without reasoning. ``is_open``: the prompt ends with the opening.
    ``is_forced``: the request begins with the opening. At the ``budget``, in tokens, the closing is forced.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    direct: tuple[int, ...] = ()
    is_open: bool = False
    is_forced: bool = False
    budget: int | None = None


class ReasoningTracker:
    """Follows one output. ``num_tokens`` is the length of the reasoning without its marks."""

    def __init__(self, marks: ReasoningTokens) -> None:
        self._marks = marks
        self._begin()

    def _begin(self) -> None:
        self._num_taken = 0
        self._begun: tuple[int, ...] | None = None if self._marks.is_open else ()
        self._end: tuple[int, ...] = ()  # the last tokens, with which the closing begins
        self.num_tokens = 0
        self.answer_at: int | None = None
        """The number of tokens before the answer; None as long as it has not begun."""

    @property
    def forced(self) -> int | None:
        """The token that must come next, None if the model chooses."""
        if self.answer_at is not None:
            return None
        if self._begun is not None:
            return self._marks.opening[len(self._begun)] if self._marks.is_forced else None
        is_used_up = self._marks.budget is not None and self.num_tokens >= self._marks.budget
        return self._marks.closing[len(self._end)] if is_used_up or len(self._end) > 1 else None

    @property
    def num_left(self) -> int | None:
        """The tokens until the budget is used up, with an opening that may come first; None without a budget."""
        if self._marks.budget is None:
            return None
        begins = 0 if self._begun is None else len(self._marks.opening) - len(self._begun)
        return begins + self._marks.budget - self.num_tokens

    def follow(self, output: Sequence[int]) -> None:
        """Take the new tokens of an output. It begins again if the output is shorter than before."""
        if len(output) < self._num_taken:
            self._begin()
        for token in output[self._num_taken :]:
            self.add(token)

    def add(self, token: int) -> None:
        """Take the next token."""
        self._num_taken += 1
        if self.answer_at is not None:
            return
        if self._begun is None:
            self._add_reasoning(token)
            return
        self._begun = (*self._begun, token)
        if self._begun == self._marks.opening:
            self._begun = None
        elif self._begun == self._marks.direct:
            self.answer_at = self._num_taken
        elif all(mark[: len(self._begun)] != self._begun for mark in (self._marks.opening, self._marks.direct)):
            self.answer_at = 0

    def _add_reasoning(self, token: int) -> None:
        self.num_tokens += 1
        closing, tokens = self._marks.closing, (*self._end, token)
        self._end = next(tokens[at:] for at in range(len(tokens) + 1) if closing[: len(tokens) - at] == tokens[at:])
        if self._end == closing:
            self.num_tokens -= len(closing)
            self.answer_at = self._num_taken


def num_reasoning_tokens(marks: ReasoningTokens | None, output: Sequence[int]) -> int:
    """Return how many tokens of an output are reasoning, without its marks."""
    if marks is None:
        return 0
    tracker = ReasoningTracker(marks)
    tracker.follow(output)
    return tracker.num_tokens
