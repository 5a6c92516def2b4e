"""Classifiers: a text in, categories with scores from 0 to 1 out.

The built-in classifier is simple: lists of English phrases with the category names of OpenAI. It is deterministic and
takes microseconds. It ignores context, irony and other languages. A model can implement the same protocol.
"""

from collections.abc import Mapping
from typing import Protocol

import re2

from headrace.policy.classification.category_words import WEIGHTED
from headrace.policy.text.normalisation import normalise
from headrace.policy.text.patterns import options

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
"""A text with at least this score is flagged in the category."""


class Classifier(Protocol):
    """Scores a text in each category."""

    name: str

    def classify(self, text: str) -> Mapping[str, float]:
        """Return a score from 0 to 1 for each of CATEGORIES."""
        ...


class WordListClassifier:
    """Scores by weighted phrases. The score of a category is 1 - (1 - w1)(1 - w2)…, with each phrase once."""

    name = "headrace-words-1"

    def __init__(self) -> None:
        self._set = re2.Set.SearchSet(options())
        for _, _, expression in WEIGHTED:
            self._set.Add(f"(?i){expression}")
        self._set.Compile()

    def classify(self, text: str) -> Mapping[str, float]:
        """Return a score for each category."""
        left = dict.fromkeys(CATEGORIES, 1.0)
        for index in self._set.Match(normalise(text).text) or ():
            categories, weight, _ = WEIGHTED[index]
            for category in categories:
                left[category] *= 1 - weight
        return {category: round(1 - rest, 6) for category, rest in left.items()}
