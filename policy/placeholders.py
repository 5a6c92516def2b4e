"""Placeholders: short names that stand for values throughout one job, and the values that they may be turned back into.

The same value has the same placeholder, however it is written: card numbers with and without spaces are one. What is
put back is the form in which it came first.
"""

import json
import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

MOST_COMPARED_CHARS = 4096
"""Values are the same if so many of their characters are: a stream need not hold back more of a long one."""

PATTERN = r"<[A-Z][A-Z_]{1,31}_\d{1,6}>"
_PLACEHOLDER = re.compile(PATTERN)


class Vault(BaseModel):
    """One job's placeholders. As JSON it holds the values themselves: whoever stores it must seal it."""

    model_config = ConfigDict(extra="forbid")

    names: dict[str, str] = Field(default_factory=dict, description="placeholder by kind and compared value")
    values: dict[str, str] = Field(default_factory=dict, description="what placeholders are turned back into")
    counts: dict[str, int] = Field(default_factory=dict, description="numbers given out, by kind")
    taken: set[str] = Field(default_factory=set, description="placeholders that stood in the text already")

    def reserve(self, texts: Iterable[str]) -> None:
        """Give out no placeholder that the caller wrote: what it stands for is not ours to say."""
        self.taken.update(found for text in texts for found in _PLACEHOLDER.findall(text))

    def name(self, kind: str, compared: str, value: str, *, restorable: bool) -> str:
        """Return the placeholder of a value, a new one if it is met for the first time."""
        key = f"{kind}:{compared[:MOST_COMPARED_CHARS]}"
        known = self.names.get(key)
        if known is None:
            known = self.names[key] = self._new(kind.upper())
            if restorable:
                self.values[known] = value
        return known

    def put_back(self, text: str, *, in_json: bool = False) -> str:
        """Return the text with its placeholders turned back; ``in_json``: values as strings in JSON have them."""

        def value(found: re.Match[str]) -> str:
            known = self.values.get(found[0])
            if known is None:
                return found[0]
            return json.dumps(known, ensure_ascii=False)[1:-1] if in_json else known

        return _PLACEHOLDER.sub(value, text) if self.values else text

    def _new(self, kind: str) -> str:
        while True:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            name = f"<{kind}_{self.counts[kind]}>"
            if name not in self.taken:
                return name
