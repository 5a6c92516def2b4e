"""Applies a policy: pure functions from texts to verdicts. A verdict has rules and positions, never the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from headrace.policy.budget import Budget
from headrace.policy.documents import Action, PolicyDocument, Stage
from headrace.policy.guards import Guard
from headrace.policy.outputs import GuardedOutput, OutputFormat, WholeRules, blocking
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.recognisers.recogniser import EntityFinder
from headrace.policy.streaming import GuardedText, Hit
from headrace.policy.text.escapes import STAND_INS, unescaped, written
from headrace.policy.text.languages import LanguageFinder, installed


class Policy:
    """A policy document. The rules of each stage are compiled at their first use. Thread-safe."""

    def __init__(
        self,
        document: PolicyDocument,
        *,
        finder: EntityFinder | None = None,
        languages: LanguageFinder | None = None,
    ) -> None:
        self.document = document
        self.finder = finder
        self._languages = languages

    @cached_property
    def input(self) -> Guard:
        """The rules for spans of inputs. Raises BadPattern."""
        return Guard(self.document, Stage.INPUT)

    @cached_property
    def output(self) -> Guard:
        """The rules for spans of outputs. Raises BadPattern."""
        return Guard(self.document, Stage.OUTPUT)

    @cached_property
    def whole_input(self) -> WholeRules:
        """The rules for whole inputs. Raises MissingFinder if a rule needs an extra that is missing."""
        rules = self.input.whole_rules
        languages = self._languages or (installed() if any(rule.languages for rule in rules) else None)
        return WholeRules(rules, languages)

    @cached_property
    def whole_output(self) -> WholeRules:
        """The rules for whole outputs. Raises as ``whole_input``."""
        return WholeRules(self.output.whole_rules, None)

    def check(self) -> None:
        """Raise BadPattern or MissingFinder if a rule cannot be applied."""
        for _ in (self.input, self.output, self.whole_input, self.whole_output):
            pass

    @property
    def restores(self) -> bool:
        """True if placeholders in the output are replaced by their values."""
        return any(rule.restore for rule in self.document.rules)

    @property
    def looks_at_outputs(self) -> bool:
        """True if a rule applies to outputs, or values are restored in them."""
        return self.restores or any(self.document.rules_for(Stage.OUTPUT))

    @property
    def changes_outputs(self) -> bool:
        """True if the released text may differ from the model's output, which must then not be shown or stored."""
        changing = (Action.MASK, Action.REDACT, Action.BLOCK)
        return self.restores or any(rule.action in changing for rule in self.document.rules_for(Stage.OUTPUT))

    def guarded_output(self, vault: PlaceholderMap, form: OutputFormat = OutputFormat.TEXT) -> GuardedOutput:
        """Return a GuardedOutput. ``vault`` gives the placeholders of redacted values."""
        return GuardedOutput(self.output, self.whole_output, vault, form)


@dataclass(frozen=True, slots=True)
class InputVerdict:
    """The texts of an input after the policy, in their order; none if a rule blocks.

    The hits are by text. The vault holds the placeholders in the texts.
    """

    texts: tuple[str, ...]
    hits: tuple[tuple[Hit, ...], ...]
    blocked_by: str | None
    vault: PlaceholderMap


@dataclass(frozen=True, slots=True)
class OutputVerdict:
    """An output after the policy. If a rule blocks, ``text`` is the text before the match."""

    text: str
    hits: tuple[Hit, ...]
    blocked_by: str | None


def apply_input(
    policy: Policy, texts: Sequence[str], before: PlaceholderMap | None = None, budget: Budget | None = None
) -> InputVerdict:
    """Apply a policy to the texts of one input. ``before`` has the placeholders of an earlier turn.

    Raises ScanTooLong: then the input must not pass. Without ``budget``, the input gets its own.
    """
    budget = budget or Budget()
    vault = PlaceholderMap() if before is None else before.model_copy(deep=True)
    vault.reserve(texts)
    done: list[str] = []
    hits: list[tuple[Hit, ...]] = []
    for text in texts:
        guarded, result, vault = _guarded_input(policy, text, vault, budget)
        done.append(result)
        found = policy.whole_input.hits(text, text)
        hits.append((*guarded.hits, *found))
        blocked_by = guarded.blocked_by or blocking(found)
        if blocked_by is not None:
            return InputVerdict((), tuple(hits), blocked_by, PlaceholderMap())
    return InputVerdict(tuple(done), tuple(hits), None, vault)


def _guarded_input(
    policy: Policy, text: str, vault: PlaceholderMap, budget: Budget
) -> tuple[GuardedText, str, PlaceholderMap]:
    """Scan a text as it is, and with JSON escapes decoded (\\u00e9 is é). The decoded scan wins if it differs."""
    read = unescaped(text)
    before = vault if read == text else vault.model_copy(deep=True)
    guarded = GuardedText(policy.input, vault, policy.finder, budget)
    result = guarded.finish(text)
    if read == text or guarded.blocked_by is not None:
        return guarded, result, vault
    as_read = GuardedText(policy.input, before, policy.finder, budget)
    read_result = as_read.finish(read)
    if as_read.blocked_by is None and read_result == unescaped(result):
        return guarded, result, vault
    before.values = {name: value.translate(STAND_INS) for name, value in before.values.items()}
    return as_read, written(read_result), before


def apply_output(policy: Policy, text: str, vault: PlaceholderMap | None = None) -> OutputVerdict:
    """Apply a policy to a whole output. ``vault`` is from the input of the job; its values are restored.

    Raises ScanTooLong.
    """
    guarded = policy.guarded_output(PlaceholderMap() if vault is None else vault.model_copy(deep=True))
    done = guarded.feed(text) + guarded.finish()
    return OutputVerdict(done, tuple(guarded.hits), guarded.blocked_by)
