"""Names of people, places and organisations through Presidio's analyser, an optional extra.

Its model must be there already: nothing is fetched. The analyser is handed in, so that this file loads without it; with
the extra installed, ``AnalyserFinder(presidio_analyzer.AnalyzerEngine(...))``.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from policy.recognisers import Kind

_KINDS = {"PERSON": Kind.PERSON, "LOCATION": Kind.LOCATION, "ORGANIZATION": Kind.ORGANIZATION}


class Result(Protocol):
    """What the analyser says of one entity."""

    entity_type: str
    start: int
    end: int
    score: float


class Analyser(Protocol):
    """The part of ``presidio_analyzer.AnalyzerEngine`` that is asked for."""

    def analyze(self, text: str, language: str, entities: Sequence[str]) -> Iterable[Result]:
        """Return the entities of a text."""
        ...


class AnalyserFinder:
    """Finds names with an analyser, as far as it is sure enough."""

    def __init__(self, analyser: Analyser, *, language: str = "en", least_score: float = 0.6) -> None:
        self._analyser = analyser
        self._language = language
        self._least_score = least_score

    def find(self, text: str) -> Iterator[tuple[int, int, Kind]]:
        """Yield start, end and kind of each name."""
        for result in self._analyser.analyze(text, self._language, list(_KINDS)):
            if result.score >= self._least_score:
                yield result.start, result.end, _KINDS[result.entity_type]
