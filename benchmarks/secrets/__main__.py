"""``python -m benchmarks.secrets``: recall and precision for secrets on composed texts, with intervals of 95 %.

``--part tuned`` and, since its figures were reported, ``held`` may be looked at while the recognisers are changed;
``--part fresh`` is for the figure that is reported.
``--part mined`` takes its contexts, and texts without a secret, from the files in ``--folders``: programs, pages and
settings of other projects. ``--half 0`` is for looking at, the rest for the figure.
``--files N`` also scans N files of installed packages and counts the findings in them. ``--show`` prints what differs.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.secrets import mined_cases
from benchmarks.secrets.compose import PARTS, compose
from benchmarks.secrets.negatives import negatives, package_texts
from headrace.policy.documents import Action, PolicyDocument, Rule, Stage
from headrace.policy.evaluation import Case, Finder
from headrace.policy.guards import Guard
from headrace.policy.text.normalisation import normalise

_Z = 1.96
_KINDS = ("api_key", "jwt", "private_key")


def interval(right: int, number: int) -> str:
    """Return a share with Wilson's interval."""
    if not number:
        return "-"
    share, square = right / number, _Z**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    reach = _Z / (1 + square / number) * math.sqrt(share * (1 - share) / number + square / (4 * number**2))
    return f"{share:.3f} [{middle - reach:.3f}, {middle + reach:.3f}] of {number}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _found(finder: Finder, case: Case) -> frozenset[tuple[int, int]]:
    """Return the places of secrets. A key in the form of a web token is one too."""
    return frozenset((start, end) for start, end, kind in finder.find(case.text) if kind in _KINDS)


def _composed(cases: Iterable[Case], *, is_shown: bool) -> None:
    finder = Finder()
    num, right, covered, wrong = 0, 0, 0, 0
    for case in cases:
        marked = frozenset((start, end) for start, end, _ in case.marked)
        found = _found(finder, case)
        num += len(marked)
        right += len(found & marked)
        covered += sum(any(s <= start and end <= e for s, e in found) for start, end in marked)
        wrong += len(found - marked)
        if is_shown and found != marked:
            _say(f"  {case.text!r}: {[case.text[s:e] for s, e in sorted(found)]}")
    _say(f"recall {interval(right, num)}; covered {interval(covered, num)}; precision {interval(right, right + wrong)}")


def _negative(cases: list[Case], *, is_shown: bool) -> None:
    finder = Finder()
    found = [(case, places) for case in cases if (places := _found(finder, case))]
    for case, places in found if is_shown else ():
        _say(f"  {case.text!r}: {[case.text[s:e] for s, e in sorted(places)]}")
    _say(f"texts without a secret that have a finding: {interval(len(found), len(cases))}")


def _files(seed: int, number: int, *, is_shown: bool) -> None:
    kinds = [Rule(id="secrets", action=Action.FLAG, stage=Stage.INPUT, kinds=("api_key",))]
    guard = Guard(PolicyDocument(rules=tuple(kinds)), Stage.INPUT)
    chars = findings = 0
    spent = 0.0
    for path, text in package_texts(seed, number):
        seen = normalise(text).text
        start = time.process_time()
        pieces = guard.look(seen, 0).pieces
        spent += time.process_time() - start
        chars += len(seen)
        findings += len(pieces)
        for piece in pieces if is_shown else ():
            line = seen[max(0, piece.start - 50) : piece.end + 10]
            _say(f"  {path} {piece.recogniser.name}: {line!r}: {seen[piece.start : piece.end]}")
    _say(f"{number} files, {chars} characters: {findings} findings, {findings / chars * 1e5:.2f} in 100,000 characters")
    _say(f"{spent / chars * 1e9:.0f} µs of CPU time for 1,000 characters")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secrets", description=__doc__)
    parser.add_argument("--part", choices=PARTS[:4], default="fresh")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--folders", type=Path, nargs="*", default=[])
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    if given.part == "mined":
        _composed(mined_cases.compose(given.seed, given.folders, given.number, given.half), is_shown=given.show)
        _negative(mined_cases.without(given.seed, given.folders, given.number), is_shown=given.show)
    else:
        _composed(compose(given.seed, given.part, given.number), is_shown=given.show)
        _negative(negatives(given.seed, given.part), is_shown=given.show)
    if given.files:
        _files(given.seed, given.files, is_shown=given.show)


if __name__ == "__main__":
    main()
