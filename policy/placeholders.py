"""Placeholders: short names that replace values in all texts of one job, and the values to restore.

The same value has the same placeholder in every notation: a card number with and without spaces is one value. The first
notation is the one that is restored.
"""

import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

MOST_COMPARED_CHARS = 4096
"""Only this many characters of a value are compared, so that a stream need not hold back more of a long value."""

PATTERN = r"<[A-Z][A-Z_]{1,31}_\d{1,6}>"
_PLACEHOLDER = re.compile(PATTERN)


class PlaceholderMap(BaseModel):
    """The placeholders of one job. The JSON contains the values, so it must be encrypted when it is stored.

    Its ``repr`` does not, and so a log or a traceback has none of them.
    """

    model_config = ConfigDict(extra="forbid")

    names: dict[str, str] = Field(
        default_factory=dict, repr=False, description="placeholder by kind and compared value"
    )
    values: dict[str, str] = Field(default_factory=dict, repr=False, description="values to restore, by placeholder")
    counts: dict[str, int] = Field(default_factory=dict, description="numbers used, by kind")
    taken: set[str] = Field(default_factory=set, description="placeholders that were in the text already")
    # Not stored: the map of a worker's own texts is not.
    _after: int = PrivateAttr(0)

    def reserve(self, texts: Iterable[str]) -> None:
        """Reserve the placeholders that the caller wrote, so that they never get a value."""
        self.taken.update(found for text in texts for found in _PLACEHOLDER.findall(text))

    def number_after(self, number: int) -> None:
        """Number new placeholders from behind ``number``, where no other map of the job has its own."""
        self._after = number

    def name(self, kind: str, compared: str, value: str, *, restorable: bool) -> str:
        """Return the placeholder of a value. A new value gets a new one."""
        key = f"{kind}:{compared[:MOST_COMPARED_CHARS]}"
        known = self.names.get(key)
        if known is None:
            known = self.names[key] = self._new(kind.upper())
            if restorable:
                self.values[known] = value
        return known

    def _new(self, kind: str) -> str:
        while True:
            self.counts[kind] = max(self.counts.get(kind, 0), self._after) + 1
            name = f"<{kind}_{self.counts[kind]}>"
            if name not in self.taken:
                return name
