"""Values as they are met, drawn afresh: keys, addresses and numbers with right check digits."""

import random
import string
from collections.abc import Callable, Sequence

from stdnum import iban as iban_module

Draw = random.Random
Maker = Callable[[Draw], str]

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
HEX, ALNUM, URL64 = "0123456789abcdef", string.ascii_letters + DIGITS, string.ascii_letters + DIGITS + "-_"
FIRST = [
    "anna",
    "bob",
    "carlos",
    "dina",
    "elif",
    "feng",
    "greta",
    "hugo",
    "ines",
    "jonas",
    "kofi",
    "lena",
    "mehmet",
    "nora",
    "olga",
    "priya",
    "quinn",
    "rosa",
    "tariq",
    "uma",
]
LAST = [
    "miller",
    "garcia",
    "novak",
    "okafor",
    "schmidt",
    "tanaka",
    "rossi",
    "kowalski",
    "dubois",
    "larsen",
    "singh",
    "haddad",
    "petrov",
    "silva",
    "nguyen",
]
HOSTS = [
    "example.com",
    "mail.example.org",
    "acme-corp.co.uk",
    "firma.de",
    "uni-bonn.de",
    "startup.io",
    "correo.es",
    "post.example.net",
]


def drawn(alphabet: str, size: int) -> Maker:
    """Return what draws so many characters."""
    return lambda draw: "".join(draw.choice(alphabet) for _ in range(size))


def joined(*parts: str | Maker) -> Maker:
    """Return what makes the parts one after the other."""
    return lambda draw: "".join(part if isinstance(part, str) else part(draw) for part in parts)


def uuid(draw: Draw) -> str:
    return "-".join(drawn(HEX, size)(draw) for size in (8, 4, 4, 4, 12))


def password(draw: Draw) -> str:
    """As people and generators make them."""
    word, sign = draw.choice(LAST).capitalize(), draw.choice("!#$%&*+?@_.-")
    number = str(draw.randrange(10, 9999))
    return draw.choice(
        [
            f"{word}{sign}{number}{draw.choice(LOWER)}",
            f"{draw.choice(LOWER)}{number}{sign}{word}",
            drawn(ALNUM, 14)(draw) + number[-1] + "aZ",
            f"{drawn(ALNUM, 6)(draw)}{sign}{number}{drawn(ALNUM, 4)(draw)}xY",
        ]
    )


def local(draw: Draw) -> str:
    first, last = draw.choice(FIRST), draw.choice(LAST)
    return draw.choice(
        [
            f"{first}.{last}",
            f"{first[0]}{last}",
            f"{first}_{last}{draw.randrange(99)}",
            f"{first}+news",
            f"{first}-{last}",
        ]
    )


def parts_of_ssn(draw: Draw) -> tuple[str, str, str]:
    area = draw.choice([number for number in range(1, 900) if number != 666])
    return f"{area:03}", f"{draw.randrange(1, 100):02}", f"{draw.randrange(1, 10000):04}"


def ssn(sign: str) -> Maker:
    return lambda draw: sign.join(parts_of_ssn(draw))


_IBANS = {
    "DE": lambda d: drawn(DIGITS, 18)(d),
    "FR": lambda d: drawn(DIGITS, 10)(d) + drawn(UPPER + DIGITS, 11)(d) + drawn(DIGITS, 2)(d),
    "GB": lambda d: drawn(UPPER, 4)(d) + drawn(DIGITS, 14)(d),
    "NL": lambda d: drawn(UPPER, 4)(d) + drawn(DIGITS, 10)(d),
    "ES": lambda d: drawn(DIGITS, 20)(d),
    "CH": lambda d: drawn(DIGITS, 17)(d),
    "PL": lambda d: drawn(DIGITS, 24)(d),
    "NO": lambda d: drawn(DIGITS, 11)(d),
    "MT": lambda d: drawn(UPPER, 4)(d) + drawn(DIGITS, 5)(d) + drawn(UPPER + DIGITS, 18)(d),
    "SA": lambda d: drawn(DIGITS, 2)(d) + drawn(UPPER + DIGITS, 18)(d),
}


def _iban(draw: Draw) -> str:
    country = draw.choice(sorted(_IBANS))
    account = _IBANS[country](draw)
    return country + iban_module.calc_check_digits(f"{country}00{account}") + account


def _fours(sign: str) -> Maker:
    def make(draw: Draw) -> str:
        number = _iban(draw)
        return sign.join(number[at : at + 4] for at in range(0, len(number), 4))

    return make


IBANS: Sequence[Maker] = (
    _iban,
    _fours(" "),
    _fours("-"),
    lambda draw: _iban(draw).lower(),
    _fours("\u00a0"),
    _fours("."),
    _fours("  "),
)


def v4(draw: Draw) -> str:
    return draw.choice(
        [
            f"10.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randrange(1, 255)}",
            f"192.168.{draw.randrange(256)}.{draw.randrange(1, 255)}",
            f"{draw.randrange(11, 223)}.{draw.randrange(256)}.{draw.randrange(100, 256)}.{draw.randrange(1, 255)}",
        ]
    )


def v6(draw: Draw) -> str:
    groups = [drawn(HEX, draw.choice([1, 2, 3, 4, 4]))(draw).lstrip("0") or "1" for _ in range(8)]
    return draw.choice(
        [
            ":".join(groups),
            f"2001:db8:{groups[0]}::{groups[1]}",
            f"fe80::{':'.join(groups[:4])}",
            f"::ffff:{v4(draw)}",
            f"2001:DB8::{groups[2].upper()}",
        ]
    )
