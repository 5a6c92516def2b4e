"""Classifiers: a text in, categories with scores from 0 to 1 out.

The one that ships is the first one, and simple on purpose: lists of English phrases under OpenAI's category names. It
is deterministic, explains itself, costs microseconds, and knows neither context nor irony nor other languages; a model
goes behind the same protocol.
"""

from collections.abc import Mapping
from typing import Protocol

import re2

from policy.classification.category_words import WEIGHTED
from policy.text.patterns import options
from policy.text.views import view

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
FLAGGED_FROM = 0.5
"""The score from which a text counts as flagged in a category."""


class Classifier(Protocol):
    """What says how much a text belongs to which category."""

    name: str

    def classify(self, text: str) -> Mapping[str, float]:
        """Return a score from 0 to 1 for each of CATEGORIES."""
        ...


class WordListClassifier:
    """Scores by phrases: each has a weight, and a category's score is 1 - (1 - w1)(1 - w2)…, each phrase once."""

    name = "headrace-words-1"

    def __init__(self) -> None:
        self._set = re2.Set.SearchSet(options())
        for _, _, expression in WEIGHTED:
            self._set.Add(f"(?i){expression}")
        self._set.Compile()

    def classify(self, text: str) -> Mapping[str, float]:
        """Return a score for each category."""
        left = dict.fromkeys(CATEGORIES, 1.0)
        for index in self._set.Match(view(text).text) or ():
            categories, weight, _ = WEIGHTED[index]
            for category in categories:
                left[category] *= 1 - weight
        return {category: round(1 - rest, 6) for category, rest in left.items()}
