"""``python -m tests.policy.drawing [--seed N] [--part PART]``: how well the recognisers do on texts drawn afresh.

Each text is a value that is made (keys in vendors' forms, addresses, numbers with right check digits) in surroundings
in which such values are met, or a negative that only looks alike. There are two families, with forms of values,
surroundings and negatives of their own: the recognisers may be tuned on one, whatever the seed, and not on the other.
Seven more families are lines of a file (``lines``), third to ninth, and one holds ordinary texts only. Each
was measured before its misses were fixed: see benchmarks/results/2026-11-27-recognisers-unseen.md.
"""

import argparse
import sys

from headrace.policy.evaluation import Case, Finder, Score, evaluate
from tests.policy.held import HELD
from tests.policy.lines import line_cases
from tests.policy.making import ALNUM, IBANS, Draw, drawn, password, ssn, v4, v6
from tests.policy.tuned import TUNED


def cases(seed: int, part: str, num: int = 4) -> list[Case]:  # noqa: C901 - one loop for each kind of value
    """Return the texts of a part. Of tuned and held: ``num`` for each form of a value."""
    if part in (*LINES, ORDINARY):
        return line_cases(part, seed)
    draw, family = Draw(f"{seed} {part}"), TUNED if part == "tuned" else HELD
    found: list[Case] = []

    def add(kind: str, around: str, value: str) -> None:
        before, _, after = around.partition("{}")
        before, after = (text.replace("{{", "{").replace("}}", "}") for text in (before, after))
        marked = frozenset([(len(before), len(before) + len(value), kind)])
        found.append(Case(kind, before + value + after, marked, part == "held"))

    for _ in range(num):
        for maker in family.alone:
            add("api_key", draw.choice(family.around), maker(draw))
        for name, maker in family.named:
            add("api_key", draw.choice(family.named_around).replace("{}", name, 1), maker(draw))
        for around in family.said:
            add("api_key", around, password(draw))
        for around in family.connections:
            add("api_key", around, drawn(ALNUM + "+/", 43)(draw) + "=")
        for maker in family.emails:
            add("email", draw.choice(family.email_around), maker(draw))
        for around in family.ssn_named:
            add("us_ssn", around, ssn(draw.choice(["-", "", " ", "."]))(draw))
        for around in family.ssn_alone:
            add("us_ssn", around, ssn("-")(draw))
        for around in family.iban_around:
            add("iban", around, draw.choice(IBANS)(draw))
        for around in family.ip_around:
            add("ip_address", around, v4(draw))
            add("ip_address", around, v6(draw))
    plain = (text.replace("{{", "{").replace("}}", "}") for text in family.negatives)
    return found + [Case("negative", text, frozenset(), part == "held") for text in plain]


ORDINARY = "ordinary"
LINES = ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
KINDS = ("api_key", "email", "us_ssn", "iban", "ip_address")


def scores(drawn_cases: list[Case]) -> dict[str, Score]:
    """Return the scores of the kinds that are drawn."""
    return {score.kind: score for score in evaluate(drawn_cases) if score.num_marked or score.num_wrong}


def main() -> None:
    """Print recall and false positives by kind; with ``--show`` also the texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=("tuned", "held", *LINES, ORDINARY), default="held")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    texts = cases(args.seed, args.part)
    for kind, score in scores(texts).items():
        told = f"{score.num_right} of {score.num_marked}, {score.recall:.3f}; {score.num_wrong} wrong"
        sys.stdout.write(f"{kind}: {told}\n")
    finder = Finder()
    for case in texts if args.show else ():
        if (found := finder.find(case.text)) != case.marked:
            sys.stdout.write(f"{case.section}: {case.text!r}: {sorted(found ^ case.marked)}\n")


if __name__ == "__main__":
    main()
