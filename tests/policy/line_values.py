"""Values with valid forms and check digits for the texts of ``lines``.

Every value is drawn from a seed when the test runs, so that no key, card or person is written in the repository.
"""

import base64
import json
from collections.abc import Callable
from random import Random
from urllib.parse import quote

from tests.policy.line_forms import ALNUM, DIGITS, HEX, LOWER, PARTS, URL_SAFE
from tests.policy.line_ids import IDS, groups, iban, luhn, some
from tests.policy.line_passwords import PASSWORDS


def token(r: Random, letters: str, n: int) -> str:
    """n letters of which the first and the last are alphanumeric, with at least one digit."""
    ends = [c for c in letters if c.isalnum()]
    while True:
        value = r.choice(ends) + some(r, letters, n - 2) + r.choice(ends)
        if any(c.isdigit() for c in value):
            return value


WORDS = [
    "Garnet",
    "Walrus",
    "Maple",
    "Orbit",
    "Tulip",
    "Basalt",
    "Falcon",
    "Ginger",
    "Velvet",
    "Copper",
    "Meadow",
    "Pixel",
    "Lagoon",
    "Saturn",
    "Cobalt",
    "Thistle",
    "Sommer",
    "Fenster",
    "Girasol",
    "Montaña",
    "Papillon",
    "Kawiarnia",
    "Ogrod",
    "Kirsche",
]


def password(r: Random) -> str:
    word, other = r.sample(WORDS, 2)
    n = r.randrange(10, 9999)
    return r.choice(
        (
            f"{word}{n}!",
            f"{word}-{other}-{n}",
            f"{some(r, ALNUM, 6)}#{some(r, ALNUM, 5)}",
            f"{word.lower()}{n}",
            f"{word}_{n}${some(r, LOWER, 3)}",
            f"{some(r, ALNUM, 14)}",
            f"{word[0]}0{word[1:]}&{n}",
            f"{n}{other}*{word}",
        )
    )


def plain_password(r: Random) -> str:
    """A password that can stand in a URL or a shell word without quotes."""
    return r.choice(
        (
            f"{r.choice(WORDS[:16])}{r.randrange(10, 9999)}x",
            some(r, ALNUM, 16) + "7",
            f"{some(r, LOWER, 6)}_{r.randrange(100, 999)}",
        )
    )


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def pem(r: Random) -> str:
    name = r.choice(("RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY"))
    body = "\n".join(some(r, ALNUM + "+/", 64) for _ in range(4))
    return f"-----BEGIN {name}-----\n{body}\n-----END {name}-----"


FIRST = [
    "anna",
    "bruno",
    "chloe",
    "dmitri",
    "elif",
    "fatou",
    "gustav",
    "hana",
    "ines",
    "jorge",
    "kenji",
    "lotte",
    "mehmet",
    "noor",
    "oskar",
    "priya",
]
LAST = [
    "keller",
    "moreau",
    "rossi",
    "nowak",
    "svensson",
    "garcia",
    "yilmaz",
    "tanaka",
    "okafor",
    "jansen",
    "dubois",
    "horvat",
    "lindqvist",
    "costa",
]
HOSTS = [
    "northwind-mail.com",
    "posteo.de",
    "laposte.net",
    "mail.uni-kiel.de",
    "firma.com.pl",
    "hospital.nhs.uk",
    "wanadoo.fr",
    "acme.co.jp",
    "lab.ac.uk",
    "dev.shop.example.io",
    "students.usp.br",
    "correo.gob.mx",
    "big-corp.travel",
    "nic.museum",
    "gmx.at",
    "yandex.ru",
    "163.com",
]


def email(r: Random) -> str:
    first, last = r.choice(FIRST), r.choice(LAST)
    local = r.choice(
        (
            f"{first}.{last}",
            f"{first[0]}{last}",
            f"{first}+{r.choice(('news', 'shop', 'gh'))}",
            f"{first}_{last}{r.randrange(99)}",
            f"{first[0]}.{last[0]}.{last}",
            f"{first}-{last}",
            f"{last}{r.randrange(1960, 2005)}",
            f"{first.title()}.{last.title()}",
        )
    )
    return f"{local}@{r.choice(HOSTS)}"


def email_idn(r: Random) -> str:
    return r.choice(
        (
            f"{r.choice(FIRST)}@müller-{r.choice(('bau', 'holz'))}.de",
            f"jürgen.{r.choice(LAST)}@gmx.de",
            f"иван{r.randrange(99)}@почта.рф",
        )
    )


def email_upper(r: Random) -> str:
    return email(r).upper()


def email_at(r: Random) -> str:
    return email(r).replace("@", " [at] ").replace(".", " [dot] ")


def ssn_parts(r: Random) -> tuple[str, str, str]:
    area = r.choice([n for n in range(1, 900) if n not in (666, 123, 78, 219)])
    return f"{area:03}", f"{r.randrange(1, 100):02}", f"{r.randrange(1, 10000):04}"


def ip4(r: Random) -> str:
    first = r.choice([n for n in range(11, 223) if n not in (127, 169, 172, 192)])
    return f"{first}.{r.randrange(1, 255)}.{r.randrange(256)}.{r.randrange(1, 255)}"


def ip4_private(r: Random) -> str:
    return r.choice(
        (
            f"10.{r.randrange(256)}.{r.randrange(256)}.{r.randrange(1, 255)}",
            f"192.168.{r.randrange(256)}.{r.randrange(1, 255)}",
            f"172.{r.randrange(16, 32)}.{r.randrange(256)}.{r.randrange(1, 255)}",
        )
    )


def ip6(r: Random) -> str:
    head = r.choice(("2a01:4f8", "2001:67c", "2a02:8109", "2606:4700", "2400:cb00"))
    h = [f"{r.randrange(1, 65536):x}" for _ in range(6)]
    return r.choice(
        (f"{head}:{':'.join(h)}", f"{head}:{h[0]}::{h[1]}", f"{head}::{h[0]}:{h[1]}", f"{head}:{h[0]}:{h[1]}::1")
    )


def card(r: Random) -> str:
    prefix, n = r.choice(
        (
            ("4", 16),
            ("4", 16),
            ("5" + r.choice("12345"), 16),
            ("2720", 16),
            ("6011", 16),
            ("3530", 16),
            ("37", 15),
            ("3601", 14),
        )
    )
    return luhn(prefix + some(r, DIGITS, n - 1 - len(prefix)))


def card_16(r: Random) -> str:
    return luhn(r.choice(("4", "51", "55", "2315", "6011")).ljust(4, r.choice("123456789")) + some(r, DIGITS, 11))


def amex(r: Random) -> str:
    value = luhn(r.choice(("34", "37")) + some(r, DIGITS, 12))
    return f"{value[:4]} {value[4:10]} {value[10:]}"


def jwt(r: Random) -> str:
    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")

    head: dict[str, object] = {"alg": r.choice(("HS256", "RS256", "ES256", "EdDSA")), "typ": "JWT"}
    if r.random() < 0.4:
        head = {"typ": "JWT", "kid": some(r, HEX, 16), "alg": "RS256"}
    body: dict[str, object] = {
        "sub": str(r.randrange(10**6)),
        "exp": r.randrange(1_700_000_000, 1_900_000_000),
        "aud": r.choice(("web", "app")),
    }
    return f"{part(head)}.{part(body)}.{some(r, URL_SAFE, r.choice((43, 86, 342)))}"


def phone_int(r: Random) -> str:
    d = lambda n: some(r, "23456789", n)  # noqa: E731
    return r.choice(
        (
            f"+49 30 {d(4)} {d(4)}",
            f"+49 (0)89 {d(6)}",
            f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}",
            f"+44 20 7{d(3)} {d(4)}",
            f"+447{d(9)}",
            f"+1-2{d(2)}-{d(3)}-{d(4)}",
            f"+1 (4{d(2)}) {d(3)}-{d(4)}",
            f"+34 6{d(2)} {d(3)} {d(3)}",
            f"+39 06 {d(4)} {d(4)}",
            f"+48 5{d(2)} {d(3)} {d(3)}",
            f"+81-3-{d(4)}-{d(4)}",
            f"+91 98{d(3)} {d(5)}",
            f"+55 11 9{d(4)}-{d(4)}",
            f"+90 532 {d(3)} {d(2)} {d(2)}",
            f"+46 70-{d(3)} {d(2)} {d(2)}",
            f"0041 79 {d(3)} {d(2)} {d(2)}",
        )
    )


def phone_us(r: Random) -> str:
    d = lambda n: some(r, "23456789", n)  # noqa: E731
    return r.choice((f"(4{d(2)}) {d(3)}-{d(4)}", f"4{d(2)}-{d(3)}-{d(4)}", f"6{d(2)}.{d(3)}.{d(4)}"))


def phone_de(r: Random) -> str:
    return r.choice(
        (f"030 {some(r, '23456789', 7)}", f"0171/{some(r, '23456789', 7)}", f"0151 {some(r, '23456789', 8)}")
    )


def phone_fr(r: Random) -> str:
    return "0" + r.choice("1267") + r.choice((" ", ".")).join([""] + [some(r, "23456789", 2) for _ in range(4)])


def ssn_with(sep: str) -> Callable[[Random], str]:
    return lambda r: sep.join(ssn_parts(r))


def iban_with(sep: str, lower: bool = False) -> Callable[[Random], str]:
    return lambda r: groups(iban(r).lower() if lower else iban(r), sep)


VALUES: dict[str, Callable[[Random], str]] = {
    f.__name__: f
    for f in (
        password,
        plain_password,
        pem,
        email,
        email_idn,
        email_upper,
        email_at,
        iban,
        ip4,
        ip4_private,
        ip6,
        card,
        amex,
        jwt,
        phone_int,
        phone_us,
        phone_de,
        phone_fr,
        *IDS,
    )
} | {
    "basic": lambda r: b64(f"{r.choice(FIRST)}:{password(r)}"),
    "sas": lambda r: quote(base64.b64encode(r.randbytes(32)).decode(), safe=""),
    "confluent": lambda r: base64.b64encode(r.randbytes(48)).decode(),
    "pem_escaped": lambda r: pem(r).replace("\n", "\\n"),
    "b64_32": lambda r: base64.b64encode(r.randbytes(32)).decode(),
    "b64_pw": lambda r: b64(password(r)),
    "azure_key": lambda r: base64.b64encode(r.randbytes(64)).decode(),
    "heroku": lambda r: (
        f"HRKU-{groups(some(r, HEX, 8), '')}-{some(r, HEX, 4)}-4{some(r, HEX, 3)}-a{some(r, HEX, 3)}-{some(r, HEX, 12)}"
    ),
    "uuid": lambda r: f"{some(r, HEX, 8)}-{some(r, HEX, 4)}-4{some(r, HEX, 3)}-a{some(r, HEX, 3)}-{some(r, HEX, 12)}",
    "b64_64": lambda r: base64.b64encode(r.randbytes(64)).decode(),
    "b64_48": lambda r: base64.b64encode(r.randbytes(48)).decode(),
    "n16": lambda r: "0" + some(r, DIGITS, 15),
    "hexcolon": lambda r: groups(some(r, HEX, 40), ":", 2),
    "n15": lambda r: "3" + some(r, DIGITS, 14),
    "n18": lambda r: "1" + some(r, DIGITS, 17),
    "ssn": ssn_with("-"),
    "ssn_space": ssn_with(" "),
    "ssn_plain": ssn_with(""),
    "ssn_dot": ssn_with("."),
    "ssn_dash": ssn_with("\u2013"),
    "iban4": iban_with(" "),
    "iban_dash": iban_with("-"),
    "iban_low": iban_with("", lower=True),
    "iban_nbsp": iban_with("\u00a0"),
    "card4": lambda r: groups(card_16(r), " "),
    "card_dash": lambda r: groups(card_16(r), "-"),
    "user": lambda r: r.choice(FIRST),
    "word": lambda r: r.choice(WORDS),
    "n": lambda r: str(r.randrange(2, 99)),
    "n3": lambda r: some(r, "123456789", 3),
    "n6": lambda r: some(r, "123456789", 6),
    "n9": lambda r: some(r, "123456789", 9),
    "n10": lambda r: some(r, "123456789", 10),
    "n12": lambda r: some(r, "123456789", 12),
    "n13": lambda r: "1" + some(r, DIGITS, 12),
    "not_card": lambda r: (v := card_16(r))[:-1] + str((int(v[-1]) + 1 + r.randrange(8)) % 10),
    "not_iban": lambda r: (v := iban(r))[:2] + f"{(int(v[2:4]) - 2 + 1 + r.randrange(90)) % 97 + 2:02}" + v[4:],
    "hex7": lambda r: token(r, HEX, 7),
    "hex12": lambda r: token(r, HEX, 12),
    "mac": lambda r: groups(some(r, HEX, 12), ":", 2),
    "date": lambda r: f"20{r.randrange(10, 26)}-{r.randrange(1, 13):02}-{r.randrange(1, 29):02}",
    "time": lambda r: f"{r.randrange(24):02}:{r.randrange(60):02}:{r.randrange(60):02}",
}

VALUES |= PASSWORDS


def drawn_value(name: str, r: Random) -> str:
    """A value of that form. A name of PARTS is a token of its vendor; any other is in VALUES."""
    if name in VALUES:
        return VALUES[name](r)
    return "".join(prefix + (token(r, letters, n) if n else "") for prefix, letters, n in PARTS[name])
