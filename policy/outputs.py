"""What comes back from a model under a policy, piece by piece and then as a whole.

    engine's text ──▶ escapes read ──▶ rules for places ──▶ escapes written ──▶ leaves
                                                                └─ at the end: rules for whole texts

A rule that may block a whole text (a classifier's categories, a schema) lets nothing leave before the end; one that
only flags holds nothing. The pieces are a function of the pieces that came, and together they are the same however the
text was cut. No piece ends inside a placeholder that may be put back, so that can be done piece by piece.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from policy.budget import output_budget
from policy.classification.classifiers import Classifier
from policy.documents import Action, Rule
from policy.guards import Guard
from policy.placeholders import Vault
from policy.schemas import Validator, check_schema, is_json, is_valid
from policy.streaming import GuardedText, Hit
from policy.text.escapes import Escapes, written
from policy.text.languages import LanguageFinder

_CHANGING = (Action.MASK, Action.REDACT)


class Form(StrEnum):
    """How a text is read by those who get it."""

    TEXT = "text"
    # Some of it may be JSON: calls of functions.
    CALLS = "calls"
    # It is JSON, and must be so when it leaves.
    JSON = "json"


class MissingFinder(ValueError):
    """A rule needs what is not installed here."""


class WholeRules:
    """The rules of a stage that are about whole texts, compiled. Raises MissingFinder."""

    def __init__(self, rules: Iterable[Rule], classifier: Classifier, languages: LanguageFinder | None) -> None:
        self._rules = [(rule, None if rule.json_schema is None else check_schema(rule.json_schema)) for rule in rules]
        self._classifier = classifier
        self._languages = languages
        self.can_block = any(rule.action is Action.BLOCK for rule, _ in self._rules)
        if languages is None and any(rule.languages for rule, _ in self._rules):
            raise MissingFinder("a rule with `languages` needs the extra `language` (py3langid)")

    def hits(self, text: str, leaving: str) -> list[Hit]:
        """Return what rules say of a text; schemas hold for what of it is ``leaving``."""
        has_categories = any(rule.categories for rule, _ in self._rules)
        scores = self._classifier.classify(text) if has_categories else {}
        return [
            Hit(rule.id, kind, rule.action, 0, len(text))
            for rule, validator in self._rules
            for kind in self._kinds(rule, validator, text, leaving, scores)
        ]

    def _kinds(
        self, rule: Rule, validator: Validator, text: str, leaving: str, scores: Mapping[str, float]
    ) -> list[str]:
        if validator is not None:
            return [] if is_valid(validator, leaving) else ["json_schema"]
        if rule.languages:
            found = None if self._languages is None else self._languages.find(text)
            return [] if found is None or found in rule.languages else ["language"]
        return [category for category, least in rule.categories.items() if scores.get(category, 0) >= least]


def blocking(hits: Iterable[Hit]) -> str | None:
    """Return the id of the first rule among the hits that blocks."""
    return next((hit.rule_id for hit in hits if hit.action is Action.BLOCK), None)


class GuardedOutput:
    """Takes one output in pieces and gives back what of it may leave. One thread at a time."""

    def __init__(self, guard: Guard, whole: WholeRules, vault: Vault, form: Form = Form.TEXT) -> None:
        self._text = GuardedText(guard, vault, budget=output_budget())
        self._whole = whole
        self._form = form
        self._escapes = None if form is Form.TEXT else Escapes()
        self._came: list[str] = []
        self._left: list[str] = []
        self._held: list[str] = []
        self.hits: list[Hit] = []
        self.blocked_by: str | None = None
        """The rule that ended the output. Nothing leaves any more."""

    def feed(self, text: str) -> str:
        """Take a piece; return what may leave now. Raises ScanTooLong: nothing may leave any more then."""
        if self.blocked_by is not None:
            return ""
        self._came.append(text)
        said = self._guarded(text, is_all=False)
        if self._whole.can_block:
            self._held.append(said)
            said = ""
        self._left.append(said)
        return said

    def finish(self) -> str:
        """The output is complete; return the rest of what may leave. Raises as ``feed`` does."""
        if self.blocked_by is not None:
            return ""
        said = "".join([*self._held, self._guarded("", is_all=True)])
        if self.blocked_by is not None:
            # As if it had been met a piece earlier: what stood before the match leaves, unless all was to be held.
            return "" if self._whole.can_block else said
        self._judge("".join(self._came), "".join([*self._left, said]))
        return "" if self.blocked_by is not None else said

    def _guarded(self, text: str, *, is_all: bool) -> str:
        if self._escapes is None:
            said = self._text.finish(text) if is_all else self._text.feed(text)
        else:
            read = self._escapes.feed(text)
            said = written(self._text.finish(read + self._escapes.finish()) if is_all else self._text.feed(read))
        self.hits = list(self._text.hits)
        self.blocked_by = self._text.blocked_by
        return said

    def _judge(self, came: str, leaving: str) -> None:
        self.hits += self._whole.hits(came, leaving)
        self.blocked_by = blocking(self.hits) or self._broken_by(came, leaving)

    def _broken_by(self, came: str, leaving: str) -> str | None:
        """Return the rule that made of JSON what is none any more."""
        changed = next((hit.rule_id for hit in self.hits if hit.action in _CHANGING), None)
        is_broken = self._form is Form.JSON and changed is not None and is_json(came) and not is_json(leaving)
        return changed if is_broken else None
