"""Keys to other systems: vendors' API keys, passwords that are assigned or stand in URLs, JSON web tokens, PEM keys."""

import base64
import binascii
import json
import re
from typing import Any

from headrace.policy.recognisers.commands import COMMAND_PASSWORD
from headrace.policy.recognisers.connections import CONNECTION
from headrace.policy.recognisers.phrases import LINE, PHRASE, SEED
from headrace.policy.recognisers.recogniser import MOST_CONTEXT_CHARS, Kind, Recogniser, Spans
from headrace.policy.recognisers.shapes import (
    LEAST_BITS,
    PLACEHOLDER,
    REFERENCE,
    UUID,
    WORD_AND_NUMBER,
    bits_per_character,
    has_odd_part,
    is_plain,
    looks_chosen,
    looks_drawn,
    looks_gibberish,
    looks_mixed,
    looks_secret,
)
from headrace.policy.recognisers.stated import SAID_AFTER, STATED
from headrace.policy.recognisers.unannounced import GENERATED, RANDOM, URL_PATH
from headrace.policy.recognisers.vendor_keys import NAMED, VENDORS
from headrace.policy.text.letter_triples import surprise
from headrace.policy.text.patterns import compiled

_LEAST_SURPRISE = 6.0
_SENTENCE = re.compile(r"(?:\.|-{2,})+$")
_PREFIX = re.compile(r"[A-Za-z0-9]{2,10}[-_.](?:v1_|proj-|svcacct-|admin-|ant-|api\d\d-|live_|test_|pat_)*")
# In the path of a request to Telegram: /bot123:key/getUpdates.
# jdbc:sqlserver://host:1433;user=ann@example.com
_PORT = re.compile(r"\d{2,5}[;/]")
# What stands for a password in an address: a variable, the word itself, what programs print for none, and only signs.
_NO_PASSWORD = re.compile(
    r"(?i)^(?:none|null|undefined|abc|change[-_]?(?:it|this)|@value|enc\(.*|\W+|%\w+%|[\[{<][\w\- ]+[\]}>]|.*\.\.\..*"
    r"|(?:[a-z_]+\.)+(?:[a-z_]*_)?(?:pass|password|passwd|secret|token|key|pwd)s?"
    r"|(?:secret|token|string|value|api[_-]?key)(?:[_-](?:key|value|here))*)$"
)
_BOT = re.compile(r"bot\d")
_VENDOR: Any = compiled("|".join(VENDORS))
_REST = re.compile(r"[+/][A-Za-z0-9+/]{8,}={0,2}$")
_LEAST_OF_REST = 7.0


def _of_vendor(candidate: str) -> str:
    """Return a candidate without what stands behind a key: a path. A key in base64 goes on behind its signs."""
    rest = _REST.search(candidate)
    if rest is None or ("+" in rest[0] and any(map(str.isdigit, rest[0])) and surprise(rest[0]) >= _LEAST_OF_REST):
        return candidate
    return candidate[: _VENDOR.match(candidate).end()]


def check_vendor_key(candidate: str, before: str) -> Spans:
    """A vendor's prefix, and behind it something that looks drawn at random."""
    if before[-1:] in {"-", "_", "."}:
        return
    candidate = _of_vendor(candidate)
    # A sentence's end or dash; one hyphen may be the key's own.
    end = len(_SENTENCE.sub("", candidate))
    start = len("bot") if _BOT.match(candidate) else 0
    secret = _PREFIX.sub("", candidate[:end], count=1) or candidate
    # One of 30 letters may have no digit; names of programs look so too: s.CustomScalingQueueLength.
    is_name = secret != secret.lower() and surprise(secret) < _LEAST_SURPRISE
    is_drawn = any(map(str.isdigit, secret)) or (len(set(secret)) > 16 and not is_name)
    if is_drawn and bits_per_character(secret) >= LEAST_BITS and not PLACEHOLDER.search(candidate):
        yield start, end


def _by_names() -> list[tuple[str, list[re.Pattern[str]]]]:
    """Return the forms of keys by the expression for their vendor's names."""
    forms: dict[str, list[re.Pattern[str]]] = {}
    for names, key in NAMED:
        forms.setdefault(names, []).append(key)
    # Without groups of their own.
    return [(re.sub(r"(?<!\\)\((?!\?)", "(?:", names), keys) for names, keys in forms.items()]


_BY_NAMES = _by_names()

VENDOR_KEY = Recogniser(
    "api_key.vendor",
    Kind.API_KEY,
    90,
    rf"\b(?:{'|'.join(VENDORS)})(?:[+/][A-Za-z0-9+/]{{8,}}={{0,2}})?",
    check_vendor_key,
    tail=r"[A-Za-z0-9_\-]",
)

_CURL = re.compile(r"(?:curl|wget)\b(?:[^\n]|\\\n)*$")
_HTTPIE = re.compile(r"\bhttps?\s[^\n]*$")
_USER_PASSWORD = re.compile(r"[\s=](?:\"[^\":\s]+:([^\"\s]+)|'[^':\s]+:([^'\s]+)|[^\s\"':]+:([^\s\"']+))$")


def check_user_password(candidate: str, before: str) -> Spans:
    """The password of ``curl -u user:password``; for another program only if it looks like one."""
    found = _USER_PASSWORD.search(candidate)
    if found is None:
        return
    start, end = found.span(found.lastindex or 0)
    value = candidate[start:end]
    if REFERENCE.match(value) or value.startswith("<") or PLACEHOLDER.search(value) or _NO_PASSWORD.search(value):
        return
    if candidate[:2] == "-a" and _HTTPIE.search(before) is None:
        return
    if _CURL.search(before) is not None or looks_secret(value) or looks_chosen(value):
        yield start, end


USER_PASSWORD = Recogniser(
    "api_key.user_password",
    Kind.API_KEY,
    56,
    r"(?:\B-[ua]|--user|--proxy-user)[ =]{1,2}(?:\"[^\s\":]{1,64}:[^\s\"]{4,128}|'[^\s':]{1,64}:[^\s']{4,128}"
    r"|[^\s\"':]{1,64}:[^\s\"']{4,128})",
    check_user_password,
    # A long URL may stand before the option.
    context=MOST_CONTEXT_CHARS,
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
        if looks_drawn and not PLACEHOLDER.search(value) and any(key.fullmatch(value) for key in keys):
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
    if candidate.endswith("("):
        # As Go's drivers write it: user:password@tcp(host).
        start = candidate.index(":") + 1
    else:
        start = candidate.rindex("/") + 1 if scheme < 0 else candidate.find(":", scheme + 3) + 1
    end = candidate.rindex("@")
    if scheme < 0 and not candidate.endswith("(") and ":" in candidate[start:]:
        # A domain's user, as programs for Windows are given it: domain/user:password@host.
        start = candidate.index(":", start) + 1
        value = candidate[start:end]
        if looks_mixed(value) or (looks_chosen(value) and (not is_plain(value) or WORD_AND_NUMBER.fullmatch(value))):
            yield start, end
        return
    if ":" not in candidate[scheme + 3 :] and scheme > 0:
        # A token without a user.
        value = candidate[scheme + 3 : end]
        if looks_drawn(value) or UUID.fullmatch(value) or has_odd_part(value) or looks_gibberish(value):
            yield scheme + 3, end
        return
    if (
        end > start
        and not candidate[start:end].startswith(("$", "<", "{", "***"))
        and not _PORT.match(candidate, start, end)
        and not _NO_PASSWORD.search(candidate[start:end])
        and not PLACEHOLDER.search(candidate[start:end])
    ):
        yield start, end


URL_PASSWORD = Recogniser(
    "api_key.url_password",
    Kind.API_KEY,
    88,
    r"\b[a-zA-Z][a-zA-Z0-9+._\-]{1,23}\]?://[^\s/:@\"']{0,64}:[^\s/\"']{1,128}@|\bhttps?://[^\s/:@\"'<>{}$]{12,256}@"
    r"|\b[\w.\-]{1,64}/[\w.\-]{1,64}:[^\s/:@\"'()]{4,128}@"
    r"|\b[\w.\-]{1,64}:[^\s/:@\"'()]{4,128}@(?:tcp|unix)\("
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
SECRETS = (
    *(VENDOR_KEY, STATED, SAID_AFTER, USER_PASSWORD, COMMAND_PASSWORD, NAMED_KEY, URL_PASSWORD, CONNECTION),
    *(JWT, PRIVATE_KEY, RANDOM, GENERATED, URL_PATH, PHRASE, SEED, LINE),
)
