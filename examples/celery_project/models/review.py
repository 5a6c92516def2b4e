"""A review of a product."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Review:
    """``number`` is its key in the project's store."""

    number: int
    text: str

    @property
    def question(self) -> str:
        """What the model is asked."""
        return f"Review {self.number}: {self.text}\nIs it good or bad?"
