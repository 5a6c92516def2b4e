"""A policy, ready to be applied: pure functions from texts to verdicts, which name rules and places, never the text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from policy.classifiers import Classifier, WordListClassifier
from policy.documents import Action, PolicyDocument, Stage
from policy.guards import Guard
from policy.placeholders import Vault
from policy.recognisers import EntityFinder
from policy.streaming import GuardedText, Hit


class Policy:
    """A document, compiled. Safe in many threads."""

    def __init__(
        self, document: PolicyDocument, *, classifier: Classifier | None = None, finder: EntityFinder | None = None
    ) -> None:
        self.document = document
        self.input = Guard(document, Stage.INPUT)
        self.output = Guard(document, Stage.OUTPUT)
        self.classifier = classifier or WordListClassifier()
        self.finder = finder


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


def apply_input(policy: Policy, texts: Sequence[str]) -> InputVerdict:
    """Apply a policy to the texts of one input."""
    vault = Vault()
    vault.reserve(texts)
    done: list[str] = []
    hits: list[tuple[Hit, ...]] = []
    for text in texts:
        guarded = GuardedText(policy.input, vault, policy.finder)
        done.append(guarded.finish(text))
        found, blocked_by = _classified(policy, text)
        hits.append((*guarded.hits, *found))
        blocked_by = guarded.blocked_by or blocked_by
        if blocked_by is not None:
            return InputVerdict((), tuple(hits), blocked_by, Vault())
    return InputVerdict(tuple(done), tuple(hits), None, vault)


def _classified(policy: Policy, text: str) -> tuple[list[Hit], str | None]:
    """Return the hits of the rules that name categories, and the id of the first that blocks."""
    if not policy.input.category_rules:
        return [], None
    scores = policy.classifier.classify(text)
    hits = [
        Hit(rule.id, category, rule.action, 0, len(text))
        for rule in policy.input.category_rules
        for category, least in rule.categories.items()
        if scores.get(category, 0) >= least
    ]
    return hits, next((hit.rule_id for hit in hits if hit.action is Action.BLOCK), None)


def apply_output(policy: Policy, text: str, vault: Vault | None = None) -> OutputVerdict:
    """Apply a policy to a whole output. ``vault`` is that of the job's input, whose placeholders are turned back."""
    guarded = output_stream(policy, vault)
    done = guarded.finish(text)
    return OutputVerdict(done, tuple(guarded.hits), guarded.blocked_by)


def output_stream(policy: Policy, vault: Vault | None = None) -> GuardedText:
    """Return what takes an output piece by piece and makes of it what ``apply_output`` makes of the whole."""
    return GuardedText(policy.output, Vault() if vault is None else vault.model_copy(deep=True))
