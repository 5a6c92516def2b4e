"""Keys to other systems: vendors' API keys, passwords that are assigned or stand in URLs, JSON web tokens, PEM keys."""

import base64
import binascii
import json
import math
import re
from collections import Counter

from policy.recognisers import Kind, Recogniser, Spans
from policy.vendors import VENDORS

_LEAST_BITS = 2.5
"""Bits a character that the random part of a key has at least: xxxxxxxx and 12345 in documentation have fewer."""


def bits_per_character(text: str) -> float:
    """Shannon's entropy of the characters of a text."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


_PREFIX = re.compile(r"[A-Za-z0-9]{2,10}[-_.](?:v1_|proj-|svcacct-|admin-|ant-|api\d\d-|live_|test_|pat_)*")
_PLACEHOLDER = re.compile(r"(?i)(?:^|[-_])(?:your|my[-_]|example|placeholder|insert|xxx+|todo|changeme|replace)")


def check_vendor_key(candidate: str, before: str) -> Spans:
    """A vendor's prefix, and behind it something that looks drawn at random."""
    if before[-1:] in {"-", "_", "."}:
        return
    end = len(candidate.rstrip("-."))
    secret = _PREFIX.sub("", candidate[:end], count=1) or candidate
    has_digit = any(map(str.isdigit, secret)) or len(set(secret)) > 16
    if has_digit and bits_per_character(secret) >= _LEAST_BITS and not _PLACEHOLDER.search(candidate):
        yield 0, end


VENDOR_KEY = Recogniser(
    "api_key.vendor", Kind.API_KEY, 90, rf"\b(?:{'|'.join(VENDORS)})", check_vendor_key, tail=r"[A-Za-z0-9_\-]"
)

_NAMES = (
    r"api[ _\-]?key|apikey|secret[ _\-]?(?:access[ _\-]?)?key|client[ _\-]?secret|access[ _\-]?token|auth[ _\-]?token"
    r"|(?:account|encryption|signing|master|shared)[ _\-]?key|private[ _\-]?token|secret|token|passwor[dt]|passwd"
    r"|passphrase|pwd|api[ _\-]?schlüssel|clé (?:d'|secrète )?api|clave (?:de )?api|chave (?:de )?api|api-ключ"
    r"|contraseña|mot de passe|kennwort|senha|hasło|wachtwoord|пароль|密码|密碼|密钥|密鑰|パスワード|비밀번호"
)
_VALUE = r"[^\s\"'`<>,;|(){}\[\]“”„«»「」『』【】、。]"
_IS = r"(?:\s{0,3}(?:=>|:=|=|:)\s{0,3}|>|\s{1,3}(?:is|est|ist|es):?\s{1,3})"
_ASSIGNED = re.compile(rf"(?i)(?:{_NAMES})[\"']?{_IS}(?:\"([^\s\"]+)|'([^\s']+)|({_VALUE}+))")
_AFTER_VALUE = re.compile(r"(?:[.:?]|\*\*)+$")
_NEXT_PARAMETER = re.compile(r"&\w+=")
_BEARER = re.compile(r"(?i)(?:bearer|basic|token|api[ _\-]?key) ([A-Za-z0-9+/=_.~\-]+)")


def check_assigned(candidate: str, _before: str) -> Spans:
    """A value that a password or key is set to, if it looks like one: not a word, a variable or a placeholder."""
    found = _ASSIGNED.search(candidate) or _BEARER.search(candidate)
    if found is None:
        return
    start, end = found.span(found.lastindex or 0)
    if following := _NEXT_PARAMETER.search(candidate, start):
        end = following.start()
    end = start + len(_AFTER_VALUE.sub("", candidate[start:end]))
    if _looks_secret(candidate[start:end]):
        yield start, end


def _looks_secret(value: str) -> bool:
    if value.startswith(("$", "%", "process.env", "os.environ", "***")) or _PLACEHOLDER.search(value):
        return False
    num_sorts = sum(
        any(map(sort, value)) for sort in (str.isdigit, str.isupper, str.islower, lambda c: not c.isalnum())
    )
    if len(value) >= 20:
        return num_sorts >= 2 and bits_per_character(value) >= 3
    return (
        len(value) >= 8 and num_sorts >= 3 and any(map(str.isdigit, value)) and bits_per_character(value) >= _LEAST_BITS
    )


ASSIGNED = Recogniser(
    "api_key.assigned",
    Kind.API_KEY,
    55,
    rf"(?i)(?:{_NAMES})[\"']?{_IS}(?:\"[^\s\"]{{8,}}|'[^\s']{{8,}}|{_VALUE}{{8,}})"
    r"|\b(?:bearer|basic) [A-Za-z0-9+/=_.~\-]{16,}|\b(?:token|api[ _\-]?key) [A-Za-z0-9_\-]{24,}",
    check_assigned,
    tail=_VALUE,
)


def check_url_password(candidate: str, _before: str) -> Spans:
    """The password between a URL's scheme and its host."""
    start = candidate.index(":", candidate.index("://") + 3) + 1
    end = candidate.rindex("@")
    if end > start and not candidate[start:end].startswith(("$", "<", "{", "***")):
        yield start, end


URL_PASSWORD = Recogniser(
    "api_key.url_password",
    Kind.API_KEY,
    88,
    r"\b[a-zA-Z][a-zA-Z0-9+.\-]{1,15}://[^\s/:@\"']{0,64}:[^\s/@\"']{1,128}@",
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
