"""Passwords as people choose them and as programs generate them, for the texts of ``lines``."""

import string
from collections.abc import Callable
from random import Random

from tests.policy.line_forms import ALNUM, BASE32, DIGITS, LOWER
from tests.policy.line_ids import some


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words(
    """
    anna bruno chloe dmitri fatou gustav hana jorge kenji lotte mehmet priya sophie tomasz luca ingrid
    """
)
_THINGS = _words(
    """
    sommer winter berlin liverpool arsenal schalke dragon monkey tiger hund katze kaffee chocolat soleil perro gato
    futbol corazon amore juventus praia saudade fiets kaas hockey snowball guitar purple banana rocket shadow
    """
)
_SHORT_WORDS = _words(
    """
    tide lamp orbit crumb zebra walnut copper meadow violin harbor kettle marble sparrow lantern cactus pepper
    glacier ribbon saddle tunnel anchor bamboo candle desert ember falcon garlic hammer island jacket
    """
)
# Of the list of BIP 39.
_SEED_WORDS = _words(
    """
    abandon ability absent acoustic blanket bonus bottom cabbage canvas carbon decline deposit dolphin echo eagle
    edge fabric family famous gadget garage gospel habit hammer harvest icon illness idle jacket jazz jealous
    kangaroo kick ladder lecture liar machine magnet mango naive narrow oblige obscure ocean paddle panda parrot
    quantum rabbit raccoon saddle sample scatter tackle talent tornado umbrella unfold vacant valve velvet wagon
    walnut yellow zebra
    """
)
_LEET = str.maketrans("aeiost", "43105t")
_SIGNS = "!@#$%^&*"
_PRINTED = ALNUM + "!#$%&()*+,-./:;<=>?@[]^_{|}~"


def _with_all(r: Random, letters: str, n: int) -> str:
    """Return n signs, of which each sort occurs, with a letter or digit at the ends."""
    while True:
        value = r.choice(ALNUM) + some(r, letters, n - 2) + r.choice(ALNUM)
        sorts = (str.isdigit, str.isupper, str.islower, lambda sign: not sign.isalnum())
        if all(any(map(sort, value)) for sort in sorts):
            return value


def pw_chosen(r: Random) -> str:
    """As people choose them."""
    thing, other, name = r.choice(_THINGS), r.choice(_THINGS), r.choice(_NAMES)
    year, n = r.randrange(1965, 2026), r.randrange(10, 100)
    return r.choice(
        (
            f"{thing.title()}{year}!",
            f"{thing.title()}{year}",
            f"{thing}{r.randrange(100, 10000)}",
            f"{name}{n:02}{r.randrange(1, 13):02}{year % 100:02}",
            f"{thing.title()}{n}",
            f"{name.title()}.{other.title()}{n}",
            f"{thing.translate(_LEET).title()}{n}!",
            f"{thing.title()}-{other.title()}-{n}",
            f"{thing.title()}&{other.title()}{n % 10}",
            f"{some(r, string.ascii_uppercase, 2)}{some(r, LOWER, 2)}{n}{r.choice(_SIGNS)}{some(r, ALNUM, 3)}",
            f"qwer{r.randrange(1000, 9999)}{r.choice('!?$')}",
            f"{name.title()}@{year}",
        )
    )


def pw_plain(r: Random) -> str:
    """Such as can stand in a URL or a shell word without quotes."""
    thing = r.choice(_THINGS)
    return r.choice(
        (
            f"{thing}{r.randrange(100, 10000)}",
            f"{thing.title()}{r.randrange(1965, 2026)}",
            f"{thing}_{some(r, LOWER + DIGITS, 5)}",
            some(r, ALNUM, r.randrange(12, 21)),
            some(r, LOWER + DIGITS, r.randrange(10, 17)),
            some(r, string.ascii_letters, 16),
        )
    )


def pw_apple(r: Random) -> str:
    """Three groups of six, with a capital and a digit."""
    signs = [r.choice(LOWER) for _ in range(18)]
    at, other = r.sample(range(1, 17), 2)
    signs[at], signs[other] = r.choice(DIGITS), r.choice(string.ascii_uppercase)
    value = "".join(signs)
    return f"{value[:6]}-{value[6:12]}-{value[12:]}"


def pw_short(r: Random) -> str:
    """Six or seven signs."""
    return r.choice(
        (
            f"{r.choice(_NAMES)[:3]}{r.randrange(100, 1000)}",
            f"{some(r, LOWER, 2)}{some(r, DIGITS, 2)}{some(r, LOWER, 2)}{r.choice('#!$')}",
            f"{some(r, LOWER, 1)}{r.choice(DIGITS)}{some(r, ALNUM, 4)}",
        )
    )


PASSWORDS: dict[str, Callable[[Random], str]] = {
    "pw_chosen": pw_chosen,
    "pw_plain": pw_plain,
    "pw_apple": pw_apple,
    "pw_short": pw_short,
    # Of Google, for programs.
    "pw_apple_spaces": lambda r: " ".join(some(r, LOWER, 4) for _ in range(4)),
    "pw_manager": lambda r: _with_all(r, ALNUM + _SIGNS, r.randrange(12, 21)),
    "pw_symbols": lambda r: _with_all(r, _PRINTED, r.randrange(16, 25)),
    "pw_symbols_bare": lambda r: _with_all(r, _PRINTED, 12),
    "pw_digits": lambda r: some(r, "123456789", r.randrange(8, 11)),
    "pw_digits20": lambda r: some(r, "123456789", 20),
    "pw_mixed_letters": lambda r: some(r, string.ascii_letters, r.randrange(12, 15)),
    "phrase": lambda r: " ".join(r.sample(_SHORT_WORDS, r.randrange(4, 7))),
    "phrase_hyphen": lambda r: "-".join(r.sample(_SHORT_WORDS, 4)),
    "seed12": lambda r: " ".join(r.sample(_SEED_WORDS, 12)),
    "pin": lambda r: some(r, DIGITS, 4),
    "base32": lambda r: some(r, BASE32, r.choice((16, 32))),
    "wp_salt": lambda r: _with_all(r, _PRINTED + " ", 64),
}
