"""How surprising the characters of a value are: words and program names have common pairs, random strings have not.

``python -m supply_chain.letter_pairs`` writes the surprise of each pair, in bits, to ``data/letter_pairs.txt``.
"""

import string
import unicodedata
from operator import add
from pathlib import Path

ALPHABET = string.ascii_letters + "0_"
"""Letters, a digit, and any other sign, the beginning and the end included."""
_SIGN_OF = {
    code: "0" if chr(code) in string.digits else "_" for code in range(128) if chr(code) not in string.ascii_letters
}
TARGET = Path(__file__).parents[1] / "data/letter_pairs.txt"


def as_signs(word: str) -> str:
    """Return a word in the alphabet, with its beginning and end. Letters of other scripts are left out."""
    if word.isascii():
        return f"_{word.translate(_SIGN_OF)}_"
    word = "".join(sign for sign in unicodedata.normalize("NFD", word) if not unicodedata.combining(sign))
    signs = (
        sign if sign in string.ascii_letters else "0" if sign.isdigit() else "" if sign.isalpha() else "_"
        for sign in word
    )
    return f"_{''.join(signs)}_"


def _read() -> dict[str, int]:
    if not TARGET.exists():
        return {}
    lines = TARGET.read_text().splitlines()
    return {
        first + second: int(bits, 16)
        for first, line in zip(ALPHABET, lines, strict=True)
        for second, bits in zip(ALPHABET, line, strict=True)
    }


_BITS = _read()


def surprise(word: str) -> float:
    """Return the mean surprise of the pairs in bits: words have about 4, random letters and digits 7."""
    signs = as_signs(word)
    return sum(map(_BITS.__getitem__, map(add, signs, signs[1:]))) / (len(signs) - 1)
