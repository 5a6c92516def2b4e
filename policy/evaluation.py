"""Precision and recall of the recognisers on the texts in ``data/evaluation.txt`` and ``data/second.txt``.

A finding is right if kind, start and end are exact. Every second text in each section of the first set is held out:
recognisers are not tuned on it, and its figures are reported separately. The author of the second set had not read the
recognisers.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from headrace.policy.documents import Action, PolicyDocument, Rule, Stage
from headrace.policy.guards import Guard, group_overlaps, resolve_overlaps
from headrace.policy.recognisers.recogniser import FOUND_BY_NAME, Kind
from headrace.policy.text.normalisation import normalise

STRUCTURED = tuple(kind for kind in Kind if kind not in FOUND_BY_NAME)


@dataclass(frozen=True, slots=True)
class Case:
    """A text and its marked entities: start, end, kind."""

    section: str
    text: str
    marked: frozenset[tuple[int, int, str]]
    is_held_out: bool


@dataclass(frozen=True, slots=True)
class Score:
    """The counts of one kind: marked entities, right findings, wrong findings."""

    kind: str
    num_marked: int
    num_right: int
    num_wrong: int

    @property
    def precision(self) -> float:
        """The share of the findings that are right."""
        found = self.num_right + self.num_wrong
        return self.num_right / found if found else 1.0

    @property
    def recall(self) -> float:
        """The share of the marked entities that were found."""
        return self.num_right / self.num_marked if self.num_marked else 1.0


_ESCAPE = re.compile(r"\\(n|t|\\|u[0-9a-f]{4})")
_MARK = re.compile(r"\{\{(\w+)\|(.*?)\}\}", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}


def shipped() -> list[Case]:
    """Return the cases that ship in ``evaluation.txt``."""
    return _cases("evaluation.txt")


def second() -> list[Case]:
    """Return the cases of the second set."""
    return _cases("second.txt")


def _cases(name: str) -> list[Case]:
    return list(read_cases((files("headrace.policy") / "data" / name).read_text()))


def read_cases(source: str) -> Iterator[Case]:
    """Yield the cases of a file in the format of ``evaluation.txt``."""
    section, number = "", 0
    for line in source.splitlines():
        if line.startswith("## "):
            section, number = line[3:], 0
        elif line.startswith("+ "):
            yield Case(section, *_read(line[2:]), is_held_out=False)
        elif line and not line.startswith("# "):
            number += 1
            yield Case(section, *_read(line), is_held_out=number % 2 == 0)


def _read(line: str) -> tuple[str, frozenset[tuple[int, int, str]]]:
    plain = _ESCAPE.sub(lambda m: _ESCAPED.get(m[1]) or chr(int(m[1][1:], 16)), line.replace("¦", ""))
    text, marked, done = "", set(), 0
    for mark in _MARK.finditer(plain):
        text += plain[done : mark.start()]
        marked.add((len(text), len(text) + len(mark[2]), mark[1]))
        text += mark[2]
        done = mark.end()
    return text + plain[done:], frozenset(marked)


class Finder:
    """All recognisers, under a policy with every kind."""

    def __init__(self) -> None:
        rule = Rule(id="everything", action=Action.FLAG, stage=Stage.INPUT, kinds=STRUCTURED)
        self._guard = Guard(PolicyDocument(rules=(rule,)), Stage.INPUT)

    def find(self, text: str) -> frozenset[tuple[int, int, str]]:
        """Return start, end and kind of each finding in a text."""
        seen = normalise(text)
        groups = group_overlaps(self._guard.look(seen.text, 0).pieces)
        pieces = (piece for group in groups for piece in resolve_overlaps(group))
        return frozenset((*seen.span(piece.start, piece.end), str(piece.recogniser.kind)) for piece in pieces)


def evaluate(cases: list[Case]) -> list[Score]:
    """Score every structured kind on some cases."""
    finder = Finder()
    marked, right, wrong = Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        found = finder.find(case.text)
        marked.update(kind for *_, kind in case.marked)
        right.update(kind for *_, kind in found & case.marked)
        wrong.update(kind for *_, kind in found - case.marked)
    return [Score(kind, marked[kind], right[kind], wrong[kind]) for kind in STRUCTURED]
