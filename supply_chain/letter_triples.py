"""``python -m supply_chain.letter_triples FOLDER...``: learn which triples of characters texts and programs have.

Writes ``policy/data/letter_triples.txt``: for each pair of letters a line, with how surprising each next letter is, as
a hexadecimal digit of bits; then the same for shapes. Reads programs, pages and translations in the folders.
"""

import math
import re
import sys
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

from headrace.policy.text.letter_triples import LETTERS, SHAPES, TARGET, as_signs

_SOURCE = """\
# Bits of surprise of each letter behind two others, see supply_chain/letter_triples.py. Learned from the source of
# Django 5.2.19, Faker 40.63.0 (texts and names in 90 languages), Python 3.11, SQLAlchemy, transformers, SymPy, Perl, C.
"""
_SUFFIXES = frozenset([".py", ".po", ".md", ".txt", ".html", ".js", ".pl", ".pm", ".h"])
_INSTALLED = frozenset(["site-packages", "dist-packages"])
_WORD = re.compile(r"[^\W_]{2,}(?:[_\-.][^\W_]+)*")
_LONGEST_WORD = 40
_MOST_CHARS = 200_000
_MOST_BITS = 15
# Of so many triples' weight is the share that a pair alone foretells.
_OF_PAIRS = 30


def words(folders: list[Path]) -> Counter[str]:
    """Count the words in all files of the folders, but not in the packages that are installed inside them."""
    found = Counter[str]()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            is_own = _INSTALLED.isdisjoint(path.relative_to(folder).parts)
            if path.suffix in _SUFFIXES and is_own and path.is_file():
                text = path.read_text(encoding="utf-8", errors="ignore")[:_MOST_CHARS]
                found.update(word for word in _WORD.findall(text) if len(word) <= _LONGEST_WORD)
    return found


def surprises(words: dict[str, float], alphabet: str) -> list[str]:
    """Return the lines for the triples of an alphabet in weighted words."""
    triples, pairs = defaultdict[str, float](float), defaultdict[str, float](float)
    for word, weight in words.items():
        for first, second, third in zip(word, word[1:], word[2:], strict=False):
            triples[first + second + third] += weight
            pairs[second + third] += weight
    lines = []
    for first, second in product(alphabet, repeat=2):
        of_pair = sum(pairs[second + third] + 1 for third in alphabet)
        number = sum(triples[first + second + third] for third in alphabet)
        shares = (
            (triples[first + second + third] + _OF_PAIRS * (pairs[second + third] + 1) / of_pair) / (number + _OF_PAIRS)
            for third in alphabet
        )
        lines.append("".join(f"{min(_MOST_BITS, round(-math.log2(share))):x}" for share in shares))
    return lines


def lines_of(counts: Counter[str]) -> list[str]:
    """Return the lines of the file. A word counts with the logarithm of its number, so that no frequent one rules."""
    letters, shapes = defaultdict[str, float](float), defaultdict[str, float](float)
    for word, number in counts.items():
        of_letters, of_shapes = as_signs(word)
        letters[of_letters] += math.log2(1 + number)
        shapes[of_shapes] += math.log2(1 + number)
    return surprises(letters, LETTERS) + surprises(shapes, SHAPES)


def main() -> None:
    """Write the file."""
    lines = lines_of(words([Path(each) for each in sys.argv[1:]]))
    TARGET.write_text(_SOURCE + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
