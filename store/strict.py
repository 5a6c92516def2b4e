"""What every stored body is made of: no unknown fields, nothing that changes, texts of a bounded length."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

MAX_TEXT_CHARS = 1_000_000
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS)]


class Strict(BaseModel):
    """A frozen body that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
