"""``python -m tests.policy.evaluation``: precision and recall of the recognisers on the texts of the folder ``texts``.

A finding is right if kind, start and end are exact. The author of the second set had not read the recognisers.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.policy.documents import Action, PolicyDocument, Rule, Stage
from headrace.policy.guards import Guard, group_overlaps, resolve_overlaps
from headrace.policy.recognisers.recogniser import STRUCTURED
from headrace.policy.text.normalisation import normalise


@dataclass(frozen=True, slots=True)
class Case:
    """A text and its marked entities: start, end, kind."""

    section: str
    text: str
    marked: frozenset[tuple[int, int, str]]


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


def first() -> list[Case]:
    """Return the cases of the first set."""
    return _cases("first.txt")


def second() -> list[Case]:
    """Return the cases of the second set."""
    return _cases("second.txt")


def _cases(name: str) -> list[Case]:
    return list(read_cases((Path(__file__).parent / "texts" / name).read_text()))


def read_cases(source: str) -> Iterator[Case]:
    """Yield the cases of a file in the format of ``first.txt``."""
    section = ""
    for line in source.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line and not line.startswith("# "):
            yield Case(section, *_read(line.removeprefix("+ ")))


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


if __name__ == "__main__":
    for name, cases in (("first", first()), ("second", second())):
        for score in evaluate(cases):
            told = f"{score.num_marked} marked, precision {score.precision:.3f}, recall {score.recall:.3f}"
            sys.stdout.write(f"{name} {score.kind}: {told}\n")
