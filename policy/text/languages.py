"""Language detection by py3langid, an optional extra: 130 languages, 5 MB of weights, needs only numpy.

Its probabilities are calibrated, so a short text has a small one and counts as unknown.
"""

from functools import cache
from importlib import import_module
from typing import Any, Protocol

KNOWN_FROM = 0.5
"""A language with at least this probability counts as known."""

_NO_LANGUAGE = "zxx"  # ISO 639-2: numbers, code


class LanguageFinder(Protocol):
    """Detects the language of a text."""

    def find(self, text: str) -> str | None:
        """Return the ISO 639-1 code of the language; None if it is not known."""
        ...


class LangidFinder:
    """Detects languages with an identifier of py3langid."""

    def __init__(self, identifier: Any) -> None:
        self._identifier = identifier

    def find(self, text: str) -> str | None:
        """Return the ISO 639-1 code of the language; None if it is not known."""
        language, probability = self._identifier.classify(text)
        return language if probability >= KNOWN_FROM and language != _NO_LANGUAGE else None


@cache
def installed() -> LanguageFinder | None:
    """Return the py3langid finder, or None without the extra ``language``. The first call takes half a second."""
    try:
        langid: Any = import_module("py3langid.langid")
    except ImportError:
        return None
    return LangidFinder(langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True))
