"""The payload of a step with references to outputs that are not there yet: the request, with a mark for each of them.

A mark is a random text of private-use characters. So no text of a caller or of a model is taken for one, and no rule
of a policy finds something in it.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

REFERENCES: Final = "references"
"""The field of the payload that has the path of each mark. A payload without it is prepared."""

THEN: Final = "then"
"""The field of the payload of a step that may add steps when it has ended: ``{"kind": …}`` and what that kind needs
(``features.flows.running.added_steps``). The task does not see it."""

TOOLS: Final = "tools"
"""The kind of ``then`` of a step whose text may call tools of the server (``features.flows.running.tool_steps``)."""

TOOLS_WITH_APPROVAL: Final = "tools_with_approval"
"""The same, and some of the calls wait for an approval. Its own kind, because a release without approvals would make
the calls: it fails such a step instead."""

FAULT: Final = "fault"
"""The field of a call in the output of such a step that says why its arguments do not fit. Such a call is not made, and
nobody is asked for it."""

TEMPLATE: Final = "template"
"""The field of the payload with the ``PromptUse`` of a step whose input came from a prompt template."""

TEMPLATE_PLACE: Final = "template_place"
"""The field of the payload that says where such an input has the template's messages: ``head`` and ``tail``."""

SEARCH: Final = "search"
"""The field of the payload of a step ``embed`` that also searches: a ``Retrieval`` (``features.retrieval``)."""

NUMBERED_FROM: Final = "numbered_from"
"""The field of the payload of such a step that is a call of ``file_search``: the number of its first passage. The
output has it too, beside the ``text`` for the model."""

PASSAGES: Final = "passages"
"""The field of the output of such a step that has the passages, the best one first."""

_FIRST, _LAST, _DIGIT = "\ue000", "\ue001", 0xE010
_MARK = re.compile("\ue000[\ue010-\ue01f]{16}\ue001")

T = TypeVar("T")


@dataclass
class Marks:
    """The marks of one step, with the paths that they stand for."""

    paths: dict[str, str] = field(default_factory=dict)

    def mark(self, path: str) -> str:
        """Return a new mark for a path."""
        found = _FIRST + "".join(chr(_DIGIT + int(digit, 16)) for digit in secrets.token_hex(8)) + _LAST
        self.paths[found] = path
        return found


def with_texts(value: Any, texts: Mapping[str, Any]) -> Any:
    """Return a JSON value in which each mark of ``texts`` is its text."""
    if isinstance(value, str):
        # At once: a text for each of thousands of marks would take minutes.
        return _MARK.sub(lambda mark: str(texts.get(mark[0], mark[0])), value) if _FIRST in value else value
    if isinstance(value, Mapping):
        return {name: with_texts(item, texts) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(item, texts) for item in value]
    return value


def with_references(value: Any, make: Callable[[str], T], paths: Mapping[str, str]) -> Any:
    """Return a JSON value in which each text that is a mark is what ``make`` returns for its path."""
    if isinstance(value, str):
        return make(paths[value]) if value in paths else value
    if isinstance(value, Mapping):
        return {name: with_references(item, make, paths) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_references(item, make, paths) for item in value]
    return value
