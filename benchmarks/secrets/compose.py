"""Composes texts with secrets by seed: a value in a vendor's form, or a password, under a label in a context.

Vendors, labels and contexts are each divided into two parts by a checksum of their text: recognisers may be tuned on
``tuned`` and not on ``held``, in which vendor, label and context are all of the other part. ``vendors.txt`` has facts
of keys (prefix, alphabet, length) from the public rules of a secret scanner; ``labels.txt`` has labels in 90 languages
from the translations of public programs, other programs for the held part. The part ``fresh`` has files of its own, in
the folder of its name: other vendors, contexts, labels, words of passwords and texts without a secret. ``mined`` has
vendors of its own, and so has ``packages``; the rest is taken from the files of other projects, see ``mined_cases`` and
``package_cases``.
"""

import re
import string
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from headrace.policy.evaluation import Case

PARTS = ("tuned", "held", "fresh", "mined", "packages")
_OWN_FILES = ("fresh", "mined", "packages")
_FOLDER = Path(__file__).parent
_PLACE = re.compile(r"\{(v|up|snake|camel|kebab|words|vendor|Vendor|local|user)\}")
_ESCAPE = re.compile(r"\\(n|t|\\)")
_ESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}
_CLASS = re.compile(r"([^\[]*)(?:\[([^\]]+)\](\d+))?")
_RANGE = re.compile(r"(.)-(.)|(.)")
_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"
_BASE64 = _ALNUM + "+/"
_LOWER = string.ascii_lowercase + string.digits
_LEAST_PREFIX = 3


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor's name and the parts of a key: what is fixed, an alphabet and a number of characters drawn from it."""

    name: str
    parts: tuple[tuple[str, str, int], ...]

    @property
    def is_known_alone(self) -> bool:
        """True if the key begins with something that only this vendor's keys have."""
        fixed = self.parts[0][0]
        return len(fixed) >= _LEAST_PREFIX and sum(number for *_, number in self.parts) > 15


def half(text: str, part: str) -> bool:
    """True if a text belongs to the part."""
    return part in _OWN_FILES or zlib.crc32(text.encode()) % 2 == PARTS.index(part)


def _lines(name: str, part: str) -> list[str]:
    folder = _FOLDER / part if part in _OWN_FILES else _FOLDER
    return [line for line in (folder / name).read_text().splitlines() if line and not line.startswith("# ")]


@cache
def vendors(part: str) -> list[Vendor]:
    """Return the vendors of a part."""
    rows = (line.split("\t") for line in _lines("vendors.txt", part))
    return [Vendor(name, _parts(form)) for rule, name, form in rows if half(rule.split(".")[0], part)]


def _parts(form: str) -> tuple[tuple[str, str, int], ...]:
    found = (_CLASS.fullmatch(each) for each in form.split(" "))
    return tuple((each[1], _alphabet(each[2] or ""), int(each[3] or 0)) for each in found if each is not None)


def _alphabet(ranges: str) -> str:
    return "".join(
        each[3] or "".join(map(chr, range(ord(each[1]), ord(each[2]) + 1))) for each in _RANGE.finditer(ranges)
    )


@cache
def sections(name: str, part: str) -> dict[str, list[str]]:
    """Return the lines of a file by the section that they are in."""
    found: dict[str, list[str]] = {}
    for line in _lines(name, part):
        if section := re.fullmatch(r"\[(\w+)\]", line):
            lines = found.setdefault(section[1], [])
        else:
            lines.append(_ESCAPE.sub(lambda sign: _ESCAPED[sign[1]], line))
    return found


def contexts(part: str, section: str) -> list[str]:
    """Return the contexts of a section that belong to a part."""
    return [line for line in sections("contexts.txt", part)[section] if half(line, part)]


def labels(part: str, sort: str) -> list[str]:
    """Return the labels of a sort (``key``, ``password``) in any language, and in English as programs write them."""
    return sections("labels.txt", part)[f"{part}_{sort}"]


def names(part: str, sort: str) -> list[str]:
    """Return the names that programs give to a sort of secret, as words."""
    return [line for line in sections("labels.txt", part)[f"{sort}_names"] if half(line, part)]


def some(draw: Random, alphabet: str, number: int) -> str:
    """Return characters of an alphabet."""
    return "".join(draw.choices(alphabet, k=number))


def key_of(vendor: Vendor, draw: Random) -> str:
    """Return a key in a vendor's form."""
    return "".join(fixed + some(draw, alphabet, number) for fixed, alphabet, number in vendor.parts)


def plain_key(draw: Random) -> str:
    """Return a key without a vendor's form, of at least 20 characters."""
    return draw.choice((
        lambda: some(draw, _ALNUM, draw.choice((20, 24, 32, 40, 48, 64))),
        lambda: some(draw, _HEX, draw.choice((32, 40, 48, 64))),
        lambda: some(draw, _LOWER, draw.choice((20, 24, 32, 40))),
        lambda: some(draw, _ALNUM + "-_", draw.choice((22, 32, 43, 64))),
        lambda: some(draw, _BASE64, 43) + "=",
        lambda: some(draw, _BASE64, 86) + "==",
        lambda: "-".join(some(draw, _HEX, size) for size in (8, 4, 4, 4, 12)),
    ))()  # fmt: skip


_WORDS = re.findall(r"\w+", """
    amber basil cedar delta ember fjord grove heron ivory juniper kayak lemon maple nectar olive prairie quartz raven
    sierra thistle umber violet willow yonder zephyr bruder stern wolke fleur soleil gatto luna perro sombra
""")  # fmt: skip


def password(draw: Random, part: str, *, is_plain: bool) -> str:
    """Return a password as people and programs make them. ``is_plain``: without signs, for URLs."""
    word, other = draw.sample(sections("labels.txt", part).get("words", _WORDS), 2)
    number, sign = draw.randrange(10, 10000), draw.choice("!#$%&*+@?")
    plain = [
        lambda: some(draw, _ALNUM, draw.randrange(12, 21)),
        lambda: some(draw, _LOWER, draw.randrange(12, 21)),
        lambda: f"{word.title()}{other.title()}{number}",
        lambda: f"{word}_{some(draw, _LOWER, 6)}",
        lambda: f"{word.title()}-{other.title()}-{number}",
    ]
    signed = [
        lambda: f"{word.title()}{number}{sign}",
        lambda: f"{word}{sign}{other.title()}{number}",
        lambda: f"{word[0].upper()}{word[1:].translate(str.maketrans('aeio', '4310'))}{sign}{number}",
        lambda: draw.choice(_ALNUM) + some(draw, _ALNUM + "!#$%^&*@+-_=", draw.randrange(10, 22)) + "a1",
        lambda: f"{some(draw, _ALNUM, 5)}{sign}{some(draw, _ALNUM, 5)}{number}",
    ]
    return draw.choice(plain if is_plain else plain + signed)()


def compose(seed: int, part: str, number: int) -> list[Case]:
    """Return texts with one secret each: half are keys of vendors, the rest keys without a form and passwords."""
    draw = Random(f"{part} {seed}")
    return [_composed(draw, part) for _ in range(number)]


def _composed(draw: Random, part: str) -> Case:
    vendor = draw.choice(vendors(part))
    sort = draw.choices(("vendor", "plain", "password"), (50, 20, 30))[0]
    if sort == "password":
        section = draw.choices(("set", "pair", "url"), (50, 40, 10))[0]
        value = password(draw, part, is_plain=section == "url")
    else:
        value = key_of(vendor, draw) if sort == "vendor" else plain_key(draw)
        is_alone = sort == "vendor" and vendor.is_known_alone
        section = draw.choices(("set", "said", "header", "url", "alone"), (50, 20, 12, 8, 30 if is_alone else 0))[0]
    fitting = [one for one in contexts(part, section) if section != "url" or value.isalnum() or "?" in one]
    label = draw.choice(names(part, "password" if sort == "password" else "key"))
    local = draw.choice(labels(part, "password" if sort == "password" else "key"))
    return _filled(draw, draw.choice(fitting), value, (vendor.name, label, local))


def _filled(draw: Random, context: str, value: str, named: tuple[str, str, str]) -> Case:
    vendor, label, local = named
    is_named = draw.random() < 0.6 and "{vendor}" not in context and "{Vendor}" not in context
    words = (*vendor.split(), *label.split()) if is_named else tuple(label.split())
    words = tuple(re.sub(r"\W", "", word) for word in words)
    forms = {
        "up": "_".join(words).upper(),
        "snake": "_".join(words).lower(),
        "camel": words[0].lower() + "".join(word.title() for word in words[1:]),
        "kebab": "-".join(words).lower(),
        "words": " ".join(words),
        "vendor": vendor.lower(),
        "Vendor": vendor.title().replace(" ", ""),
        "local": local,
        "user": draw.choice(("ada", "svc-report", "j.miller", "admin", "deploy", "root", "mia_k")),
        "v": value,
    }
    text, marked, done = "", frozenset[tuple[int, int, str]](), 0
    for place in _PLACE.finditer(context):
        text += context[done : place.start()].replace("{{", "{").replace("}}", "}")
        if place[1] == "v":
            marked = frozenset([(len(text), len(text) + len(value), "api_key")])
        text, done = text + forms[place[1]], place.end()
    return Case("secret", text + context[done:].replace("{{", "{").replace("}}", "}"), marked, is_held_out=True)
