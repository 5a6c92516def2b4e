"""Drawn texts of all kinds, from lines of a file: ``third.txt`` to ``ninth.txt``. See ``drawing``."""

import re
from pathlib import Path
from random import Random

from headrace.policy.evaluation import Case
from tests.policy.line_values import drawn_value

_KINDS = {
    "secret": "api_key",
    "email": "email",
    "ssn": "us_ssn",
    "iban": "iban",
    "ip": "ip_address",
    "phone": "phone",
    "jwt": "jwt",
    "card": "card",
    "national": "national_id",
    "none": "negative",
}
LINE_KINDS = tuple(kind for kind in _KINDS.values() if kind != "negative")
_SECTION = re.compile(r"\[([a-z]+)\]")
_PLACE = re.compile("⟦([a-z_0-9]+)⟧|‹([a-z_0-9]+)›")
_ESCAPE = re.compile(r"\\([nrt])")


def line_cases(part: str, seed: int) -> list[Case]:
    """Return the texts of a file: one for each line of secrets, two for each other line."""
    draw, kind, found = Random(f"{part} {seed}"), "", []
    for line in Path(__file__).with_name(f"{part}.txt").read_text(encoding="utf-8").splitlines()[1:]:
        if section := _SECTION.fullmatch(line):
            kind = _KINDS[section[1]]
        else:
            found += [_filled(line, kind, draw) for _ in range(1 if kind == "api_key" else 2)]
    return found


def _filled(line: str, kind: str, draw: Random) -> Case:
    text, marked, at = "", [], 0
    line = _ESCAPE.sub(lambda sign: {"n": "\n", "r": "\r", "t": "\t"}[sign[1]], line)
    for place in _PLACE.finditer(line):
        text += line[at : place.start()]
        value = drawn_value(place[1] or place[2], draw)
        if place[1]:
            marked.append((len(text), len(text) + len(value), "private_key" if place[1].startswith("pem") else kind))
        text, at = text + value, place.end()
    return Case(kind, text + line[at:], frozenset(marked), is_held_out=True)
