"""Composes texts of the places of ``package_mining`` and drawn values, sort by sort, for figures of each kind.

Half of the packages, and of the vendors, is for looking at (0). The other half (1) is for one figure, and stays unread
until the changes are done.
"""

import base64
import json
import re
import string
from functools import cache
from pathlib import Path
from random import Random

from benchmarks.secrets.compose import Vendor, key_of, plain_key, some, vendors
from benchmarks.secrets.mined_cases import spoken
from benchmarks.secrets.package_mining import PERSONAL, SECRETS, Place, half
from headrace.policy.evaluation import Case

_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"
_LOWER = string.ascii_lowercase + string.digits
_VALUES = Path(__file__).parent / "packages/values.txt"
_WORD = re.compile(r"\b(?!your|pass|token|secret|example)[a-z]{4,8}\b")
_LEAST_PLACES = 3
_IN_URL = re.compile(r"[A-Za-z0-9_\-.~!$*+=]+")
_UNQUOTED = re.compile(r"[^\s\"'`<>()&;|\\,\[\]{}#:@]+")
# The name of a key or token stands before; people choose passwords only.
_OF_KEY = re.compile(
    r"(?i)(?:key|token|secret|secreta|密钥|密鑰|秘密鍵|トークン|アクセスキー|토큰|ключ api|clé api)\W{0,12}$"
)
_QUOTES = "\"'`"
# What stands in examples in place of a secret.
PLACEHOLDERS = (
    *(
        "changeme",
        "<your-key>",
        "<password>",
        "YOUR_API_KEY",
        "your-secret-here",
        "xxxxxxxx",
        "XXXX-XXXX-XXXX",
        "********",
    ),
    *(
        "...",
        "${DB_PASSWORD}",
        "$TOKEN",
        "{{password}}",
        "%PASSWORD%",
        "REPLACE_ME",
        "insert-key-here",
        "example",
        "TODO",
    ),
    *(
        "null",
        "None",
        "process.env.TOKEN",
        "config.password",
        "[redacted]",
        "my-secret",
        "placeholder",
        "string",
        "abc",
    ),
    *("password", "<YOUR_TOKEN_HERE>", "your_password_here", "{api_key}", "$(cat/run/secrets/token)", "change-it"),
    *("secret_key_here", "@Value", "ENC(...)", "yourStrongPassword", "your.api.token", "--------", "token", "apikey"),
    *("undefined", "settings.SECRET_KEY"),
)
# Passwords of lists of the most frequent ones, of a letter and a digit and eight characters or more.
_FREQUENT = (
    *("password1", "trustno1", "abcd1234", "1234qwer", "q1w2e3r4", "iloveyou1", "qwerty12", "football1", "letmein1"),
    *("baseball1", "sunshine1", "princess1", "charlie1", "michael1", "superman1", "welcome1", "monkey12", "hunter22"),
    *("ncc1701d", "jordan23", "passw0rd", "p4ssw0rd", "a1b2c3d4", "zxcvbnm1", "samsung1", "liverpool1", "chelsea1"),
    *("arsenal1", "jessica1", "ashley12", "blink182", "slipknot1", "metallica1", "pokemon1", "starwars1", "dragon12"),
    *("shadow12", "summer99", "killer12"),
)


@cache
def _values() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in _VALUES.read_text().splitlines():
        if not line.startswith("#"):
            kind, _, value = line.split("\t")
            found.setdefault(kind, []).append(value)
    return found


def password(draw: Random, words: list[str]) -> str:
    """Return a password in the forms of generators, and of people."""
    one, two, three, four = draw.choices(words, k=4)
    number, sign = draw.randrange(1, 1000), draw.choice("!@#$%&*?")
    return draw.choice((
        lambda: some(draw, _ALNUM, draw.choice((12, 14, 16, 20))) + draw.choice(string.digits),  # Bitwarden, KeePassXC
        lambda: some(draw, _ALNUM + "!@#$%^&*", draw.choice((11, 13, 15))) + draw.choice(string.digits),
        lambda: base64.b64encode(draw.randbytes(draw.choice((12, 18, 24)))).decode(),  # openssl rand -base64
        lambda: draw.randbytes(draw.choice((8, 10, 16))).hex(),  # openssl rand -hex
        lambda: some(draw, _LOWER + "!@#$%^&*(-_=+)", 50),  # Django's SECRET_KEY
        lambda: some(draw, _LOWER, draw.choice((10, 12, 14))) + draw.choice(string.digits),
        lambda: "-".join(some(draw, _ALNUM, 6) for _ in range(3)),  # Apple
        lambda: spoken(draw),  # pwgen
        lambda: "-".join((one.title(), two.title(), three.title())) + str(number % 10),  # 1Password, words
        lambda: ".".join((one, two, three, four)),
        lambda: f"{one.title()}{draw.randrange(1960, 2027)}{sign}",
        lambda: f"{one}{two.title()}{number}",
        lambda: one.title().translate(str.maketrans("aeios", "@310$")) + f"{sign}{number}",
        lambda: draw.choice(_FREQUENT),
    ))()  # fmt: skip


def _web_token(draw: Random) -> str:
    parts = (
        {"alg": draw.choice(("HS256", "RS256", "ES256")), "typ": "JWT"},
        {"sub": some(draw, _HEX, 8), "iat": 1700000000},
    )
    first, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{first}.{body}.{some(draw, _ALNUM + '-_', 43)}"


def _pem(draw: Random, line_end: str) -> str:
    sort = draw.choice(("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "))
    body = base64.b64encode(draw.randbytes(draw.choice((120, 300, 600)))).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return line_end.join((f"-----BEGIN {sort}PRIVATE KEY-----", *lines, f"-----END {sort}PRIVATE KEY-----"))


def _made(sort: str, place: Place, draw: Random, words: list[str], known: list[Vendor]) -> str:
    if sort == "vendor":
        return key_of(draw.choice(known), draw)
    if sort == "jwt":
        return _web_token(draw)
    if sort == "private_key":
        return _pem(draw, "\\n")
    if sort in PERSONAL:
        # An address with colons needs brackets before a port.
        is_short = sort == "ip_address" and (place.after.startswith(":") or place.before.endswith("@"))
        return draw.choice([value for value in _values()[sort] if not is_short or ":" not in value])
    if sort == "key" or (sort not in {"password", "url", "basic"} and _OF_KEY.search(place.before)):
        return plain_key(draw)
    return password(draw, words)


def compose(seed: int, places: dict[str, list[Place]], part: int, number: int) -> dict[str, list[Case]]:
    """Return texts by their sort: ``number`` with one value each for every sort, and as many with a placeholder.

    ``part``: the half that ``places`` are of; vendors are of the same half.
    """
    draw = Random(f"packages {seed} {part}")
    known = [each for each in vendors("packages") if half(each.name) == part]
    words = sorted({word for of_sort in places.values() for each in of_sort for word in _WORD.findall(each.before)})
    found = {}
    for sort in ("vendor", *SECRETS, "jwt", "private_key", *PERSONAL):
        fitting = places.get("key" if sort in {"vendor", "jwt", "private_key"} else sort, [])
        if sort == "private_key":
            fitting = [each for each in fitting if each.before[-1:] in _QUOTES]
        found[sort] = (
            [_case(draw, sort, fitting, words, known) for _ in range(number)] if len(fitting) >= _LEAST_PLACES else []
        )
    secret = [each for sort in SECRETS for each in places.get(sort, []) if sort not in {"separator", "local"}]
    found["placeholder"] = [_placed(draw.choice(secret), draw.choice(PLACEHOLDERS), None) for _ in range(number)]
    return found


def _case(draw: Random, sort: str, fitting: list[Place], words: list[str], known: list[Vendor]) -> Case:
    kind = sort if sort in {"jwt", "private_key", *PERSONAL} else "api_key"
    while True:
        place = draw.choice(fitting)
        value = _made(sort, place, draw, words, known)
        if kind in PERSONAL or _fits(value, place):
            return _placed(place, value, kind)


def _placed(place: Place, value: str, kind: str | None) -> Case:
    start = len(place.before)
    marked = frozenset() if kind is None else frozenset([(start, start + len(value), kind)])
    return Case(place.sort, place.before + value + place.after, marked, is_held_out=True)


def _fits(value: str, place: Place) -> bool:
    if place.sort in {"url", "basic"}:
        return _IN_URL.fullmatch(value) is not None
    quote = place.before[-1:]
    if place.sort == "connection":
        return not set(value) & set(";\"' ")
    return (quote in _QUOTES and quote not in value) or _UNQUOTED.fullmatch(value) is not None
