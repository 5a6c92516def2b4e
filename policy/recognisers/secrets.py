"""Keys to other systems: vendors' keys, values behind a word for a secret, passwords in URLs, JSON web
tokens and PEM keys.

``data/vendor_keys.txt`` has the formats, most of them from the secret scanner gitleaks.
"""

import base64
import binascii
import json
import math
import re
from collections import Counter
from importlib.resources import files
from typing import Any

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans
from headrace.policy.text.normalisation import normalise
from headrace.policy.text.patterns import compiled

LEAST_BITS = 2.5
"""Bits a character that the random part of a key has at least: xxxxxxxx and 12345 in documentation have fewer."""

# What documents and programs write in the place of a secret.
_PLACEHOLDER = re.compile(
    r"(?i)^(?:pass(?:word|wd)?|secret|token|none|null|undefined|\W+)$|\*\*\*|xxx|\.\.\.|(?:^|[-_<\[{])(?:your|my[-_]|example"
    r"|placeholder|insert|todo(?![a-z0-9])|change[-_]?(?:me|this|it)|replace)"
)
# A variable, a path or an address, a part of a program.
_REFERENCE = re.compile(r"[$%{<\[(&#]|process\.env|os\.environ|\.{0,2}/|~/|[a-z][a-z0-9+.\-]*://|[\w.]*[(\[{]|.*\)$")
_NAME = re.compile(
    r"[A-Za-z_]+(?:[.\-:/][A-Za-z_]+)*|@?[\w\-]+(?:\.[a-z_]\w*)+|[a-z_]+=[A-Za-z]*|[\d.,:/\-]+[a-z%]{0,2}"
)


def bits_per_character(text: str) -> float:
    """Return Shannon's entropy of the characters of a text."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


_FORMATS = (files("headrace.policy") / "data/vendor_keys.txt").read_text().splitlines()
_VENDORS = "|".join(line for line in _FORMATS if line and not line.startswith("#"))
_SENTENCE = re.compile(r"(?:\.|-{2,})+$")
_PREFIX = re.compile(r"[A-Za-z0-9]{2,10}[-_.](?:v1_|proj-|svcacct-|admin-|ant-|api\d\d-|live_|test_|pat_)*")
_LETTERS_ALONE = 16


def check_vendor_key(candidate: str, before: str) -> Spans:
    """A vendor's prefix, and behind it something that looks drawn at random."""
    if before[-1:] in {"-", "_", "."}:
        return
    # A sentence's end or dash; one hyphen may be the key's own.
    end = len(_SENTENCE.sub("", candidate))
    start = len("bot") if re.match(r"bot\d", candidate) else 0
    secret = _PREFIX.sub("", candidate[:end], count=1) or candidate
    is_drawn = any(map(str.isdigit, secret)) or (len(set(secret)) > _LETTERS_ALONE and "." not in secret)
    if is_drawn and bits_per_character(secret) >= LEAST_BITS and not _PLACEHOLDER.search(candidate):
        yield start, end


VENDOR_KEY = Recogniser(
    "api_key.vendor", Kind.API_KEY, 90, rf"\b(?:{_VENDORS})", check_vendor_key, tail=r"[A-Za-z0-9_\-]"
)

_PASSWORDS = (
    r"pass(?:word|wd|phrase|code)|\b_?pass\b|_pass\b|\bpwd?\b|_pwd?\b|passwort|kennwort|contraseña|mot de passe|\bsenha"
    r"|wachtwoord|hasło|heslo|lösenord|пароль|κωδικός|密码|密碼|パスワード|비밀번호|סיסמה|كلمة المرور|รหัสผ่าน"
)
_KEYS = r"key|schlüssel|密钥|secret|token|credential|bearer|authorization"
_VALUE = r"[^\s\"'`<>,;]"
# The words as the normalised text has them.
_WORDS = normalise(f"{_PASSWORDS}|{_KEYS}").text
_IS_PASSWORD = re.compile(normalise(_PASSWORDS).text, re.IGNORECASE)
_IS = r"\b(?:is|ist|lautet|est|es|é|är|to)\b:?"
_SIGN = (
    r"[\"'`\])*]{0,3}[ \t]{0,3}(?::[ \t]?[&\w]{1,12}[ \t]{0,2})?(?:=>|:=|<-|[=:>(,|?]|" + _IS + r")[ \t\"'`|]{0,4}"
    r"|[ \t]{1,3}[\"'`]"
)
_SCHEME = r"(?:(?:bearer|basic)[ \t]{1,2})?"
_ASSIGNED = rf"(?i)(?:{_WORDS})[\w\-]{{0,24}}(?:{_SIGN}|[ \t]{{1,3}}){_SCHEME}{_VALUE}{{6,}}"
_PARTS: Any = compiled(rf"(?i)({_WORDS})[\w\-]{{0,24}}(?:({_SIGN})|[ \t]{{1,3}}){_SCHEME}({_VALUE}{{6,}})")
# Keys and tokens that are no secrets; what is counted.
_PUBLIC = re.compile(
    r"(?i)(?:public|primary|foreign|unique|cache|partition|sort|hash|object|group|index|routing|idempotency|csrf|xsrf|max|num"
    r"|next|page|cancel\w*|trace|websocket|did)[-_: ]?(?:key[-_ ]?)?$|\barn:[\w:\-]*$"
)
# In a URL: the next field, or the host.
_NEXT_FIELD = re.compile(r"&[\w\-]+=.*|@[\w\-]+\.[a-z].*")
_CHANGE = re.compile(r"[0-9](?=[A-Za-z])|[A-Za-z](?=[0-9])")
_LEAST_PASSWORD, _LEAST_ALONE, _LEAST_KEY = 6, 8, 16
_LEAST_CHANGES, _PASSWORD_BITS, _KEY_BITS = 3, 2.0, 3.0


def check_assigned(candidate: str, before: str) -> Spans:
    """The value behind a word for a password or a key, if it is as random as these are."""
    found = _PARTS.match(candidate)
    if found is None or _PUBLIC.search(before):
        return
    value = _NEXT_FIELD.sub("", found[3]).rstrip(".:)]}|*\\")
    if not value or _REFERENCE.match(value) or _PLACEHOLDER.search(value):
        return
    bits = bits_per_character(value)
    # Names in programs have a number in one place; in random digits and letters the two change more often.
    num_changes = len(_CHANGE.findall(value))
    if _IS_PASSWORD.match(found[1]):
        least = _LEAST_PASSWORD if found[2] else _LEAST_ALONE
        is_like_one = bits >= _PASSWORD_BITS and (found[2] is not None or num_changes > 0)
        is_secret = len(value) >= least and is_like_one and not value.isalpha()
    else:
        is_secret = len(value) >= _LEAST_KEY and num_changes >= _LEAST_CHANGES and bits >= _KEY_BITS
    if is_secret and not _NAME.fullmatch(value):
        yield found.start(3), found.start(3) + len(value)


ASSIGNED = Recogniser(
    "api_key.assigned",
    Kind.API_KEY,
    56,
    _ASSIGNED,
    check_assigned,
    tail=_VALUE,
)

_PORT = re.compile(r"\d{2,5}[;/]")


def check_url_password(candidate: str, _before: str) -> Spans:
    """The password between a URL's scheme and its host."""
    start, end = candidate.index(":", candidate.index("://") + 3) + 1, candidate.rindex("@")
    value = candidate[start:end]
    if not (value.startswith(("$", "<", "{", "%")) or _PORT.match(value) or _PLACEHOLDER.search(value)):
        yield start, end


URL_PASSWORD = Recogniser(
    "api_key.url_password",
    Kind.API_KEY,
    88,
    r"\b[a-zA-Z][a-zA-Z0-9+._\-]{1,23}://[^\s/:@\"']{0,64}:[^\s/\"']{1,128}@",
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
SECRETS = (VENDOR_KEY, ASSIGNED, URL_PASSWORD, JWT, PRIVATE_KEY)
