"""What is left out of an input that is too long for its model."""

from enum import StrEnum

from pydantic import Field

from headrace.store.payloads.strict_model import Strict


class Truncation(StrEnum):
    """The treatment of an input that leaves no room for an answer in the context window (``prompts.truncation``).

    ``disabled`` and ``auto`` are OpenAI's names of ``refuse`` and ``oldest_turns``.
    """

    REFUSE = "refuse"
    DISABLED = "disabled"
    OLDEST_TURNS = "oldest_turns"
    AUTO = "auto"
    LEFT = "left"
    MIDDLE = "middle"

    @property
    def refuses(self) -> bool:
        """True if nothing is left out."""
        return self in (Truncation.REFUSE, Truncation.DISABLED)

    @property
    def cuts_texts(self) -> bool:
        """True if a text may be cut, not only turns of a conversation left out."""
        return self in (Truncation.LEFT, Truncation.MIDDLE)


class Truncated(Strict):
    """What was left out of an input: prompt tokens, and whole turns of a conversation."""

    strategy: Truncation = Field(description="the `truncation` of the request")
    tokens: int = Field(description="prompt tokens that were left out")
    turns: int = Field(0, description="turns of the conversation that were left out as a whole")

    def as_header(self) -> str:
        """Return it as the value of a header."""
        return f"{self.strategy}; tokens={self.tokens}; turns={self.turns}"

    def plus(self, earlier: "Truncated | None") -> "Truncated":
        """Return both together."""
        if earlier is None:
            return self
        return self.model_copy(update={"tokens": self.tokens + earlier.tokens, "turns": self.turns + earlier.turns})
