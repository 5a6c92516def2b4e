"""What a value looks like: drawn at random, chosen by a person as a password, or plain text."""

import base64
import binascii
import math
import re
from collections import Counter

LEAST_BITS = 2.5
"""Bits a character that the random part of a key has at least: xxxxxxxx and 12345 in documentation have fewer."""

# Pairs of letters of which most words and names in programs consist (85 % there; 25 % where they are drawn).
_COMMON_TEXT = """
ab ac ad ag ai al am an ap ar as at au ay ba be bi bl bo ca ce ch ci ck cl co cr ct cu da de di do ds ea ec ed
ee ef eg el em en ep er es et ev ex fa fe ff fi fo fr ge gi ha he hi ho ia ic id ie if ig il im in io ip ir is
it iv ke la le li ll lo ls lt lu ly ma me mi mo mp na nc nd ne ng ni no ns nt oc od ol om on oo op or os ot ou
ow pa pe pi pl po pp pr pt qu ra rd re rg ri rm ro rr rs rt ry sa sc se sh si so sp ss st su ta tc te th ti to
tr ts tt tu ty ub ue ul um un up ur us ut va ve vi wa we xt yp ze
"""
_COMMON = frozenset(_COMMON_TEXT.split())
_LEAST_DRAWN = 20
_MOST_WRITTEN = 128
_PAIR = re.compile(r"(?=([A-Za-z]{2}))")

PLACEHOLDER = re.compile(
    r"(?i)^(?:password|passwd|pass|secret)$|(?:^|[-_])(?:your|my[-_]|example|placeholder|insert|xxx+|todo|changeme|replace)"
)
REFERENCE = re.compile(r"[$%]|process\.env|os\.environ|\*\*\*|\.{0,2}/|~/|https?://")
# As names of things are written: blue-green-v2, example.org/kind.
WORDS = re.compile(r"[a-z]{2,}(?:[-_./][a-z]{2,})+(?:[-_.]?v?\d{1,4})?")
WORD_AND_NUMBER = re.compile(r"[^\W\d_]{3,}[-_]?\d{3,}[^\w\s]{0,3}")
UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={1,2}")
_DRAWN = re.compile(r"[0-9a-f]{32,}|(?:[A-Za-z0-9\-]+|[A-Za-z0-9_\-]{40,}|[A-Za-z0-9+/%]{40,})={0,2}")
_ALONE = re.compile(r"[A-Za-z0-9_\-]+|[A-Za-z0-9+/]{40,88}={0,2}")
_GROUPS = re.compile(r"\w*[A-Z0-9]{4}(?:-[A-Z0-9]{1,4}){3,}")
_HEX = re.compile(r"(?i)[0-9a-f\-]+")
_SIGN_INSIDE = re.compile(r"[^\W_][#$!&*^@]+[^\W_]")
_ADDRESS = re.compile(r"@.*\.")
_NUMBERED_WORD = re.compile(r"[A-Za-z]+[A-Z]?[a-z]*\d{1,2}")
_CONSTANT = re.compile(r"[A-Z]+[A-Z0-9]*(?:_[A-Z0-9]+)+")
_ATTRIBUTE = re.compile(r"(?:\.[A-Za-z_]|[a-z_])[A-Za-z_]*\d?(?:\.[A-Za-z_]+\d?)+")
_DATE = re.compile(r"v?\d[\d.,:/+\-]*(?:[Tt][\d:.,]+(?:[Zz]|[+\-][\d:]+)?)?[A-Za-z%]{0,3}")
_PLAIN = re.compile(
    rf"{_DATE.pattern}"  # numbers, dates, versions, sizes
    r"|[a-z]+://.*|[^@]+@[^@]+\.[a-z]{2,}"  # addresses
    r"|(?:[\w\-]+[./\\])+[\w\-]*|\w+\.\w{1,5}"  # paths, hosts, files, attributes
    r"|@?\w[\w.\-/]*@(?:v?\d[\w.\-]*|latest)|(?:[a-z]+|v?\d+)(?:[-_.:/](?:[a-z]+|v?\d+))+"  # packages, names
    r"|[A-Z]?[a-z]+(?:[A-Z][a-z]+)*\d{1,2}|[A-Z]+-?\d{1,4}|[A-Z]{2,10}-\d+|[A-Za-z]+[-_]?(?:19|20)\d\d|[A-Za-z_]+=.*"
    r"|[a-z]+(?:[-_:./][a-z]+)*(?:[-_:.]?v?\d[\d.]*)?|\d+[a-z]+"  # words, and words with a number
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
    return _CONSTANT.fullmatch(value) is not None or (
        _ATTRIBUTE.fullmatch(value) is not None and _share_of_common(value) > 0.5
    )


def looks_random(value: str) -> bool:
    """True for random strings: 20 or more characters of three sorts, with pairs of letters that are rare in languages.

    Nothing need name such a value. Digits and letters of hexadecimal numbers alone do not suffice: digests and ids are
    written so.
    """
    if len(value) < _LEAST_DRAWN or _ALONE.fullmatch(value) is None or _HEX.fullmatch(value):
        return False
    digits = sum(map(str.isdigit, value))
    if not _has_both(value) or not 2 <= digits <= len(value) * 0.6 or PLACEHOLDER.search(value):
        return False
    if bits_per_character(value) < 3.4 or _share_of_common(value) > 0.5:
        return False
    return not _GROUPS.fullmatch(value) and not _is_encoded_text(value)


def _is_encoded_text(value: str) -> bool:
    """True if it is text, written in base64."""
    try:
        read = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_" if set(value) & {"-", "_"} else None)
    except binascii.Error:
        return False
    return sum(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in read) >= 0.9 * len(read)


def _share_of_common(value: str) -> float:
    pairs = [found[1].lower() for found in _PAIR.finditer(value)]
    return sum(pair in _COMMON for pair in pairs) / len(pairs) if pairs else 0.0


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
    has_sorts = all(any(map(sort, value)) for sort in (str.isdigit, str.isupper, str.islower))
    is_hex = value.isalnum() and value == value.lower() and any(map(str.isdigit, value))
    return (
        len(value) >= _LEAST_DRAWN
        and _DRAWN.fullmatch(value) is not None
        and (has_sorts or is_hex)
        and bits_per_character(value) >= 3
        and not PLACEHOLDER.search(value)
    )


def looks_chosen(value: str) -> bool:
    """True for what people choose as a password, and no word and no name in a program."""
    if REFERENCE.match(value) or PLACEHOLDER.search(value) or _NUMBERED_WORD.fullmatch(value):
        return False
    return len(value) >= 8 and any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and num_sorts(value) >= 2


def looks_mixed(value: str) -> bool:
    """True for letters of both sorts with a sign among them, which needs no digit: no word is written so."""
    if REFERENCE.match(value) or PLACEHOLDER.search(value) or _ADDRESS.search(value):
        return False
    return len(value) >= 8 and _has_both(value) and _SIGN_INSIDE.search(value) is not None
