"""Names of people, places and organisations through Presidio's analyser, an optional extra.

The model must be installed: nothing is downloaded. ``load_finder`` reads a folder with a spaCy pipeline. AnalyserFinder
accepts any other analyser of Presidio. This module can be imported without the extra.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from headrace.policy.outputs import MissingFinder
from headrace.policy.recognisers.recogniser import EntityFinder, Kind

_KINDS = {"PERSON": Kind.PERSON, "LOCATION": Kind.LOCATION, "ORGANIZATION": Kind.ORGANIZATION}


class Result(Protocol):
    """One entity in the result of the analyser."""

    entity_type: str
    start: int
    end: int
    score: float


class Analyser(Protocol):
    """The part of ``presidio_analyzer.AnalyzerEngine`` that is used."""

    def analyze(self, text: str, language: str, entities: Sequence[str]) -> Iterable[Result]:
        """Return the entities of a text."""
        ...


class AnalyserFinder:
    """Finds names with an analyser. Results below ``least_score`` are ignored."""

    def __init__(self, analyser: Analyser, *, language: str = "en", least_score: float = 0.6) -> None:
        self._analyser = analyser
        self._language = language
        self._least_score = least_score

    def find(self, text: str) -> Iterator[tuple[int, int, Kind]]:
        """Yield start, end and kind of each name."""
        for result in self._analyser.analyze(text, self._language, list(_KINDS)):
            if result.score >= self._least_score:
                yield result.start, result.end, _KINDS[result.entity_type]


@cache
def load_finder(folder: Path, language: str = "en") -> EntityFinder:
    """Return a finder over the spaCy pipeline in ``folder``, by Presidio. Takes seconds the first time.

    Raises MissingFinder without the extra ``presidio``, or if the folder holds no pipeline.
    """
    try:
        spacy: Any = import_module("spacy")
        presidio: Any = import_module("presidio_analyzer")
        engines: Any = import_module("presidio_analyzer.nlp_engine")
    except ImportError:
        raise MissingFinder("names are found by the extra `presidio` (presidio-analyzer), which is not there") from None
    try:
        pipeline = spacy.load(folder)
    except (OSError, ValueError):
        raise MissingFinder(f"{folder} holds no spaCy pipeline: point HEADRACE_NAMES_MODEL at one") from None
    engine = engines.SpacyNlpEngine()
    engine.nlp = {language: pipeline}
    registry = presidio.RecognizerRegistry(supported_languages=[language])
    registry.add_recognizer(presidio.predefined_recognizers.SpacyRecognizer(supported_language=language))
    analyser = presidio.AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])
    return AnalyserFinder(analyser, language=language)
