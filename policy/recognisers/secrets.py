"""Keys to other systems: vendors' API keys, passwords that are assigned or stand in URLs, JSON web tokens, PEM keys."""

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from policy.recognisers.commands import COMMAND_PASSWORD
from policy.recognisers.recogniser import Kind, Recogniser, Spans
from policy.recognisers.secret_words import (
    CALL,
    FOR,
    IS,
    IS_WORDS,
    KEYS,
    LOOSE,
    NEXT,
    NO_SECRET_KEY,
    OF_VALUE,
    PAIR,
    PASSWORDS,
    SHORT,
    SIGNS,
    VALUE,
)
from policy.recognisers.vendor_keys import NAMED, VENDORS

_LEAST_BITS = 2.5
"""Bits a character that the random part of a key has at least: xxxxxxxx and 12345 in documentation have fewer."""


def bits_per_character(text: str) -> float:
    """Shannon's entropy of the characters of a text."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


_SENTENCE = re.compile(r"(?:\.|-{2,})+$")
_PREFIX = re.compile(r"[A-Za-z0-9]{2,10}[-_.](?:v1_|proj-|svcacct-|admin-|ant-|api\d\d-|live_|test_|pat_)*")
_PLACEHOLDER = re.compile(
    r"(?i)^(?:password|passwd|pass|secret)$|(?:^|[-_])(?:your|my[-_]|example|placeholder|insert|xxx+|todo|changeme|replace)"
)


def check_vendor_key(candidate: str, before: str) -> Spans:
    """A vendor's prefix, and behind it something that looks drawn at random."""
    if before[-1:] in {"-", "_", "."}:
        return
    # A sentence's end or dash; one hyphen may be the key's own.
    end = len(_SENTENCE.sub("", candidate))
    secret = _PREFIX.sub("", candidate[:end], count=1) or candidate
    has_digit = any(map(str.isdigit, secret)) or len(set(secret)) > 16
    if has_digit and bits_per_character(secret) >= _LEAST_BITS and not _PLACEHOLDER.search(candidate):
        yield 0, end


def _by_names() -> list[tuple[str, list[re.Pattern[str]]]]:
    """Return the forms of keys by the expression for their vendor's names."""
    forms: dict[str, list[re.Pattern[str]]] = {}
    for names, key in NAMED:
        forms.setdefault(names, []).append(key)
    # Without groups of their own.
    return [(re.sub(r"(?<!\\)\((?!\?)", "(?:", names), keys) for names, keys in forms.items()]


_BY_NAMES = _by_names()

VENDOR_KEY = Recogniser(
    "api_key.vendor", Kind.API_KEY, 90, rf"\b(?:{'|'.join(VENDORS)})", check_vendor_key, tail=r"[A-Za-z0-9_\-]"
)

_ASSIGNED = re.compile(
    rf"(?i)(?:(?:{KEYS})(?:{IS}|{NEXT}|(?P<spaced>{FOR}{IS}|[ \t]{{1,3}}))"
    rf"|{SHORT}(?P<short>{SIGNS})|{LOOSE}(?P<loose>{IS})|(?P<call>{CALL})|(?P<pair>{PAIR})"
    rf"|(?:{PASSWORDS})(?:(?P<set>{SIGNS})|(?P<said>{IS_WORDS})|{FOR}(?P<far>{IS})|{NEXT}|[ \t]{{1,3}}))"
    rf"{OF_VALUE}"
)
_FLAG = re.compile(rf"(?i)--?[a-z\-]{{0,24}}(?:key|token|secret|(?P<set>pass[a-z]{{0,6}}|pwd))(?:[ =]){OF_VALUE}")
_AFTER_VALUE = re.compile(r"(?:[.:?]|\*\*)+$|\\+$")
# base64:aGVsbG8=
_FORM = re.compile(r"(?:base64|b64|hex|plain|raw|pass):")
# Of a list: sv=2022-11-02&sig=x.
_PARAMETER = re.compile(r"[a-z]{1,8}=[^=]")
# settings.DB_PASSWORD
_ATTRIBUTE = re.compile(r"[a-z_]+(?:\.[A-Za-z_]+)+")
_HEX = re.compile(r"[0-9a-f]+")
_WORD_AND_NUMBER = re.compile(r"[^\W\d_]{3,}[-_]?\d{3,}[^\w\s]{0,3}")
_NEXT_PARAMETER = re.compile(r"&\w+=")
_BEARER_VALUE = r"[A-Za-z0-9+/=_.~\-]"
_AUTHORIZATION = r"authorization[\\\"']{0,2}\s?[:=]\s?[\\\"']{0,2}[A-Za-z]{2,16}"
_BEARER = re.compile(rf"(?i)(?:bearer|basic|token|api[ _\-]?key|{_AUTHORIZATION}) ({_BEARER_VALUE}+)")
_IN_URL = re.compile(r"://[^\s/@]*$")


_MOST_NAMES = 8


def check_assigned(candidate: str, before: str) -> Spans:
    """A value that a password or key is set to, if it looks like one: not a word, a variable or a placeholder."""
    for found in _named(candidate):
        if (span := _assigned_span(found, before)) is not None:
            yield span
            return


def _named(candidate: str) -> Iterator[re.Match[str]]:
    """Yield what is named, also inside of a value that was none: SharedAccessSignature=sv=1&sig=x. Searches lazily."""
    if flag := _FLAG.match(candidate):
        yield flag
    at = 0
    for _ in range(_MOST_NAMES):
        found = _ASSIGNED.search(candidate, at)
        if found is None:
            break
        yield found
        at = found.start(found.lastindex or 0)
    if bearer := _BEARER.search(candidate):
        yield bearer


def _assigned_span(found: re.Match[str], before: str) -> tuple[int, int] | None:
    start, end = _value_span(found, before)
    candidate, groups = found.string, found.groupdict()
    value = candidate[start:end]
    # A function's name.
    if candidate[end : end + 1] == "(":
        return None
    if groups.get("loose"):
        is_known = NO_SECRET_KEY.search(before + candidate[: found.start()])
        is_weak = found[0].lower().startswith("key") and _HEX.fullmatch(value)
        return (start, end) if _looks_drawn(value) and not is_known and not is_weak else None
    if groups.get("spaced") or groups.get("call"):
        return (start, end) if _looks_drawn(value) else None
    return (start, end) if _is_believed(value, groups) else None


def _is_believed(value: str, groups: dict[str, str | None]) -> bool:
    """True if the value looks like a secret; for a password less is enough, by what stands between it and its name."""
    if (
        not _WORDS.fullmatch(value)
        and not _PARAMETER.match(value)
        and not _ATTRIBUTE.fullmatch(value)
        and _looks_secret(value)
    ):
        return True
    is_set, said, far = (bool(groups.get(name)) for name in ("set", "said", "far"))
    return (
        ((is_set or bool(groups.get("short") or groups.get("pair"))) and _looks_chosen(value))
        or (far and _looks_chosen(value) and not _WORDS.fullmatch(value))
        or (said and _looks_chosen(value) and _WORD_AND_NUMBER.fullmatch(value) is not None)
        or ((is_set or said or far) and _looks_mixed(value))
    )


def _value_span(found: re.Match[str], before: str) -> tuple[int, int]:
    candidate = found.string
    start, end = found.span(found.lastindex or 0)
    if following := _NEXT_PARAMETER.search(candidate, start):
        end = following.start()
    if _IN_URL.search(before + candidate[:start]):
        # A user's name is called a token: https://x-access-token:value@host.
        end = start + len(candidate[start:end].partition("@")[0])
    if form := _FORM.match(candidate, start, end):
        start = form.end()
    return start, start + len(_AFTER_VALUE.sub("", candidate[start:end]))


def _sorts(value: str) -> int:
    return sum(any(map(sort, value)) for sort in (str.isdigit, str.isupper, str.islower, lambda c: not c.isalnum()))


_REFERENCE = re.compile(r"[$%]|process\.env|os\.environ|\*\*\*|\.{0,2}/|~/|https?://")


_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={1,2}")


def _looks_secret(value: str) -> bool:
    # One key of 64 begins as a path does.
    if (_REFERENCE.match(value) and not _BASE64.fullmatch(value)) or _PLACEHOLDER.search(value):
        return False
    bits, num_sorts, has_digit = bits_per_character(value), _sorts(value), any(map(str.isdigit, value))
    if len(value) >= 20:
        return num_sorts >= 2 and bits >= 3
    if len(value) >= 16 and has_digit and num_sorts >= 2 and value.isalnum() and bits >= 3.2:
        return True
    return len(value) >= 8 and num_sorts >= 3 and has_digit and bits >= _LEAST_BITS


_DRAWN = re.compile(r"[0-9a-f]{32,}|(?:[A-Za-z0-9\-]+|[A-Za-z0-9_\-]{40,}|[A-Za-z0-9+/%]{40,})={0,2}")


def _looks_drawn(value: str) -> bool:
    """True for 20 letters and digits drawn at random, as keys are: such a value needs less before it."""
    has_sorts = all(any(map(sort, value)) for sort in (str.isdigit, str.isupper, str.islower))
    is_hex = value.isalnum() and value == value.lower() and any(map(str.isdigit, value))
    return (
        len(value) >= 20
        and _DRAWN.fullmatch(value) is not None
        and (has_sorts or is_hex)
        and bits_per_character(value) >= 3
        and not _PLACEHOLDER.search(value)
    )


# As names of things are written: blue-green-v2, example.org/kind.
_WORDS = re.compile(r"[a-z]{2,}(?:[-_./][a-z]{2,})+(?:[-_.]?v?\d{1,4})?")
_SIGN_INSIDE = re.compile(r"[^\W_][#$!&*^@]+[^\W_]")
_ADDRESS = re.compile(r"@.*\.")
_NUMBERED_WORD = re.compile(r"[A-Za-z]+[A-Z]?[a-z]*\d{1,2}")


def _looks_chosen(value: str) -> bool:
    """True for what people choose as a password, and no word and no name in a program."""
    if _REFERENCE.match(value) or _PLACEHOLDER.search(value) or _NUMBERED_WORD.fullmatch(value):
        return False
    return len(value) >= 8 and any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and _sorts(value) >= 2


def _looks_mixed(value: str) -> bool:
    """True for letters of both sorts with a sign among them, which needs no digit: no word is written so."""
    if _REFERENCE.match(value) or _PLACEHOLDER.search(value) or _ADDRESS.search(value):
        return False
    has_both = any(map(str.isupper, value)) and any(map(str.islower, value))
    return len(value) >= 8 and has_both and _SIGN_INSIDE.search(value) is not None


ASSIGNED = Recogniser(
    "api_key.assigned",
    Kind.API_KEY,
    55,
    rf"(?i)(?:(?:{KEYS})(?:{IS}|{NEXT})"
    rf"|(?:{SHORT}{SIGNS}|{PAIR})|(?:{PASSWORDS})(?:{IS}|{FOR}{IS}|{NEXT}|[ \t]{{1,3}}))"
    rf"(?:\\{{0,3}}\"[^\s\"]{{8,}}|\\{{0,3}}'{{1,3}}[^\s']{{8,}}|(?:[`“„「]|«\s?)?{VALUE}{{8,}}\(?)"
    rf"|(?:(?:{KEYS})(?:[ \t]{{1,3}}|{FOR}{IS})|{LOOSE}{IS}|{CALL})"
    rf"[\\\"'`“]{{0,2}}[A-Za-z0-9+/%_\-]{{20,}}={{0,2}}"
    rf"|\B--?[a-z\-]{{0,24}}(?:key|token|secret|pass[a-z]{{0,6}}|pwd)[ =]"
    rf"(?:\"[^\s\"]{{8,}}|'[^\s']{{8,}}|{VALUE}{{8,}})"
    rf"|\b(?:bearer|basic|{_AUTHORIZATION}) {_BEARER_VALUE}{{16,}}|\b(?:token|api[ _\-]?key) [A-Za-z0-9_\-]{{24,}}",
    check_assigned,
    tail=VALUE,
)

_HTTPIE = re.compile(r"\bhttps?\s[^\n]*$")
_USER_PASSWORD = re.compile(r"[\s=](?:\"[^\":\s]+:([^\"\s]+)|'[^':\s]+:([^'\s]+)|[^\s\"':]+:([^\s\"']+))$")


def check_user_password(candidate: str, before: str) -> Spans:
    """The password of ``curl -u user:password``; for another program only if it looks like one."""
    found = _USER_PASSWORD.search(candidate)
    if found is None:
        return
    start, end = found.span(found.lastindex or 0)
    value = candidate[start:end]
    if _REFERENCE.match(value) or value.startswith("<") or _PLACEHOLDER.search(value):
        return
    if candidate[:2] == "-a" and _HTTPIE.search(before) is None:
        return
    if "curl" in before or "wget" in before or _looks_secret(value) or _looks_chosen(value):
        yield start, end


USER_PASSWORD = Recogniser(
    "api_key.user_password",
    Kind.API_KEY,
    56,
    r"(?:\B-[ua]|--user|--proxy-user)[ =]{1,2}(?:\"[^\s\":]{1,64}:[^\s\"]{4,128}|'[^\s':]{1,64}:[^\s']{4,128}"
    r"|[^\s\"':]{1,64}:[^\s\"']{4,128})",
    check_user_password,
)

_NAMED_SIGNS = r"[ \t\w.\-]{0,20}[\s\"']{0,3}(?:=>|:{1,3}=|\?=|=|>|:|,|\|\|)[`\"\s=']{0,5}"
_NAMED_VALUE = r"[A-Za-z0-9_\-=.%+/:]"
_NAMED_PARTS = [
    (re.compile(rf"(?i)(?:{names}){_NAMED_SIGNS.replace('0,20}', '0,20}?')}({_NAMED_VALUE}+)$"), keys)
    for names, keys in _BY_NAMES
]


def check_named(candidate: str, _before: str) -> Spans:
    """A value of the form that the vendor's keys have that is named before it."""
    for named, keys in _NAMED_PARTS:
        found = named.search(candidate)
        if found is None:
            continue
        value = found[1].rstrip(".:")
        looks_drawn = any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and bits_per_character(value) >= 3
        if looks_drawn and not _PLACEHOLDER.search(value) and any(key.fullmatch(value) for key in keys):
            yield found.start(1), found.start(1) + len(value)
            return


NAMED_KEY = Recogniser(
    "api_key.named",
    Kind.API_KEY,
    54,
    rf"(?i)(?:{'|'.join(names for names, _ in _BY_NAMES)}){_NAMED_SIGNS}{_NAMED_VALUE}{{14,}}",
    check_named,
    tail=_NAMED_VALUE,
)


def check_url_password(candidate: str, _before: str) -> Spans:
    """The password between a URL's scheme, or Oracle's user, and its host."""
    scheme = candidate.find("://")
    start = candidate.rindex("/") + 1 if scheme < 0 else candidate.index(":", scheme + 3) + 1
    end = candidate.rindex("@")
    if (
        end > start
        and not candidate[start:end].startswith(("$", "<", "{", "***"))
        and not _PLACEHOLDER.match(candidate[start:end])
    ):
        yield start, end


URL_PASSWORD = Recogniser(
    "api_key.url_password",
    Kind.API_KEY,
    88,
    r"\b[a-zA-Z][a-zA-Z0-9+.\-]{1,15}://[^\s/:@\"']{0,64}:[^\s/\"']{1,128}@"
    r"|\b(?:jdbc:oracle:[a-z0-9]{2,5}:|(?:sqlplus|rman|expdp|impdp) )[^\s/:@\"']{1,64}/[^\s/@\"']{1,128}@",
    check_url_password,
)


_LEAST_CLAIMS = 16


def check_jwt(candidate: str, _before: str) -> Spans:
    """Parts of base64url of which the first is a JSON object that names an algorithm; the last may be cut off."""
    text = candidate.rstrip(".-_") if candidate.count(".") > 2 else candidate
    head, _, claims = text.partition(".")
    if "." not in claims and len(claims) < _LEAST_CLAIMS:
        return
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (binascii.Error, ValueError):
        return
    if isinstance(header, dict) and ("alg" in header or "typ" in header):
        yield 0, len(text)


JWT = Recogniser(
    "jwt",
    Kind.JWT,
    95,
    # Three parts if signed, five if encrypted, two if it was cut off.
    r"\bey[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*(?:\.[A-Za-z0-9_\-]*){0,3}",
    check_jwt,
    tail=r"[A-Za-z0-9_.\-]",
)

_HEADER = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----")
_FOOTER = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----")
_LINES = re.compile(
    r"(?:(?:[\s>|#*\"+]|<br ?/?>|\\[nr]|\\)*(?:[A-Za-z0-9+/=]{16,}|[A-Z][A-Za-z-]+: [^\n]*\n))+"
    r"(?:(?:[\s>|#*\"+]|<br ?/?>|\\[nr])*[A-Za-z0-9+/]+={0,2}(?=[\s\"<]|\\|-|$))?"
)


def check_private_key(candidate: str, _before: str) -> Spans:
    """From the first line to the last; where the last is missing, as far as lines of base64 go."""
    header = _HEADER.match(candidate)
    if header is None:
        return
    if footer := _FOOTER.search(candidate, header.end()):
        yield 0, footer.end()
    elif lines := _LINES.match(candidate, header.end()):
        yield 0, lines.end()


PRIVATE_KEY = Recogniser(
    "private_key",
    Kind.PRIVATE_KEY,
    100,
    r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY[A-Z ]{0,8}-----(?:-?[A-Za-z0-9+/=\s\\:,.()>|#*\"<])*"
    r"(?:-----END [A-Z0-9 ]{0,32}PRIVATE KEY[A-Z ]{0,8}-----)?",
    check_private_key,
    tail=r"[A-Za-z0-9+/=\s\\:,.\->|#*\"<]",
)
SECRETS = (VENDOR_KEY, ASSIGNED, USER_PASSWORD, COMMAND_PASSWORD, NAMED_KEY, URL_PASSWORD, JWT, PRIVATE_KEY)
