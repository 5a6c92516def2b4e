"""A policy, ready to be applied: pure functions from texts to verdicts, which name rules and places, never the text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from policy.budget import Budget, output_budget
from policy.classification.classifiers import Classifier, WordListClassifier
from policy.documents import Action, PolicyDocument, Stage
from policy.guards import Guard
from policy.outputs import Form, GuardedOutput, WholeRules, blocking
from policy.placeholders import Vault
from policy.recognisers.recogniser import EntityFinder
from policy.streaming import GuardedText, Hit
from policy.text.escapes import STAND_INS, unescaped, written
from policy.text.languages import LanguageFinder, installed


class Policy:
    """A document; each side of it is compiled when it is first asked for. Safe in many threads."""

    def __init__(
        self,
        document: PolicyDocument,
        *,
        classifier: Classifier | None = None,
        finder: EntityFinder | None = None,
        languages: LanguageFinder | None = None,
    ) -> None:
        self.document = document
        self.finder = finder
        self._classifier = classifier or WordListClassifier()
        self._languages = languages

    @cached_property
    def input(self) -> Guard:
        """The rules about places in inputs. Raises BadPattern."""
        return Guard(self.document, Stage.INPUT)

    @cached_property
    def output(self) -> Guard:
        """The rules about places in outputs. Raises BadPattern."""
        return Guard(self.document, Stage.OUTPUT)

    @cached_property
    def whole_input(self) -> WholeRules:
        """The rules about whole inputs. Raises MissingFinder where one cannot be followed."""
        rules = self.input.whole_rules
        languages = self._languages or (installed() if any(rule.languages for rule in rules) else None)
        return WholeRules(rules, self._classifier, languages)

    @cached_property
    def whole_output(self) -> WholeRules:
        """The rules about whole outputs."""
        return WholeRules(self.output.whole_rules, self._classifier, None)

    def check(self) -> None:
        """Raise BadPattern or MissingFinder for what cannot be followed."""
        for _ in (self.input, self.output, self.whole_input, self.whole_output):
            pass

    @property
    def restores(self) -> bool:
        """True if values are put back where a model's answer names their placeholders."""
        return any(rule.restore for rule in self.document.rules)

    @property
    def looks_at_outputs(self) -> bool:
        """True if a rule is about what comes back, or values are put back into it."""
        return self.restores or any(self.document.rules_for(Stage.OUTPUT))

    @property
    def changes_outputs(self) -> bool:
        """True if what leaves may differ from what the model said, so that nothing of that may be shown or kept."""
        changing = (Action.MASK, Action.REDACT, Action.BLOCK)
        return self.restores or any(rule.action in changing for rule in self.document.rules_for(Stage.OUTPUT))

    def guarded_output(self, vault: Vault, form: Form = Form.TEXT) -> GuardedOutput:
        """Return what takes an output piece by piece; what it redacts is named by ``vault``."""
        return GuardedOutput(self.output, self.whole_output, vault, form)


@dataclass(frozen=True, slots=True)
class InputVerdict:
    """What becomes of the texts of an input, in their order; none if a rule blocks.

    The hits are by text. The vault holds the placeholders that stand in the texts.
    """

    texts: tuple[str, ...]
    hits: tuple[tuple[Hit, ...], ...]
    blocked_by: str | None
    vault: Vault = field(repr=False)


@dataclass(frozen=True, slots=True)
class OutputVerdict:
    """What becomes of an output. If a rule blocks, ``text`` is what stood before."""

    text: str
    hits: tuple[Hit, ...]
    blocked_by: str | None


def apply_input(
    policy: Policy, texts: Sequence[str], before: Vault | None = None, budget: Budget | None = None
) -> InputVerdict:
    """Apply a policy to the texts of one input, which goes on from what the vault ``before`` is of.

    Raises ScanTooLong: the input must not pass then. ``budget`` None is one for this input alone.
    """
    budget = budget or Budget()
    vault = Vault() if before is None else before.model_copy(deep=True)
    vault.reserve(texts)
    done: list[str] = []
    hits: list[tuple[Hit, ...]] = []
    for text in texts:
        guarded, said, vault = _guarded_input(policy, text, vault, budget)
        done.append(said)
        found = policy.whole_input.hits(text, text)
        hits.append((*guarded.hits, *found))
        blocked_by = guarded.blocked_by or blocking(found)
        if blocked_by is not None:
            return InputVerdict((), tuple(hits), blocked_by, Vault())
    return InputVerdict(tuple(done), tuple(hits), None, vault)


def _guarded_input(policy: Policy, text: str, vault: Vault, budget: Budget) -> tuple[GuardedText, str, Vault]:
    """Guard a text as it stands, or as JSON reads it if something else is found then: é may be written \\u00e9."""
    read = unescaped(text)
    before = vault if read == text else vault.model_copy(deep=True)
    guarded = GuardedText(policy.input, vault, policy.finder, budget)
    said = guarded.finish(text)
    if read == text or guarded.blocked_by is not None:
        return guarded, said, vault
    as_read = GuardedText(policy.input, before, policy.finder, budget)
    told = as_read.finish(read)
    if as_read.blocked_by is None and told == unescaped(said):
        return guarded, said, vault
    before.values = {name: value.translate(STAND_INS) for name, value in before.values.items()}
    return as_read, written(told), before


def apply_output(policy: Policy, text: str, vault: Vault | None = None) -> OutputVerdict:
    """Apply a policy to a whole output. ``vault`` is that of the job's input, whose placeholders are turned back.

    Raises ScanTooLong.
    """
    guarded = policy.guarded_output(Vault() if vault is None else vault.model_copy(deep=True))
    done = guarded.feed(text) + guarded.finish()
    return OutputVerdict(done, tuple(guarded.hits), guarded.blocked_by)


def output_stream(policy: Policy, vault: Vault | None = None) -> GuardedText:
    """Return what takes an output piece by piece and makes of it what ``apply_output`` makes of the whole."""
    copy = Vault() if vault is None else vault.model_copy(deep=True)
    return GuardedText(policy.output, copy, budget=output_budget())
