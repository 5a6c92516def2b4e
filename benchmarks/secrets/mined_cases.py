"""Composes texts with secrets from the contexts of ``mining``. Passwords are as programs and people make them."""

import re
import string
from pathlib import Path
from random import Random

from benchmarks.secrets.compose import key_of, plain_key, some, vendors
from benchmarks.secrets.mining import Context, contexts, half, lines_without
from headrace.policy.evaluation import Case

_ALNUM = string.ascii_letters + string.digits
_BASE64URL = _ALNUM + "-_"
_SIGNS = "!@#$%^&*()_+"
_WORD = re.compile(r"\b[a-z]{4,8}\b")
_IN_URL = re.compile(r"[A-Za-z0-9_\-.~!$*+=]+")
_UNQUOTED = re.compile(r"[^\s\"'`<>()&;|\\,\[\]{}]+")
_KEYBOARD = (
    "qwerty123",
    "1q2w3e4r",
    "zaq12wsx",
    "Qwer1234",
    "asdf1234",
    "1qaz2wsx",
    "qazwsx12",
    "q1w2e3r4t5",
    "Asdf!234",
    "Zaq1@wsx",
)
_CONSONANTS, _VOWELS, _PAIRS = "bcdfghjklmnpqrstvwxz", "aeiou", ("ch", "gh", "ph", "qu", "sh", "th", "ng")
_LEAST_SOUND = 8


def spoken(draw: Random) -> str:
    """Return a password that can be spoken, as pwgen makes them: Ohj4eemu."""
    sounds = (_CONSONANTS, _VOWELS, _PAIRS, ("ai", "ei", "ee", "ie", "oo", "ah"))
    text, is_vowel = "", draw.random() < 0.5
    while len(text) < _LEAST_SOUND:
        sound = draw.choice(sounds[is_vowel + 2 * (draw.random() < 0.25)])
        text += sound.title() if draw.random() < 0.2 else sound
        text += draw.choice(string.digits) if draw.random() < 0.15 else ""
        is_vowel = not is_vowel
    return text if any(map(str.isdigit, text)) else text[:-1] + draw.choice(string.digits)


def password(draw: Random, words: list[str]) -> str:
    """Return a password."""
    one, two, three, four = draw.choices(words, k=4)
    number, year, sign = draw.randrange(10, 10000), draw.randrange(1975, 2027), draw.choice("!#$@*?.")
    return draw.choice((
        lambda: some(draw, _ALNUM + _SIGNS, draw.randrange(10, 17)) + draw.choice(string.digits),
        lambda: some(draw, _BASE64URL, draw.choice((16, 22, 24, 32))),
        lambda: some(draw, _ALNUM, draw.randrange(10, 17)),
        lambda: some(draw, "0123456789abcdef", draw.choice((16, 20, 24, 32))),
        lambda: f"{one.title()}{year}{sign}",
        lambda: f"{one.title()}_{two.title()}{number}",
        lambda: f"{one}-{two}-{three}-{four}",
        lambda: f"{one[0].upper()}{one[1:].translate(str.maketrans('aeios', '@31o5'))}{sign}{number}",
        lambda: f"{one}.{some(draw, string.ascii_lowercase, draw.randrange(5, 8))}",
        lambda: f"{one}{number}",
        lambda: draw.choice(_KEYBOARD),
        lambda: spoken(draw),
        lambda: spoken(draw),
    ))()  # fmt: skip


def compose(seed: int, folders: list[Path], number: int, part: int | None) -> list[Case]:
    """Return texts with one secret each, half of which are keys of vendors.

    ``part``: a half of the contexts, or None for all.
    """
    draw = Random(f"mined {seed}")
    found = [each for each in contexts(folders) if part is None or half(each) == part]
    words = sorted({word for each in found for word in _WORD.findall(each.before + each.after)})
    by_sort = {sort: [each for each in found if _sort(each) == sort] for sort in ("key", "password", "url")}
    return [_case(draw, by_sort, words) for _ in range(number)]


def _sort(context: Context) -> str:
    return "url" if context.is_url else "password" if context.is_password else "key"


def _case(draw: Random, by_sort: dict[str, list[Context]], words: list[str]) -> Case:
    sort = draw.choices(("vendor", "plain", "password", "url"), (50, 20, 27, 3))[0]
    context = draw.choice(by_sort["key" if sort in {"vendor", "plain"} else sort])
    while True:
        if sort == "vendor":
            value = key_of(draw.choice(vendors("mined")), draw)
        else:
            value = plain_key(draw) if sort == "plain" else password(draw, words)
        if _fits(value, context):
            break
    start = len(context.before)
    marked = frozenset([(start, start + len(value), "api_key")])
    return Case("secret", context.before + value + context.after, marked, is_held_out=True)


def _fits(value: str, context: Context) -> bool:
    if context.is_url:
        return _IN_URL.fullmatch(value) is not None
    quote = context.before[-1:]
    return (quote in "\"'" and quote not in value) or _UNQUOTED.fullmatch(value) is not None


def without(seed: int, folders: list[Path], number: int) -> list[Case]:
    """Return lines of files without a secret."""
    lines = lines_without(folders, seed, number)
    return [Case("negative", text, frozenset(), is_held_out=True) for text, _ in lines]
