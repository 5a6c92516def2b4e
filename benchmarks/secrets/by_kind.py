"""``python -m benchmarks.secrets.by_kind --folders FOLDER...``: recall and precision of each kind in packages.

A folder has one folder for each package. ``--half 0`` may be looked at (``--show``); ``--half 1`` is for the figure.
Then the texts of the packages themselves are scanned: findings in a megabyte of programs and of pages.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

from benchmarks.secrets.__main__ import interval
from benchmarks.secrets.disputes import dispute
from benchmarks.secrets.mining import PROGRAMS, lines_without, read
from benchmarks.secrets.package_cases import compose
from benchmarks.secrets.package_mining import PERSONAL, files, half, package_of, places
from headrace.policy.evaluation import Case, Finder

SECRET_KINDS = frozenset(["api_key", "jwt", "private_key"])
_CHARS = 30_000
_MEGABYTE = 1_000_000


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def score(finder: Finder, case: Case) -> tuple[bool, int, int]:
    """Return whether the value was found, and the number of wrong findings that touch it and that stand elsewhere.

    Of a secret, findings of all kinds of secrets count. Of another kind, those of it, and any on the value.
    """
    found = finder.find(case.text)
    if not case.marked:
        return False, 0, sum(kind in SECRET_KINDS for *_, kind in found)
    ((start, end, kind),) = case.marked
    kinds = {kind} if kind in PERSONAL else SECRET_KINDS
    touching = {each for each in found if each[0] < end and start < each[1]}
    right = {each for each in touching if each[:2] == (start, end) and each[2] in kinds}
    return bool(right), len(touching - right), sum(each[2] in kinds for each in found - touching)


def _undisputed(scored: list[tuple[Case, tuple[bool, int, int]]]) -> str:
    """Return recall and precision of the cases whose place is not disputed, and the number of the others."""
    kept = [score for case, score in scored if case.marked and dispute(case) is None]
    right, wrong = sum(each[0] for each in kept), sum(each[1] for each in kept)
    left = sum(1 for case, _ in scored if case.marked) - len(kept)
    return f"recall {interval(right, len(kept))}; precision {interval(right, right + wrong)}; {left} disputed left out"


def _table(found: dict[str, list[Case]], *, is_shown: bool) -> None:
    finder = Finder()
    total = Counter[str]()
    everyone = list[tuple[Case, tuple[bool, int, int]]]()
    for sort, cases in found.items():
        scores = [score(finder, case) for case in cases]
        right, wrong, elsewhere = (sum(each[index] for each in scores) for index in range(3))
        if sort in {"placeholder", "id"}:
            _say(f"{sort}: texts with a finding {interval(sum(each[2] > 0 for each in scores), len(cases))}")
        else:
            precision = f"precision {interval(right, right + wrong)}, {elsewhere} more elsewhere in the text"
            _say(f"{sort}: recall {interval(right, len(cases))}; {precision}")
            if any(map(dispute, cases)):
                _say(f"{sort} without disputed places: {_undisputed(list(zip(cases, scores, strict=True)))}")
        if sort not in PERSONAL:
            everyone.extend(zip(cases, scores, strict=True))
            total.update(right=right, wrong=wrong, elsewhere=elsewhere, marked=sum(len(case.marked) for case in cases))
        for case, (is_found, *counts) in zip(cases, scores, strict=True) if is_shown else ():
            if any(counts) or (case.marked and not is_found):
                places_found = sorted((case.text[s:e], kind) for s, e, kind in finder.find(case.text))
                marked = [case.text[s:e] for s, e, _ in case.marked]
                _say(f"  {dispute(case) or ''} {sort} {marked} {case.text!r}: {places_found}")
    right, wrong = total["right"], total["wrong"]
    _say(f"all secrets: recall {interval(right, total['marked'])}; precision {interval(right, right + wrong)}")
    _say(f"all secrets without disputed places: {_undisputed(everyone)}")
    everything = right + wrong + total["elsewhere"]
    _say(f"with findings elsewhere and in texts without a value: precision {interval(right, everything)}")


def _scan(folders: list[Path], part: int, megabytes: float, *, is_shown: bool) -> None:
    """Scan the begin of drawn files, and print the findings of each kind in a megabyte."""
    paths = list(files(folders, part))
    Random(f"scan {part}").shuffle(paths)
    finder, of_sort = Finder(), {"programs": Counter[str](), "pages": Counter[str]()}
    for path in paths:
        counts = of_sort["programs" if path.suffix in PROGRAMS else "pages"]
        if counts["characters"] >= megabytes * _MEGABYTE:
            continue
        text = read(path)[:_CHARS]
        start = time.process_time()
        found = finder.find(text)
        counts["microseconds"] += int((time.process_time() - start) * 1e6)
        counts["characters"] += len(text)
        counts.update(kind for *_, kind in found)
        for begin, end, kind in sorted(found) if is_shown else ():
            line = text[max(0, begin - 60) : end + 20]
            _say(f"  {package_of(path, folders)}/{path.name} {kind} {text[begin:end][:80]!r} in {line[:160]!r}")
    for sort, counts in of_sort.items():
        size = counts.pop("characters") / _MEGABYTE
        seconds = counts.pop("microseconds") / 1e6
        each = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items()))
        _say(f"{sort}: {size:.2f} MB, {seconds / size:.2f} s of CPU time a MB; findings: {each}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secrets.by_kind", description=__doc__)
    parser.add_argument("--folders", type=Path, nargs="+", required=True)
    parser.add_argument("--half", type=int, choices=(0, 1), default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=3.0)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    found = compose(given.seed, places(given.folders, given.half), given.half, given.number)
    packages = [path for folder in given.folders for path in folder.iterdir() if half(path.name) == given.half]
    lines = lines_without(packages, given.seed, 2 * given.number)
    found["id"] = [Case("id", text, frozenset(), is_held_out=True) for text, _ in lines]
    _table(found, is_shown=given.show)
    _scan(given.folders, given.half, given.megabytes, is_shown=given.show)


if __name__ == "__main__":
    main()
