"""How surprising the characters of a value are: words and program names have common triples, random strings have not.

``python -m supply_chain.letter_triples`` writes the surprise of each triple, in bits, to ``data/letter_triples.txt``.
A character's letter and its shape (small, capital, digit, sign) have tables of their own, so the file is small.
"""

import string
import unicodedata
from itertools import product
from operator import add
from pathlib import Path

LETTERS = string.ascii_lowercase + "0_"
"""Letters without their case, a digit, and any other sign, the beginning and the end included."""
SHAPES = "aA0_"
_SIGN_OF = {
    code: "0" if chr(code) in string.digits else "_" for code in range(128) if chr(code) not in string.ascii_letters
}
_SHAPE_OF = str.maketrans(string.ascii_letters, "a" * 26 + "A" * 26)
TARGET = Path(__file__).parents[1] / "data/letter_triples.txt"


def as_signs(word: str) -> tuple[str, str]:
    """Return the letters and the shapes of a word, with its beginning and end. Other scripts' letters are left out."""
    if word.isascii():
        signs = word.translate(_SIGN_OF)
    else:
        word = "".join(sign for sign in unicodedata.normalize("NFD", word) if not unicodedata.combining(sign))
        signs = "".join(
            sign if sign in string.ascii_letters else "0" if sign.isdigit() else "" if sign.isalpha() else "_"
            for sign in word
        )
    return f"__{signs.lower()}_", f"__{signs.translate(_SHAPE_OF)}_"


def _read() -> tuple[dict[str, int], dict[str, int]]:
    if not TARGET.exists():
        return {}, {}
    digits = "".join(line for line in TARGET.read_text().splitlines() if not line.startswith("#"))
    of_letters = map("".join, product(LETTERS, repeat=3))
    of_shapes = map("".join, product(SHAPES, repeat=3))
    num_letters = len(LETTERS) ** 3
    return (
        {triple: int(bits, 16) for triple, bits in zip(of_letters, digits[:num_letters], strict=True)},
        {triple: int(bits, 16) for triple, bits in zip(of_shapes, digits[num_letters:], strict=True)},
    )


_OF_LETTERS, _OF_SHAPES = _read()


def surprise(word: str) -> float:
    """Return the mean surprise of the triples in bits: words have about 4, random letters and digits 10."""
    letters, shapes = as_signs(word)
    bits = sum(map(_OF_LETTERS.__getitem__, map(add, map(add, letters, letters[1:]), letters[2:])))
    bits += sum(map(_OF_SHAPES.__getitem__, map(add, map(add, shapes, shapes[1:]), shapes[2:])))
    return bits / (len(letters) - 2)
