"""Keys to other systems: vendors' API keys, passwords that are assigned or stand in URLs, JSON web tokens, PEM keys."""

import base64
import binascii
import json
import math
import re
from collections import Counter

from policy.commands import COMMAND_PASSWORD
from policy.recognisers import Kind, Recogniser, Spans
from policy.vendors import NAMED, VENDORS
from policy.views import view

_LEAST_BITS = 2.5
"""Bits a character that the random part of a key has at least: xxxxxxxx and 12345 in documentation have fewer."""


def bits_per_character(text: str) -> float:
    """Shannon's entropy of the characters of a text."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


_SENTENCE = re.compile(r"(?:\.|-{2,})+$")
_PREFIX = re.compile(r"[A-Za-z0-9]{2,10}[-_.](?:v1_|proj-|svcacct-|admin-|ant-|api\d\d-|live_|test_|pat_)*")
_PLACEHOLDER = re.compile(r"(?i)(?:^|[-_])(?:your|my[-_]|example|placeholder|insert|xxx+|todo|changeme|replace)")


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

# What names a key, and what names a password; as texts are read (``view``: a long Japanese vowel reads as a dash).
_KEYS = view(
    r"api[ _\-]?(?:key|token|secret)s?|apikey|secret[ _\-]?(?:access[ _\-]?)?key|client[ _\-]?secret"
    r"|(?:access|auth|app|application|account|encryption|signing|master|shared|service|deploy|license|webhook|private)"
    r"(?:[ _\-]?access)?[ _\-]?(?:key|token|secret)|sharedaccess(?:key|signature)"
    r"|(?:subscription|storage|write|admin|root|server|consumer|bot|personal|license)[ _\-]?(?:key|token)|credentials?|secret|token"
    r"|phpsessid|jsessionid|sessionid|connect\.sid|session[ _\-]?(?:key|token)"
    r"|api[ _\-]?schlüssel|zugangsschlüssel|clé (?:d'|secrète )?api|clave (?:de )?api|chave (?:de )?api"
    r"|api-ключ|ключ api|密钥|密鑰|秘钥|令牌|トークン|アクセスキー|토큰"
).text
_PASSWORDS = view(
    r"passwor[dt]s?|identified by|passwd|passphrase|passcode|pwd|contraseña|clave de acceso|mot de passe|code d'accès|kennwort|senha"
    r"|palavra-passe|hasł(?:o|a|em)|wachtwoord|paswoord|hesl(?:o|em)|lösenord(?:et)?|passord(?:et)?|kodeord(?:et)?"
    r"|adgangskoden?|salasana(?:ni|si)?|jelsz(?:ó|avam?)|parol[aăėe]|parool|slaptažodis|lozink[ae]|geslo|lykilorð"
    r"|fjalëkalimi?|şifre(?:m|si|niz)?|mật khẩu|kata (?:sandi|laluan)|парол[ьяю]|паролем|лозинка"
    r"|κωδικός|סיסמה|كلمة المرور|كلمة السر|رمز عبور|पासवर्ड|รหัสผ่าน|密码|密碼|口令|パスワード|パスフレーズ|비밀번호|암호"
).text
# Short for a password only where a sign follows: db_pass=.
_PASS = r"(?:(?:\b|_|db|user|usr|root|admin|mail|smtp|ftp|store|key|sudo|proxy|client)pass|(?:\b|_)(?:pw|psk))"
# What may name a key if the value looks drawn: maps_key, an "auth" of a program's settings, a signature in a URL.
_LOOSE = r"(?:[_\-]key|\b(?:key|_?auth|sig))"
_NO_SECRET_KEY = re.compile(
    r"(?i)(?:public|pub|cache|idempotency|primary|foreign|partition|sort|row|object|dedup|shard|index|hash|lookup|host)[ _\-]?$"
)
_VALUE = r"[^\s\"'`<>,;|(){}\[\]“”„«»「」『』【】、。，；]"
# Between a name and its value: signs, or the next field of a list of names;
_SIGNS = (
    r"[\\\"'`*_]{0,4}(?:\s{0,3}(?:=>|->|→|:=|\?=|==|=|:|\|{1,2})\s{0,3}|>(?:<!\[CDATA\[)?"
    r"|,?\s{1,12}[\"']?value[\"']?\s?[:=]\s?"
    r"|\s-\s|\s{1,2}[`“„«「]|\(\s?[\"'])[*_]{0,2}\s?"
)
# a word that says that it is so, or behind a password nothing but a space.
_IS_WORDS = view(
    r"\s{1,3}(?:is|was|are|est|ist|lautet|es|è|é|e|är|er|jest|je|on|este|là|adalah|to|は)"
    r"(?: now| still| set to| changed to| jetzt| nun| ahora| maintenant| agora| adesso| nu| teraz)?:?\s{1,3}"
    r"|\s(?:είναι|היא|הוא|هي|هو|है)\s|คือ\s?|は\s?|是|为|為|[이은는]\s"
).text
_IS = f"(?:{_SIGNS}|{_IS_WORDS})"
_OF_VALUE = rf"(?:\\{{0,3}}\"([^\s\"]+)|\\{{0,3}}'([^\s']+)|(?:[`“„「]|«\s?)?({_VALUE}+))"
# What a password is for: "the password of the router is".
_FOR = view(
    r"(?:\s(?:for|of|to|on|du|de|des|pour|für|von|zum|zur|del|para|do|da|di|per|voor|van|dla|till|til|för|для|от|к|untuk)"
    r"(?:\s[^\s:=<>\"'`,;|(){}]{1,24}){1,3})"
).text
# Signs of a list of arguments: define('DB_PASSWORD', 'x').
_NEXT = r"[\"'],\s{0,2}"
_ASSIGNED = re.compile(
    rf"(?i)(?:(?:{_KEYS})(?:{_IS}|{_NEXT}|(?P<spaced>[ \t]{{1,3}}))|{_PASS}(?P<short>{_SIGNS})|{_LOOSE}(?P<loose>{_IS})"
    rf"|(?:{_PASSWORDS})(?:{_FOR}?(?P<password>{_SIGNS})|{_FOR}?(?P<said>{_IS_WORDS})|{_NEXT}|[ \t]{{1,3}}))"
    rf"{_OF_VALUE}"
)
_FLAG = re.compile(rf"(?i)--[a-z\-]{{0,24}}(?:key|token|secret|(?P<password>pass[a-z]{{0,6}}|pwd))(?:[ =]){_OF_VALUE}")
_AFTER_VALUE = re.compile(r"(?:[.:?]|\*\*)+$|\\+$")
_NEXT_PARAMETER = re.compile(r"&\w+=")
_BEARER_VALUE = r"[A-Za-z0-9+/=_.~\-]"
_AUTHORIZATION = r"authorization[\\\"']{0,2}\s?[:=]\s?[\\\"']{0,2}[A-Za-z]{2,16}"
_BEARER = re.compile(rf"(?i)(?:bearer|basic|token|api[ _\-]?key|{_AUTHORIZATION}) ({_BEARER_VALUE}+)")
_IN_URL = re.compile(r"://[^\s/@]*$")


def check_assigned(candidate: str, before: str) -> Spans:
    """A value that a password or key is set to, if it looks like one: not a word, a variable or a placeholder."""
    for found in (_FLAG.match(candidate), _ASSIGNED.search(candidate), _BEARER.search(candidate)):
        if found is not None and (span := _assigned_span(found, before)) is not None:
            yield span
            return


def _assigned_span(found: re.Match[str], before: str) -> tuple[int, int] | None:
    candidate = found.string
    start, end = found.span(found.lastindex or 0)
    if following := _NEXT_PARAMETER.search(candidate, start):
        end = following.start()
    if _IN_URL.search(before + candidate[:start]):
        # A user's name is called a token: https://x-access-token:value@host.
        end = start + len(candidate[start:end].partition("@")[0])
    end = start + len(_AFTER_VALUE.sub("", candidate[start:end]))
    # A function's name.
    if candidate[end : end + 1] == "(":
        return None
    value, groups = candidate[start:end], found.groupdict()
    if groups.get("spaced") or groups.get("loose"):
        is_known = groups.get("loose") and _NO_SECRET_KEY.search(before + candidate[: found.start()])
        return (start, end) if _looks_drawn(value) and not is_known else None
    is_set = bool(groups.get("password") or groups.get("short"))
    is_password = is_set or bool(groups.get("said"))
    if (
        (_looks_secret(value) and not _WORDS.fullmatch(value))
        or (is_set and _looks_chosen(value))
        or (is_password and _looks_mixed(value))
    ):
        return start, end
    return None


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


_DRAWN = re.compile(r"[0-9a-f]{32,}|(?:[A-Za-z0-9\-]+|[A-Za-z0-9+/]{40,})={0,2}")


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
    rf"(?i)(?:(?:{_KEYS})(?:{_IS}|{_NEXT})|{_PASS}{_SIGNS}|(?:{_PASSWORDS})(?:{_FOR}?{_IS}|{_NEXT}|[ \t]{{1,3}}))"
    rf"(?:\\{{0,3}}\"[^\s\"]{{8,}}|\\{{0,3}}'[^\s']{{8,}}|(?:[`“„「]|«\s?)?{_VALUE}{{8,}}\(?)"
    rf"|(?:(?:{_KEYS})[ \t]{{1,3}}|{_LOOSE}{_IS}[\\\"'`“]{{0,2}})[A-Za-z0-9+/\-]{{20,}}={{0,2}}"
    rf"|--[a-z\-]{{0,24}}(?:key|token|secret|pass[a-z]{{0,6}}|pwd)[ =](?:\"[^\s\"]{{8,}}|'[^\s']{{8,}}|{_VALUE}{{8,}})"
    rf"|\b(?:bearer|basic|{_AUTHORIZATION}) {_BEARER_VALUE}{{16,}}|\b(?:token|api[ _\-]?key) [A-Za-z0-9_\-]{{24,}}",
    check_assigned,
    tail=_VALUE,
)

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
    if "curl" in before or "wget" in before or _looks_secret(value) or _looks_chosen(value):
        yield start, end


USER_PASSWORD = Recogniser(
    "api_key.user_password",
    Kind.API_KEY,
    56,
    r"(?:\B-u|--user|--proxy-user)[ =]{1,2}(?:\"[^\s\":]{1,64}:[^\s\"]{4,128}|'[^\s':]{1,64}:[^\s']{4,128}"
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
    if end > start and not candidate[start:end].startswith(("$", "<", "{", "***")):
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
