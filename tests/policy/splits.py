"""``python -m tests.policy.splits [--full]``: no value leaks at any split of a stream.

Each marked text of both sets, plain and disguised (invisible characters inside the values, full-width characters, JSON
escapes), goes through guards that redact, mask and block: in two pieces at every position, in three, and character by
character. The output is always a prefix of the output for the whole text, and has no marked value. Without ``--full``
the seed selects a part of the texts and positions.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.policy.recognisers.recogniser import STRUCTURED
from tests.policy.evaluation import Case, Finder, first, second

_UNSEEN = ("\u200b", "\u200f", "\u2060", "\u00ad", "\ufeff")
_LONG = 400
"""Characters from which a text is cut at places that are drawn, even with ``--full``."""


def guarding(action: str) -> Policy:
    """Return a policy that does this to everything that is recognised in an output, and to a phrase."""
    rules = [
        {"id": "kinds", "action": action, "kinds": STRUCTURED, "stage": "output"},
        {"id": "word", "action": action, "deny": {"phrases": ["the old mill"]}, "stage": "output"},
    ]
    return Policy(PolicyDocument.model_validate({"rules": rules}))


def disguises(case: Case, draw: random.Random) -> Iterator[tuple[str, list[str], OutputFormat]]:
    """Yield the text as it is and in other clothes, the values in it, and the form in which it is guarded."""
    spans = sorted((start, end) for start, end, _ in case.marked)
    values = [case.text[start:end] for start, end in spans]
    yield case.text, values, OutputFormat.TEXT
    unseen = [_sprinkled(value, draw) for value in values]
    yield _with(case.text, spans, unseen), unseen, OutputFormat.TEXT
    wide = [_wide(value) for value in values]
    yield _with(case.text, spans, wide), wide, OutputFormat.TEXT
    escaped = _escaped(case.text, draw)
    yield escaped, values, OutputFormat.JSON


def _with(text: str, spans: Sequence[tuple[int, int]], values: Sequence[str]) -> str:
    for (start, end), value in reversed(list(zip(spans, values, strict=True))):
        text = text[:start] + value + text[end:]
    return text


def _sprinkled(value: str, draw: random.Random) -> str:
    return "".join(sign + (draw.choice(_UNSEEN) if draw.random() < 0.2 else "") for sign in value[:-1]) + value[-1:]


def _wide(value: str) -> str:
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in value)


def _escaped(text: str, draw: random.Random) -> str:
    return "".join(
        f"\\u{ord(sign):04x}"
        if sign in '"\\' or ord(sign) < 0x20 or (ord(sign) < 0x10000 and draw.random() < 0.1)
        else sign
        for sign in text
    )


def cuts(size: int, draw: random.Random, most: int | None) -> Iterator[tuple[int, ...]]:
    """Yield places to cut a text of this size at; ``most`` for every way of cutting it, None for all."""
    ones: Sequence[tuple[int, ...]] = [(at,) for at in range(1, size)]
    if most is not None and len(ones) > most:
        ones = draw.sample(ones, most)
    yield from ones
    if size > 2:
        twos = list(combinations(range(1, size), 2)) if size <= 60 else []
        num = min(len(twos), most or 200) if twos else (most or 200)
        yield from draw.sample(twos, num) if twos else (sorted_pair(size, draw) for _ in range(num))
    yield tuple(range(1, size))


def sorted_pair(size: int, draw: random.Random) -> tuple[int, ...]:
    """Return two places."""
    return tuple(sorted(draw.sample(range(1, size), 2)))


def leak(
    policy: Policy, text: str, values: Sequence[str], form: OutputFormat, places: Iterator[tuple[int, ...]]
) -> str | None:
    """Return what went wrong with a text, None if nothing did."""
    whole = policy.guarded_output(PlaceholderMap(), form)
    clean = whole.feed(text) + whole.finish()
    for value in values:
        if value in clean:
            return f"the whole text lets {value[:8]!r}… out"
    for at in places:
        stream = policy.guarded_output(PlaceholderMap(), form)
        left = ""
        for start, end in pairwise((0, *at, len(text))):
            left += stream.feed(text[start:end])
            if not clean.startswith(left):
                return f"cut at {at[:9]}, {left[-40:]!r} has left"
        left += stream.finish()
        if (left, stream.blocked_by, stream.hits) != (clean, whole.blocked_by, whole.hits):
            return f"cut at {at[:9]}, the outcome is another: {left[-60:]!r} and not {clean[-60:]!r}"
    return None


def found_whole(cases: Sequence[Case]) -> list[Case]:
    """Return the cases of which every value is found in the whole text: what is missed there is no leak of a cut."""
    finder = Finder()
    return [case for case in cases if case.marked and case.marked <= finder.find(case.text)]


def run(cases: Sequence[Case], seed: int, most: int | None) -> Iterator[str | None]:
    """Yield the outcome of every text in every disguise under every policy."""
    draw = random.Random(seed)
    policies = [guarding(action) for action in ("redact", "mask", "block")]
    for case in cases:
        for text, values, form in disguises(case, draw):
            for policy in policies if most is None else [draw.choice(policies)]:
                limit = 40 if most is None and len(text) > _LONG else most
                # Stars leave the last four, and a value of stars' signs only is its own mask.
                kept = [] if policy is policies[1] else values
                found = leak(policy, text, kept, form, cuts(len(text), draw, limit))
                yield None if found is None else f"{case.text[:60]!r} as {form}: {found}"


def main() -> None:
    """Fuzz, print what leaked, and exit 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every text at every place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="1/1", help="such as 1/4: the first of four parts")
    args = parser.parse_args()
    number, parts = map(int, args.part.split("/"))
    cases = found_whole(first() + second())[number - 1 :: parts]
    outcomes = list(run(cases, args.seed, None if args.full else 6))
    found = [outcome for outcome in outcomes if outcome is not None]
    sys.stdout.write("".join(f"{one}\n" for one in found))
    sys.stdout.write(f"{len(outcomes)} texts, {len(found)} leaks\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
