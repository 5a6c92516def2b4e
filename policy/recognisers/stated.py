"""Secrets that a word before them names: the word, what stands between, and what the value looks like decide together.

The candidate is any run of characters that may hold a value. What names it stands before it, in the candidate itself
(``token=x``) or in the characters that a check may look at, so nothing but the run is held back in a stream. A value
that is set to a name (``password: x``) needs to look like less than one that only stands in the same line.
"""

import re
from collections.abc import Iterator
from typing import Any

from headrace.policy.recognisers.announced import (
    HASHED,
    LITERAL,
    MOST_DIGITS,
    ODD,
    PHRASE_IN_QUOTES,
    PIN_LENGTHS,
    QUOTES,
    Announced,
    is_believed,
    is_in_column,
    is_short_key,
    is_typed,
)
from headrace.policy.recognisers.columns import column_sort
from headrace.policy.recognisers.labels import goes_on, is_label
from headrace.policy.recognisers.recogniser import CONTEXT_CHARS, MOST_CONTEXT_CHARS, Kind, Recogniser, Spans
from headrace.policy.recognisers.secret_words import (
    BARE_PAIR,
    BOTH,
    CALL,
    COMMAND_PAIR,
    COOKIE,
    FLAG,
    LINKS,
    PAIR,
    PAIR_IN_CALL,
    SCHEME,
    USERS,
    WORD,
)
from headrace.policy.recognisers.shapes import (
    DOTTED,
    PLACEHOLDER,
    REFERENCE,
    UUID,
    has_odd_part,
    is_date,
    is_plain,
    looks_chosen,
    looks_drawn,
    looks_gibberish,
    looks_mixed,
    looks_secret,
)
from headrace.policy.text.letter_triples import surprise
from headrace.policy.text.patterns import compiled

# ASCII and the alphabets of Latin, Greek and Cyrillic letters, without quotes, brackets and signs between values.
_LETTERS = r"\u00a1-\u00aa\u00ac-\u00ba\u00bc-\u052f"
RUN = rf"[!#$%&*+\-./0-9:=?@A-Z\\^_a-z~{_LETTERS}]"
_IN_QUOTES = rf"[!#$%&()*+,\-./0-9:;<=>?@A-Z\[\\\]^_`a-z{{|}}~{_LETTERS}"
_IN_BACKTICKS = rf"[!-_a-z{{|}}~{_LETTERS}]"
_TELLING = r"[0-9#$!&*^@]"

_WORD: Any = compiled(WORD)
_END = re.compile(r"&[\w.\-]+=")
_AFTER_SET = re.compile(r"(?:[.:]|\*\*)+$|\\+$")
# Behind these a question mark is the value's own: an option, a column, a colon.
_KEEPS = re.compile(r"(?:=|[\s/]--[\w\-]{1,40} |[|\t：]\s{0,2}|[\w\"'`*]:\s{0,2}|[^\x00-\x7f]:\s?|  )$")
# A sign of HTML, which ends a value: Password=x&quot;
_ENTITY = re.compile(r"&(?:lt|gt|quot|apos|nbsp|#\d{2,4})(?:;|$)")
_DOTTED_END = re.compile(rf"(?:[:|>]|\s\s|\t)\s{{0,3}}{DOTTED.pattern}$")
_AFTER = re.compile(r"(?:[.:?]|\*\*)+$|\\+$")
_FORM = re.compile(r"(?:base64|b64|hex|plain|raw|pass):")
_NAME = re.compile(r"[A-Za-z][\w.\-]*")
_IN_URL = re.compile(r"://[^\s/@]*$")
# "Passwords are hashed with argon2id"
_STORED = re.compile(r"(?i)\b(?:hash|encrypt|encod|salt|stored)")
_OTHER = re.compile(r"(?i)\b(?:user|username|login|account|host|server|database|role)[\s\"'`“„«]*$")
_HEX = re.compile(r"[0-9a-f]+")
_UNQUOTED = re.compile(rf"{RUN}*")
_OPENING = re.compile(r"[\"'`]?[=:]*")
_MOST_APART = 48
_CHOSEN = re.compile(r"[A-Z](?=.{8})[A-Za-z0-9\-_]*[a-z][A-Za-z\-_]*(?!(?:19|20)\d\d$)\d{3,4}[^\w\s]?")
_TELLING_SIGN = re.compile(_TELLING)
_PARTS = re.compile(r"[=:\s\"'(]")
# A file of settings without a sign: the name alone in front, and a column of values.
_LINE_BEGIN = re.compile(r"(?:^|\n)[ \t]{0,8}[A-Za-z_]{0,24}$")
_COLUMN_BEHIND = re.compile(r"\t|  ")
# Between columns, not between words.
_WIDE = re.compile(r"[ \t]{4}")
_LONGEST_WORD = 128
_LEAST_HYPHENS = 3
_NEAR = 24


def check_stated(candidate: str, before: str) -> Spans:
    """Yield the values in the candidate that a word before them names."""
    if not _may_hold_one(candidate, before[-CONTEXT_CHARS:]):
        return
    far, before = before, before[-CONTEXT_CHARS:]
    text, start = before + candidate, len(before)
    done = start
    names = list(_names(text))
    for index, (begin, end, sort) in enumerate(names):
        is_nearest = index + 1 == len(names)
        for link, at in _links(text, begin, end, sort, start, is_nearest=is_nearest, is_cut=len(far) > CONTEXT_CHARS):
            if link in {"far", "next"} and is_label(text, begin, end, at, is_cut=len(far) > CONTEXT_CHARS):
                link = _of_label(link, sort, text[end:at])
            both = BOTH.search(text, 0, begin)
            if both is not None and (sign := text.find(both[1], at)) >= 0:
                at = sign + 1
            value_start, value_end = _value(text, at, start, candidate)
            if at < done or value_end <= value_start or _has_name(names[index + 1 :], text, value_start, value_end):
                continue
            value = text[value_start:value_end]
            # A function's name.
            if text[value_end : value_end + 1] != "(" and is_believed(Announced(value, sort, link, text, begin)):
                yield value_start - start, value_end - start
                done = value_end
                break
    if done == start and (span := _given(text, start, candidate, far)):
        yield span[0] - start, span[1] - start


def _has_name(names: list[tuple[int, int, str]], text: str, start: int, end: int) -> bool:
    """True if a value begins with a name of its own, which is nearer: ``password:auth-token:value``."""
    return any(
        start <= begin < name_end < end and text[name_end] in ":=" and _NAME.fullmatch(text, start, name_end)
        for begin, name_end, _ in names
    )


def _names(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield begin, end and sort of the words that name a secret."""
    for found in _WORD.finditer(text):
        is_of_api = found.lastgroup == "loose" and found[0][-3:].lower() == "api"
        # "personal API" is less than the "API key" that it is part of.
        more = _WORD.match(text, found.end() - len("api")) if is_of_api else None
        # "credentials" ends inside "credentialSecret".
        if found[0][-1:] in {"s", "S"} and (more := _WORD.match(text, found.end() - 1)):
            yield found.start(), more.end(), more.lastgroup
            continue
        named = found if more is None else more
        yield named.start(), named.end(), named.lastgroup


def _of_label(link: str, sort: str, between: str) -> str:
    """Return what a link is worth behind a label."""
    if link == "far":
        return "set"
    is_alone = between.count("\n") == 1 and not any(sign in between.partition("\n")[0] for sign in ":=")
    return "said" if sort in {"key", "password"} and is_alone else link


def _may_hold_one(candidate: str, before: str) -> bool:
    """Tell cheaply that a candidate holds no value, as most words do not."""
    candidate = candidate.removesuffix("<")
    if candidate.isdigit():
        return PIN_LENGTHS[0] <= len(candidate) <= MOST_DIGITS and any(map(str.isalpha, before[-_NEAR:]))
    if _TELLING_SIGN.search(candidate):
        return any(map(str.isalpha, candidate))
    is_short = len(candidate) < _LONGEST_WORD
    if is_short and (LITERAL.search(before + candidate) or PHRASE_IN_QUOTES.search(before[-_NEAR:] + candidate)):
        return True
    if is_short and candidate.count(".") > 2 and _DOTTED_END.search(before[-_NEAR:] + candidate):
        return True
    last = _PARTS.split(candidate[-_LONGEST_WORD:].rstrip("\"'(<.:?\\"))[-1]
    is_odd = surprise(last) >= ODD or has_odd_part(last)
    return len(last) < _LONGEST_WORD and (is_odd or last.count("-") >= _LEAST_HYPHENS)


def _given(text: str, start: int, candidate: str, before: str) -> tuple[int, int] | None:
    """Return the value of a candidate that a call is given, that stands behind a user, or in a column of secrets."""
    quoted = start + (text[start] in QUOTES)
    value_start, value_end = _value(text, quoted, start, candidate)
    value, left = text[value_start:value_end], text[:quoted]
    if users := USERS.match(candidate):
        value_start, value = value_start + users.end(), value[users.end() :]
        is_believed = is_typed(value) or (users[0].count(":") > 1 and looks_chosen(value))
        return (value_start, value_end) if is_believed and not re.search(r"[:/]|^\$", value) else None
    if value.endswith("=") and _NAME.fullmatch(value[:-1]) and surprise(value[:-1]) < ODD:
        # The next argument's name.
        return None
    is_key = looks_drawn(value) or is_short_key(value)
    if (
        (is_key and CALL.search(left))
        or (
            looks_chosen(value) and not HASHED.search(value) and not UUID.fullmatch(value) and COMMAND_PAIR.search(left)
        )
        or ((looks_chosen(value) or looks_mixed(value) or looks_gibberish(value)) and PAIR_IN_CALL.search(left))
        or (_is_of_pair(value) and BARE_PAIR.search(left))
        or (looks_chosen(value) and not is_plain(value) and not UUID.fullmatch(value) and PAIR.search(left))
        or ((sort := column_sort(before)) is not None and is_in_column(value, sort))
    ):
        return value_start, value_end
    return None


def _is_of_pair(value: str) -> bool:
    """True for a password beside any other text: what no table in a program has."""
    return looks_mixed(value) or looks_gibberish(value) or has_odd_part(value) or _CHOSEN.fullmatch(value) is not None


def _links(
    text: str, begin: int, end: int, sort: str, start: int, *, is_nearest: bool, is_cut: bool
) -> Iterator[tuple[str, int]]:
    """Yield what joins a word to a value of the candidate, and where the value begins; the surest first."""
    word = text[begin:end].lower()
    if word in {"authorization", "cookie"}:
        named = (SCHEME if word == "authorization" else COOKIE).match(text, end)
        if named is not None and named.end() >= start:
            yield "set", named.end()
    for link, expression in LINKS:
        found = expression.match(text, end)
        if found is None or found.end() < start or found.end() == len(text):
            continue
        if link == "spaced" and goes_on(text, found.end()):
            continue
        if (link == "far" and _OTHER.search(found[0])) or (link == "told" and _STORED.search(found[0])):
            continue
        is_set = link == "spaced" and (
            FLAG.search(text, 0, begin + (text[begin] == "_"))
            or (_COLUMN_BEHIND.match(text, end) and _LINE_BEGIN.search(f"\0{text[:begin]}" if is_cut else text[:begin]))
        )
        if is_set or link != "spaced" or not _WIDE.search(found[0]):
            yield "set" if is_set else link, found.end()
    quoted = _end(_OPENING, text, start)
    between = text[end:quoted]
    if is_nearest and end <= start and len(between) <= _MOST_APART and not re.search(r"\n|[.!?]\s", between):
        yield "line", quoted


def _end(expression: re.Pattern[str], text: str, at: int) -> int:
    found = expression.match(text, at)
    return at if found is None else found.end()


def _value(text: str, at: int, start: int, candidate: str) -> tuple[int, int]:
    """Return where a value begins and ends that begins at about ``at``."""
    is_quoted = candidate[0] in QUOTES and at <= start + 1
    if is_quoted:
        at, end = start + 1, len(text)
    else:
        end = _end(_UNQUOTED, text, at)
    if text[at - 1 : at] == "=" and (following := _END.search(text, at, end)):
        end = following.start()
    if _IN_URL.search(text[:at]):
        # A user's name is called a token: https://x-access-token:value@host.
        end = at + len(text[at:end].partition("@")[0])
    if entity := _ENTITY.search(text, at, end):
        end = entity.start()
    if form := _FORM.match(text, at, end):
        at = form.end()
    if is_quoted and text[at] in QUOTES and text[at] != candidate[0]:
        # Code with its own quotes: `"value"`.
        return at + 1, at + 1 + len(text[at + 1 : end].partition(text[at])[0])
    if is_quoted:
        end -= text[end - 1] == candidate[0] and end > at
        return at, at + len(text[at:end].rstrip("\\"))
    if text[at - 1 : at] == "`":
        return at, end
    after = _AFTER_SET if _KEEPS.search(text, 0, at) else _AFTER
    return at, at + len(after.sub("", text[at:end]))


STATED = Recogniser(
    "api_key.stated",
    Kind.API_KEY,
    55,
    rf"\"{_IN_QUOTES}']{{5,}}\"?|'{_IN_QUOTES}\"]{{5,}}'?|`{_IN_BACKTICKS}{{5,}}`?|{RUN}*{_TELLING}{RUN}*[(<]?|{RUN}{{8,}}[(<]?",
    check_stated,
    tail=RUN,
    context=MOST_CONTEXT_CHARS,
)


_SUCH = (
    r"(?:password|passwort|passphrase|passwd|pwd|contraseña|mot de passe|senha|wachtwoord|hasło"
    r"|(?:api )?key|token|secret)"
)
_SAID_AFTER = (
    rf"[\"'`”»]?,? (?:is|as|was|ist|als|est|comme|es|como|é|è|come|to|a|an)(?: [A-Za-z0-9_\-]{{1,20}}){{0,4}} {_SUCH}"
    r"|[\"']\)\s(?:(?:private|public|protected|final|val|var)\s){0,2}(?:[A-Z]\w{0,24}\s)?\w{0,40}"
    r"(?:Key|Token|Secret|Password|Passwd|Pwd|Pass|Cookie|Pat|Pw)\b"
    r"|[\"'],?\s{1,4}(?:#|//|--|/\*)\s?(?:[\w\-]{1,20}\s){0,3}" + _SUCH + "\\b"
    r"|[\"']? ?\| ?(?:sudo -S|(?:sudo )?passwd --stdin|(?:sudo )?chpasswd"
    r"|(?:docker|podman) secret create|(?:gh|wrangler|fly) secrets? (?:set|put)|[\w ./:\-]{0,80}--password-stdin)"
)
# "the commit 3f9c… is a token" is said of a digest; "use 3f9c… as the token" is not.
_USED = re.compile(r"(?i)[\"'`”»]?,? (?:as|als|comme|como|come)\b")
# In a program: @Value("x") String apiKey, and "x",  # token
_NAMED_BEHIND = re.compile(r"[\"'](?:\)\s|,?\s{1,4}[#/-])")
_LEAST_PIPED = 4
_WHAT_IT_IS = re.compile(rf"(?i)(?:{_SAID_AFTER})$")


def check_said_after(candidate: str, _before: str) -> Spans:
    """A value that is called a password or key behind it: "x is my password", "use x as the token", x | sudo -S."""
    found = _WHAT_IT_IS.search(candidate)
    value = candidate[: found.start()] if found else ""
    if found and "|" in found[0]:
        start = value.rfind(":") + 1 if found[0].endswith("chpasswd") else 0
        if len(value) - start >= _LEAST_PIPED and not REFERENCE.match(value) and not PLACEHOLDER.search(value):
            yield start, len(value)
        return
    is_named = _NAMED_BEHIND.match(candidate, len(value)) is not None
    is_used = is_named or _USED.match(candidate, len(value)) is not None
    is_key = (looks_drawn(value) and (is_used or not _HEX.fullmatch(value))) or (is_named and _is_written(value))
    is_odd = not is_plain(value) and not _HEX.fullmatch(value)
    if is_key or (is_odd and (looks_secret(value) or looks_mixed(value) or looks_gibberish(value))):
        yield 0, len(value)


def _is_written(value: str) -> bool:
    """True for what a program has in quotes only as a secret, if it is named so."""
    return UUID.fullmatch(value) is not None or has_odd_part(value) or (looks_chosen(value) and not is_date(value))


SAID_AFTER = Recogniser(
    "api_key.said_after",
    Kind.API_KEY,
    54,
    rf"{RUN}*[0-9#$!&*^@]{RUN}*(?i:{_SAID_AFTER})",
    check_said_after,
)
