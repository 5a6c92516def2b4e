"""How the text of an answer stands when its model may call tools of the server: for readers of the job's stream.

Such a job has several turns: answers with calls, then the answer in words. A turn that may call no more is text alone.
"""

from collections.abc import Sequence
from typing import Final

from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.generate import AnswerShape, GenerateInput, GeneratePayload

CALLS: Final = "calls"
"""The field of the payload of a job with such turns."""


class TurnForm(Strict):
    """The functions that the model may call, and what its grammar allowed: in the first turn, and in the later ones.

    ``most``: the most calls of a turn. ``left``: the calls that the job may make before its last turn.
    """

    functions: tuple[str, ...]
    first_shape: AnswerShape | None = None
    shape: AnswerShape | None = None
    most: int | None = None
    left: int

    def after(self, num_calls: int) -> "TurnForm":
        """Return the form of the turn behind one that asked for so many calls."""
        return self.model_copy(update={"first_shape": self.shape, "left": max(0, self.left - num_calls)})


def form_of(given: GenerateInput, prepared: GeneratePayload, *, has_grammar: bool, left: int) -> TurnForm:
    """Return the form of a job's turns. ``prepared``: the payload of the first one; ``has_grammar``: the request's."""
    functions: Sequence[str] = [tool.function.name for tool in given.tools or ()]
    return TurnForm(
        functions=tuple(functions),
        first_shape=prepared.answer_shape,
        shape=AnswerShape.ANSWER_OR_CALLS if has_grammar else None,
        most=1 if given.parallel_tool_calls is False else None,
        left=left,
    )
