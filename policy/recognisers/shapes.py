"""What a value looks like: drawn at random, chosen by a person as a password, or plain text."""

import base64
import binascii
import math
import re
from collections import Counter

from headrace.policy.text.letter_triples import surprise

LEAST_BITS = 2.5
"""Bits a character that the random part of a key has at least: xxxxxxxx and 12345 in documentation have fewer."""

# Bits a triple, see ``letter_triples``: 99.8 % of 20 random letters and digits have more than 8, half of all words more
# than 4.3, and 1 % of words of 5 to 9 letters more than 6.3.
_RANDOM = 7.0
_GIBBERISH = 6.8
_SHORT_GIBBERISH = 7.0
_ORDINARY = 5.6
# The same for letters of one case: 99 % of 20 random letters and digits have more than 6.9.
_ONE_CASE = 6.7
_LEAST_CHANGES = 5
# Of a part of a name with digits in it: utf8mb4 has less.
_ODD_WITH_DIGITS = 8.0
_LEAST_TYPED = 8
_LONG = 12
_LEAST_DRAWN = 20
_LEAST_BEHIND = 16
_LEAST_HEX = 30
_SEAM = re.compile(r"[_\-.]")
_MOST_WRITTEN = 128

PLACEHOLDER = re.compile(
    r"(?i)^(?:password|passwd|pass|secret)$|(?:^|[-_])(?:your|my[-_]|example|placeholder|insert|xxx+|todo(?![a-z0-9])|changeme|replace|change[-_](?:it|me|this)$)"
)
REFERENCE = re.compile(r"[$%]|process\.env|os\.environ|\*\*\*|\.{0,2}/|~/|(?i:[a-z][a-z0-9+._\-]{1,23}://)")
# As names of things are written: blue-green-v2, example.org/kind.
WORDS = re.compile(r"[a-z]{2,}(?:[-_./][a-z]{2,})+(?:[-_.]?v?\d{1,4})?")
WORD_AND_NUMBER = re.compile(r"[^\W\d_]{3,}[-_]?\d{3,}[^\w\s]{0,3}")
DOTTED = re.compile(
    r"(?!(?:self|this|process|props|state|window|params|args|env|config|settings|request|org|com|net|java|javax|www)\.)"
    r"[a-z]{3,}(?:\.[a-z]{3,}){3,}(?<!\.com)(?<!\.org)(?<!\.net)(?<!\.html)(?<!\.pem)(?<!\.txt)(?<!\.xml)(?<!\.json)"
)
"""Four words with dots: a password that people choose; not an attribute, a package, a host or a file."""
UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Base64 that is shorter than a key, with one of its signs.
_SHORT_BASE64 = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[+/])[A-Za-z0-9+/]{16,}={0,2}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={1,2}")
_DRAWN = re.compile(r"[0-9a-f]{32,}|(?:[A-Za-z0-9\-]+|[A-Za-z0-9_\-]{40,}|[A-Za-z0-9+/%]{40,})={0,2}")
_ALONE = re.compile(r"[A-Za-z0-9_\-]+|[A-Za-z0-9+/]{40,88}={0,2}")
_CHANGE = re.compile(r"[0-9](?=[A-Za-z])|[A-Za-z](?=[0-9])")
# A vendor's prefix: sk_live_, glpat-.
_PREFIX = re.compile(r"(?:[A-Za-z]{1,12}[0-9]{0,2}[_.\-]){1,3}")
_HEX_GROUPS = re.compile(r"[0-9a-f]+(?:-[0-9a-f]+)*")
_TOKEN = re.compile(r"(?!(?i:sha\d*|md5|urn|arn|h1):)[A-Za-z0-9_\-.~+/:]+={0,2}")
_HEX_BEHIND = re.compile(
    r"(?:[a-z0-9]{1,8}[_\-])?(?:sk|rk|key|secret|sec|tok|token|pat|api|apikey|priv|pri|private|live|prod|test|access|auth|rt|at)"
    r"(?:[_\-][a-z]{1,8}\d?)?[_\-](?:[0-9a-f]{30,}|(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))"
)
_GROUPS = re.compile(r"\w*[A-Z0-9]{4}(?:-[A-Z0-9]{1,4}){3,}")
_HEX = re.compile(r"(?i)(?:0x)?[0-9a-f\-]+")
_TYPED = re.compile(r"[-_]?[A-Za-z0-9]+(?:[_.\-~][A-Za-z0-9]+){0,2}")
_SIGN_INSIDE = re.compile(r"[^\W_][#$!&*^@]+[^\W_]")
_ADDRESS = re.compile(r"@.*\.")
_NUMBERED_WORD = re.compile(r"[A-Za-z]+[A-Z]?[a-z]*\d{1,2}")
_CONSTANT = re.compile(r"[A-Z]+[A-Z0-9]*(?:_[A-Z0-9]+)+")
_ATTRIBUTE = re.compile(r"(?:\.[A-Za-z_]|[a-z_])[A-Za-z_]*\d?(?:\.[A-Za-z_]+\d?[A-Za-z_]*)+")
_DATE = re.compile(r"v?\d[\d.,:/+\-]*(?:[Tt][\d:.,]+(?:[Zz]|[+\-][\d:]+)?)?[A-Za-z%]{0,3}")
_PLAIN = re.compile(
    rf"{_DATE.pattern}"  # numbers, dates, versions, sizes
    r"|[a-z]+://.*|[^@]+@[^@]+\.[a-z]{2,}"  # addresses
    r"|(?:[\w\-]+[./\\])+[\w\-]*|\w+\.\w{1,5}"  # paths, hosts, files, attributes
    r"|@?[a-z0-9][a-z0-9_.\-/]*@(?:v?\d[\w.\-]*|latest)|(?:[a-z]+|v?\d+)(?:[-_.:/](?:[a-z]+|v?\d+))+"  # packages, names
    r"|[A-Z]?[a-z]+(?:[A-Z][a-z]+)*\d{1,2}|[A-Z]+-?\d{1,4}|[A-Z]{2,10}(?:-\d+)+|[A-Za-z]+[-_]?(?:19|20)\d\d|[A-Za-z_]+=.*"
    r"|[a-z]+(?:[-_:./][a-z]+)*(?:[-_:.]?v?\d[\d.]*)?|\d+[a-z]+"  # words, and words with a number
    r"|[A-Za-z]+\d{0,2}(?:,[A-Za-z]+\d{0,2})+"  # lists of words
)


def bits_per_character(text: str) -> float:
    """Shannon's entropy of the characters of a text."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def num_sorts(value: str) -> int:
    """Return how many there are of digits, capitals, small letters and signs."""
    return sum(any(map(sort, value)) for sort in (str.isdigit, str.isupper, str.islower, lambda c: not c.isalnum()))


def _has_both(value: str) -> bool:
    return any(map(str.isupper, value)) and any(map(str.islower, value))


def is_plain(value: str) -> bool:
    """True for numbers, dates, addresses, paths and names: what stands in ordinary text."""
    return len(value) > _MOST_WRITTEN or _PLAIN.fullmatch(value) is not None or PLACEHOLDER.search(value) is not None


def is_date(value: str) -> bool:
    """True for numbers, dates and times."""
    return _DATE.fullmatch(value) is not None


def is_name(value: str) -> bool:
    """True for names in programs that are no values: DB_PASSWORD, settings.db.password2."""
    is_one = _CONSTANT.fullmatch(value) is not None or _ATTRIBUTE.fullmatch(value) is not None
    return is_one and surprise(value) < _ORDINARY and not has_odd_part(value)


def looks_random(value: str) -> bool:
    """True for random strings: 20 or more characters with pairs that are rare in words and in names of programs.

    Nothing need name such a value. Digits and letters of hexadecimal numbers alone do not suffice: digests and ids are
    written so. They do behind a prefix that says that a key follows: ``sk_live_``.
    """
    if _HEX_BEHIND.fullmatch(value):
        return True
    if len(value) < _LEAST_DRAWN or _ALONE.fullmatch(value) is None or _HEX.fullmatch(value):
        return False
    if PLACEHOLDER.search(value) or bits_per_character(value) < 3.4 or surprise(value) < _least_surprise(value):
        return False
    return not _GROUPS.fullmatch(value) and not _is_encoded_text(value)


def _least_surprise(value: str) -> float:
    """Return the surprise from which a value without a word is random: more where no digit is among the letters."""
    digits = sum(map(str.isdigit, value))
    if digits > len(value) * 0.6:
        return math.inf
    if _has_both(value):
        return _RANDOM
    return _ONE_CASE if len(_CHANGE.findall(value)) >= _LEAST_CHANGES else math.inf


def _is_encoded_text(value: str) -> bool:
    """True if it is text, written in base64."""
    try:
        read = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_" if set(value) & {"-", "_"} else None)
    except binascii.Error:
        return False
    return sum(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in read) >= 0.9 * len(read)


def looks_gibberish(value: str) -> bool:
    """True for 8 or more letters and digits that no word and no name in a program has in this order.

    Unlike ``looks_random``, which needs no word before the value, this holds for letters only.
    """
    if len(value) < _LEAST_TYPED or len(value) > _MOST_WRITTEN or _HEX.fullmatch(value):
        return False
    if not _TYPED.fullmatch(value) and not _SHORT_BASE64.fullmatch(value):
        return False
    return surprise(value) >= (_GIBBERISH if len(value) >= _LONG else _SHORT_GIBBERISH) and not PLACEHOLDER.search(
        value
    )


def looks_secret(value: str) -> bool:
    """True for a value that is no name, variable or placeholder, if the text before announces a secret."""
    # One key of 64 begins as a path does.
    if (REFERENCE.match(value) and not _BASE64.fullmatch(value)) or PLACEHOLDER.search(value):
        return False
    bits, sorts, has_digit = bits_per_character(value), num_sorts(value), any(map(str.isdigit, value))
    if len(value) >= _LEAST_DRAWN:
        return sorts >= 2 and bits >= 3
    if len(value) >= 16 and has_digit and sorts >= 2 and value.isalnum() and bits >= 3.2:
        return True
    return len(value) >= 8 and sorts >= 3 and has_digit and bits >= LEAST_BITS


def looks_drawn(value: str) -> bool:
    """True for 20 letters and digits drawn at random, as keys are: such a value needs less before it."""
    if len(value) < _LEAST_DRAWN or PLACEHOLDER.search(value):
        return False
    is_token = _TOKEN.fullmatch(value) is not None and any(map(str.isdigit, value))
    if is_token and surprise(value) >= (_RANDOM if _has_both(value) else _ONE_CASE):
        return True
    if len(value) >= _LEAST_HEX and _HEX_GROUPS.fullmatch(value) and not UUID.fullmatch(value):
        return any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    if prefix := _PREFIX.match(value):
        bare = value[prefix.end() :]
        if len(bare) >= _LEAST_BEHIND and bare.isalnum() and (_is_long_hex(bare) or surprise(bare) >= _ONE_CASE):
            return any(map(str.isdigit, bare))
    has_sorts = all(any(map(sort, value)) for sort in (str.isdigit, str.isupper, str.islower))
    is_hex = value.isalnum() and value == value.lower() and any(map(str.isdigit, value))
    return _DRAWN.fullmatch(value) is not None and (has_sorts or is_hex) and bits_per_character(value) >= 3


def _is_long_hex(value: str) -> bool:
    return _HEX.fullmatch(value) is not None and any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def has_odd_part(value: str, least: float = 6.0) -> bool:
    """True if a part between hyphens, underscores and dots has five letters or more and is no word: maple_gyxrut.

    ``least``: the bits a triple from which it is none.
    """
    parts = [part.rstrip("0123456789") if part[:1].isalpha() else part for part in _SEAM.split(value)]
    return len(parts) > 1 and any(len(part) >= 5 and _is_odd_part(part, least) for part in parts)


def _is_odd_part(part: str, least: float) -> bool:
    if part.isalpha():
        return surprise(part) >= least
    return part.isalnum() and surprise(part) >= _ODD_WITH_DIGITS


def looks_chosen(value: str) -> bool:
    """True for what people choose as a password, and no word and no name in a program."""
    if REFERENCE.match(value) or PLACEHOLDER.search(value):
        return False
    if len(value) <= _MOST_WRITTEN and _NUMBERED_WORD.fullmatch(value):
        return False
    return len(value) >= 8 and any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and num_sorts(value) >= 2


def looks_mixed(value: str) -> bool:
    """True for letters of both sorts with a sign among them, which needs no digit: no word is written so."""
    if REFERENCE.match(value) or PLACEHOLDER.search(value) or _ADDRESS.search(value):
        return False
    return len(value) >= 8 and _has_both(value) and _SIGN_INSIDE.search(value) is not None
