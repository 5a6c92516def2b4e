"""Removes from a stream what a second attempt of its job repeats."""

from headrace.store.streams.checkpoints import Logprobs


class Diverged(Exception):
    """A new attempt's text does not start with the text that was already sent."""


class TextDeduplicator:
    """Joins the texts of several attempts of a job into one stream without repetition.

    OpenAI's stream cannot retract text. A greedy or seeded attempt generates the same text again; the part that was
    already sent is dropped. ``Diverged`` is raised at the first difference, so different texts are never joined.
    """

    def __init__(self) -> None:
        self._sent = ""
        self._again = ""
        self._is_repeating = False

    def restart(self, kept: str) -> str:
        """Start a new attempt that kept the text ``kept``; return its part not yet sent. Raises Diverged."""
        self._again = ""
        self._is_repeating = bool(self._sent)
        return self.add(kept)

    def add(self, text: str) -> str:
        """Add the attempt's next text; return its part not yet sent. Raises Diverged."""
        if not self._is_repeating:
            self._sent += text
            return text
        self._again += text
        shared = min(len(self._again), len(self._sent))
        if self._again[:shared] != self._sent[:shared]:
            raise Diverged
        if len(self._again) < len(self._sent):
            return ""
        new = self._again[len(self._sent) :]
        self._sent, self._is_repeating = self._again, False
        return new

    def finish(self) -> None:
        """End the attempt. Raises Diverged if its text is shorter than the text already sent."""
        if self._is_repeating and self._again != self._sent:
            raise Diverged


class TokenDeduplicator:
    """Drops the logprobs that were already sent when a later attempt repeats its tokens."""

    def __init__(self) -> None:
        self._num_sent = 0
        self._at = 0

    def restart(self, kept: Logprobs) -> Logprobs:
        """Start a new attempt that kept these tokens; return those not yet sent."""
        self._at = 0
        return self.add(kept)

    def add(self, logprobs: Logprobs) -> Logprobs:
        """Add the attempt's next tokens; return those not yet sent."""
        new = logprobs[max(0, self._num_sent - self._at) :]
        self._at += len(logprobs)
        self._num_sent = max(self._num_sent, self._at)
        return new
