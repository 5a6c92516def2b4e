"""Applies a policy to the output of a model, piece by piece and then as a whole.

    engine's text ──▶ escapes read ──▶ rules for spans ──▶ escapes written ──▶ released
                                                               └─ at the end: rules for whole texts

A rule that may block a whole text (a schema) releases nothing before the end. A rule that
only flags holds nothing back. The total released text is the same for every split into pieces. No piece ends inside a
placeholder that may be restored, so that placeholders can be restored piece by piece.
"""

from collections.abc import Iterable
from enum import StrEnum

from headrace.policy.budget import output_budget
from headrace.policy.documents import Action, Rule
from headrace.policy.guards import Guard
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.schemas import Validator, check_schema, is_json, is_valid
from headrace.policy.streaming import GuardedText, Hit
from headrace.policy.text.escapes import Escapes, written
from headrace.policy.text.languages import LanguageFinder

_CHANGING = (Action.MASK, Action.REDACT)


class OutputFormat(StrEnum):
    """The format of an output, as its reader parses it."""

    TEXT = "text"
    # Parts may be JSON: tool calls.
    CALLS = "calls"
    # JSON, which must stay valid.
    JSON = "json"


class MissingFinder(ValueError):
    """A rule cannot be applied here, for example without an extra."""


class WholeRules:
    """The compiled rules of a stage for whole texts. Raises MissingFinder."""

    def __init__(self, rules: Iterable[Rule], languages: LanguageFinder | None) -> None:
        self._rules = [(rule, None if rule.json_schema is None else check_schema(rule.json_schema)) for rule in rules]
        self._languages = languages
        self.can_block = any(rule.action is Action.BLOCK for rule, _ in self._rules)
        if languages is None and any(rule.languages for rule, _ in self._rules):
            raise MissingFinder("a rule with `languages` needs the extra `language` (py3langid)")
        if any(rule.categories for rule, _ in self._rules):
            raise MissingFinder(
                "nothing scores `categories` any more: deny `phrases` or `patterns`, or ask /v1/moderations first"
            )

    def hits(self, text: str, leaving: str) -> list[Hit]:
        """Return the hits of a text. Schemas are checked on ``leaving``, the text that will be released."""
        return [
            Hit(rule.id, kind, rule.action, 0, len(text))
            for rule, validator in self._rules
            for kind in self._kinds(rule, validator, text, leaving)
        ]

    def _kinds(self, rule: Rule, validator: Validator | None, text: str, leaving: str) -> list[str]:
        if validator is not None:
            return [] if is_valid(validator, leaving) else ["json_schema"]
        found = None if self._languages is None else self._languages.find(text)
        return [] if found is None or found in rule.languages else ["language"]


def blocking(hits: Iterable[Hit]) -> str | None:
    """Return the id of the first rule among the hits that blocks."""
    return next((hit.rule_id for hit in hits if hit.action is Action.BLOCK), None)


class GuardedOutput:
    """Takes one output in pieces and releases the checked part of it. Not thread-safe."""

    def __init__(
        self, guard: Guard, whole: WholeRules, vault: PlaceholderMap, form: OutputFormat = OutputFormat.TEXT
    ) -> None:
        self._text = GuardedText(guard, vault, budget=output_budget())
        self._whole = whole
        self._form = form
        self._escapes = None if form is OutputFormat.TEXT else Escapes()
        self._came: list[str] = []
        self._left: list[str] = []
        self._held: list[str] = []
        self.hits: list[Hit] = []
        self.blocked_by: str | None = None
        """The rule that blocked the output. Nothing more is released."""

    def feed(self, text: str) -> str:
        """Take a piece and return the text to release now. Raises ScanTooLong: then nothing more may be released."""
        if self.blocked_by is not None:
            return ""
        self._came.append(text)
        released = self._guarded(text, is_all=False)
        if self._whole.can_block:
            self._held.append(released)
            released = ""
        self._left.append(released)
        return released

    def finish(self) -> str:
        """End the output and return the rest of the text to release. Raises as ``feed``."""
        if self.blocked_by is not None:
            return ""
        released = "".join([*self._held, self._guarded("", is_all=True)])
        if self.blocked_by is not None:
            # As in ``feed``: the text before the match is released, unless everything is held back.
            return "" if self._whole.can_block else released
        self._judge("".join(self._came), "".join([*self._left, released]))
        return "" if self.blocked_by is not None else released

    def _guarded(self, text: str, *, is_all: bool) -> str:
        if self._escapes is None:
            released = self._text.finish(text) if is_all else self._text.feed(text)
        else:
            read = self._escapes.feed(text)
            released = written(self._text.finish(read + self._escapes.finish()) if is_all else self._text.feed(read))
        self.hits = list(self._text.hits)
        self.blocked_by = self._text.blocked_by
        return released

    def _judge(self, came: str, leaving: str) -> None:
        self.hits += self._whole.hits(came, leaving)
        self.blocked_by = blocking(self.hits) or self._broken_by(came, leaving)

    def _broken_by(self, came: str, leaving: str) -> str | None:
        """Return the rule that made valid JSON invalid, or None."""
        changed = next((hit.rule_id for hit in self.hits if hit.action in _CHANGING), None)
        is_broken = self._form is OutputFormat.JSON and changed is not None and is_json(came) and not is_json(leaving)
        return changed if is_broken else None
