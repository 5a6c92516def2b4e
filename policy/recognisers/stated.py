"""Secrets that a word before them names: the word, what stands between, and what the value looks like decide together.

The candidate is any run of characters that may hold a value. What names it stands before it, in the candidate itself
(``token=x``) or in the characters that a check may look at, so nothing but the run is held back in a stream. A value
that is set to a name (``password: x``) needs to look like less than one that only stands in the same line.
"""

import re
from collections.abc import Iterator
from typing import Any

from policy.recognisers.columns import column_sort
from policy.recognisers.letter_pairs import surprise
from policy.recognisers.recogniser import CONTEXT_CHARS, MOST_CONTEXT_CHARS, Kind, Recogniser, Spans
from policy.recognisers.secret_words import BOTH, CALL, COMMAND_PAIR, COOKIE, FLAG, LINKS, NO_SECRET_KEY, PAIR, PAIR_IN_CALL, SCHEME, USERS, WORD
from policy.recognisers.shapes import (
    PLACEHOLDER,
    REFERENCE,
    UUID,
    WORD_AND_NUMBER,
    WORDS,
    is_date,
    is_name,
    is_plain,
    looks_chosen,
    looks_drawn,
    looks_gibberish,
    looks_mixed,
    looks_random,
    looks_secret,
    num_sorts,
)
from policy.recognisers.unannounced import KNOWN
from policy.text.patterns import compiled

# ASCII and the alphabets of Latin, Greek and Cyrillic letters, without quotes, brackets and signs between values.
_LETTERS = r"\u00a1-\u00aa\u00ac-\u00ba\u00bc-\u052f"
RUN = rf"[!#$%&*+\-./0-9:=?@A-Z\\^_a-z~{_LETTERS}]"
_IN_QUOTES = rf"[!#$%&()*+,\-./0-9:;<=>?@A-Z\[\\\]^_`a-z{{|}}~{_LETTERS}"
_TELLING = r"[0-9#$!&*^@]"

_WORD: Any = compiled(WORD)
_END = re.compile(r"&[\w.\-]+=")
# A word and a number that is no year.
_WORD_AND_NUMBER_TOLD = re.compile(r"[^\W\d_]{3,}(?!(?:19|20)\d\d$)\d{3,4}[^\w\s]{0,3}|[^\W\d_]{8,}\d\d")
_AFTER = re.compile(r"(?:[.:?]|\*\*)+$|\\+$")
_FORM = re.compile(r"(?:base64|b64|hex|plain|raw|pass):")
_IN_URL = re.compile(r"://[^\s/@]*$")
_PARAMETER = re.compile(r"[a-z_]{1,24}=[^=]")
_SETTING = re.compile(r"[A-Za-z_][\w.\-]*[=:]|.*\)$")
# "Passwords are hashed with argon2id"
_STORED = re.compile(r"(?i)\b(?:hash|encrypt|encod|salt|stored)")
_OTHER = re.compile(r"(?i)\b(?:user|username|login|account|host|server|database|role)[\s\"'`“„«]*$")
_HEX = re.compile(r"[0-9a-f]+")
_UNQUOTED = re.compile(rf"{RUN}*")
_OPENING = re.compile(r"[\"']?[=:]*")
_MOST_APART = 48
_TELLING_SIGN = re.compile(_TELLING)
_LAST_PART = re.compile(r"[^=:\s\"'(]+(?=[\"'(.:?\\]*$)")
# Bits a pair: half of all words have more than 4.4, few more than this.
_ODD = 5.6
_LEAST_HYPHENS = 3
_PASSPHRASE = re.compile(r"[a-z]{3,}(?:[-_.][a-z]{3,}){3,}")
_ALGORITHM = re.compile(r"(?i)(?:sha|md|aes|utf|base|argon|bcrypt|scrypt|oauth|rsa|hmac|tls|ssl|http|ipv|win|str|int|char|pbkdf)-?\d+(?:-\w+)*")
_CAMEL = re.compile(r"[a-z]+(?:[A-Z][a-z]+)+\d{1,2}")
_JUST_BEFORE = re.compile(r"(?i)(?:key|token|secret)\S{0,8}\n\s*$")
_MINE = re.compile(r"(?i)\b(?:use|using|my|our|with)(?: (?:the|this))? $")
_KEY_OF_HEX = re.compile(rf"{UUID.pattern}|[0-9a-f]{{12,}}")
_PIN_LENGTHS = (4, 5, 8)
_LEAST_CELL = 6
_LEAST_CELL_BITS = 4.8
_LEAST_KEY = 16
_MOST_DIGITS = 24
_NEAR = 24
# The value is written out: in quotes, in an element of XML, in a file of settings; not the name of a variable.
_LITERAL = re.compile(
    r"(?:[\"']\s?(?::|=>|=)\s?|[=,]\s?)(?:\"[A-Za-z]{5,}\"|'[A-Za-z]{5,}')$|<[\w:.\-]{4,40}>[A-Za-z]{5,}<$|(?:^|[\s\"'])[A-Z][A-Z0-9_]{3,40}=[A-Za-z]{5,}$"
    r"|^[\w\-]*(?:\.[\w\-]+)+=[A-Za-z]{5,}$"
)
_NO_PASSWORD = re.compile(
    r"(?i)string|text|required|optional|invalid|incorrect|wrong|missing|hidden|null|none|true|false|undefined|default"
    r"|encrypted|redacted|changed|username|enter\w*|varchar|input|value|unset|empty|disabled|enabled|please|field|prompt"
    r"|(?:new|old|my|your|the|db|user|current|confirm|repeat|forgot)?_?(?:pass\w*|pwd|secret|token)"
)
_CHOSEN_WORD = re.compile(r"[^\W\d_]{5,}\d{0,2}[!?.]?")


def check_stated(candidate: str, before: str) -> Spans:
    """Yield the values in the candidate that a word before them names."""
    if not _may_hold_one(candidate, before[-CONTEXT_CHARS:]):
        return
    far, before = before, before[-CONTEXT_CHARS:]
    text, start = before + candidate, len(before)
    done = start
    names = [(found.start(), found.end(), found.lastgroup) for found in _WORD.finditer(text)]
    for index, (begin, end, sort) in enumerate(names):
        is_nearest = index + 1 == len(names)
        for link, at in _links(text, begin, end, sort, start, is_nearest=is_nearest):
            both = BOTH.search(text, 0, begin)
            if both is not None and (sign := text.find(both[1], at)) >= 0:
                at = sign + 1  # noqa: PLW2901
            value_start, value_end = _value(text, at, start, candidate)
            if at < done or value_end <= value_start:
                continue
            value = text[value_start:value_end]
            # A function's name.
            if text[value_end : value_end + 1] != "(" and _is_believed(value, sort, link, text, begin):
                yield value_start - start, value_end - start
                done = value_end
                break
    if done == start and (span := _given(text, start, candidate, far)):
        yield span[0] - start, span[1] - start


def _may_hold_one(candidate: str, before: str) -> bool:
    """Tell cheaply that a candidate holds no value, as most words do not."""
    if candidate.isdigit():
        return _PIN_LENGTHS[0] <= len(candidate) <= _MOST_DIGITS and any(map(str.isalpha, before[-_NEAR:]))
    if _TELLING_SIGN.search(candidate):
        return any(map(str.isalpha, candidate))
    if _LITERAL.search(before + candidate):
        return True
    last = _LAST_PART.search(candidate)
    return last is not None and (surprise(last[0]) >= _ODD or last[0].count("-") >= _LEAST_HYPHENS)


def _given(text: str, start: int, candidate: str, before: str) -> tuple[int, int] | None:
    """Return the value of a candidate that a call is given, that stands behind a user, or in a column of secrets."""
    quoted = start + (text[start] in "\"'")
    value_start, value_end = _value(text, quoted, start, candidate)
    value, left = text[value_start:value_end], text[:quoted]
    if users := USERS.match(candidate):
        value_start, value = value_start + users.end(), value[users.end() :]
        return (value_start, value_end) if not re.search(r"[:/]", value) and _is_typed(value) else None
    is_key = looks_drawn(value) or (len(value) >= _LEAST_KEY and num_sorts(value) > 2 and looks_gibberish(value))
    if (
        (is_key and CALL.search(left))
        or (looks_chosen(value) and not UUID.fullmatch(value) and COMMAND_PAIR.search(left))
        or ((looks_chosen(value) or looks_mixed(value)) and PAIR_IN_CALL.search(left))
        or (looks_chosen(value) and not is_plain(value) and not UUID.fullmatch(value) and PAIR.search(left))
        or ((sort := column_sort(before)) is not None and _is_in_column(value, sort))
    ):
        return value_start, value_end
    return None


def _links(text: str, begin: int, end: int, sort: str, start: int, *, is_nearest: bool) -> Iterator[tuple[str, int]]:
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
        if (link == "far" and _OTHER.search(found[0])) or (link == "told" and _STORED.search(found[0])):
            continue
        yield "set" if link == "spaced" and FLAG.search(text[:begin]) else link, found.end()
    quoted = _end(_OPENING, text, start)
    between = text[end:quoted]
    if is_nearest and end <= start and len(between) <= _MOST_APART and not re.search(r"\n|[.!?]\s", between):
        yield "line", quoted


def _end(expression: re.Pattern[str], text: str, at: int) -> int:
    found = expression.match(text, at)
    return at if found is None else found.end()


def _value(text: str, at: int, start: int, candidate: str) -> tuple[int, int]:
    """Return where a value begins and ends that begins at about ``at``."""
    is_quoted = candidate[0] in "\"'" and at <= start + 1
    if is_quoted:
        at, end = start + 1, len(text)
    else:
        end = _end(_UNQUOTED, text, at)
    if following := _END.search(text, at, end):
        end = following.start()
    if _IN_URL.search(text[:at]):
        # A user's name is called a token: https://x-access-token:value@host.
        end = at + len(text[at:end].partition("@")[0])
    if form := _FORM.match(text, at, end):
        at = form.end()
    if is_quoted:
        end -= text[end - 1] == candidate[0] and end > at
        return at, at + len(text[at:end].rstrip("\\"))
    return at, at + len(_AFTER.sub("", text[at:end]))


def _is_believed(value: str, sort: str, link: str, text: str, begin: int) -> bool:
    if value.isdigit():
        return _is_number(value, sort, link, text[begin:])
    if is_name(value) or _PARAMETER.match(value) or _ALGORITHM.fullmatch(value) or _CAMEL.fullmatch(value) or (link in {"far", "told", "line", "next"} and is_date(value)):
        return False
    if sort == "key" and NO_SECRET_KEY.search(text, 0, begin):
        return False
    if sort == "loose":
        is_weak = text[begin:].lower().startswith("key") and _HEX.fullmatch(value) and not _MINE.search(text[:begin])
        return looks_drawn(value) and not NO_SECRET_KEY.search(text[:begin]) and not is_weak
    if link == "next":
        if sort == "key" and looks_drawn(value):
            return _JUST_BEFORE.search(text[: text.rindex(value)]) is not None
        return sort == "password" and not is_plain(value) and not _SETTING.match(value) and _is_odd(value)
    if link == "line":
        if sort == "key":
            return looks_random(value) or (looks_drawn(value) and not KNOWN.search(text[: text.rindex(value)]))
        return looks_random(value) or (sort == "password" and not is_plain(value) and _is_odd(value))
    if sort == "key":
        if link in {"spaced", "far", "told"}:
            return looks_drawn(value) or (_is_odd(value) and looks_gibberish(value) and num_sorts(value) > 1)
        return _is_secret(value) or (link == "set" and _KEY_OF_HEX.fullmatch(value) is not None)
    if sort == "password" and link == "set" and _CHOSEN_WORD.fullmatch(value) and _is_written_out(value, text, begin):
        return True
    return _is_password(value, sort, link)


def _is_in_column(value: str, sort: str) -> bool:
    if _is_believed(value, sort, "set", f"{sort}: {value}", 0):
        return True
    is_cell = sort == "password" and len(value) >= _LEAST_CELL and not _WORD.search(value) and not PLACEHOLDER.search(value)
    return is_cell and surprise(value) >= _LEAST_CELL_BITS and not REFERENCE.match(value)


def _is_typed(value: str) -> bool:
    is_common = is_plain(value) and not WORD_AND_NUMBER.fullmatch(value)
    return not is_common and (looks_mixed(value) or looks_chosen(value) or _is_secret(value))


def _is_number(value: str, sort: str, link: str, text: str) -> bool:
    """True for a password of digits only: behind a word for one password, or for a PIN."""
    least = {"set": 6, "said": 6, "told": 6, "spaced": 8, "far": 8, "line": 20}.get(link, _MOST_DIGITS + 1)
    if text[:3].lower() == "pin":
        return link != "line" and len(value) in _PIN_LENGTHS
    word = _WORD.match(text)
    is_one = sort in {"password", "short"} and (word is None or not word[0].lower().endswith("s"))
    return is_one and least <= len(value) <= _MOST_DIGITS


def _is_odd(value: str) -> bool:
    """True for what no sentence has, whatever names it: a secret, but neither a word nor a name."""
    if looks_mixed(value):
        return True
    has_sorts = not value.isalpha() or (not value.istitle() and num_sorts(value) > 1)
    return has_sorts and _is_secret(value)


def _is_password(value: str, sort: str, link: str) -> bool:
    if link in {"said", "spaced", "told"} and num_sorts(value) > 2 and _is_short_one(value):
        return True
    if link in {"set", "said"} and (_PASSPHRASE.fullmatch(value) or (link == "set" and _is_short_one(value))):
        return sort == "password" or _PASSPHRASE.fullmatch(value) is None
    if sort == "short":
        if link == "set":
            return _is_secret(value) or looks_chosen(value)
        return link != "far" and not is_plain(value) and (_is_secret(value) or looks_mixed(value))
    if link in {"told", "spaced"} and not _ALGORITHM.fullmatch(value):
        if len(value) >= 8 and _WORD_AND_NUMBER_TOLD.fullmatch(value):
            return True
    if link == "told":
        return not is_plain(value) and (_is_secret(value) or looks_chosen(value) or looks_mixed(value))
    return (
        (_is_odd(value) if link == "spaced" else _is_secret(value))
        or (link == "set" and looks_chosen(value))
        or (link == "far" and looks_chosen(value) and not WORDS.fullmatch(value))
        or (link == "said" and looks_chosen(value) and WORD_AND_NUMBER.fullmatch(value) is not None)
        or (link in {"set", "said", "far"} and looks_mixed(value))
    )


def _is_written_out(value: str, text: str, begin: int) -> bool:
    """True for a word as a password, with a number or not, if it is neither a label nor the name of a variable."""
    if PLACEHOLDER.search(value) or _NO_PASSWORD.fullmatch(value) or _WORD.search(value) or _ALGORITHM.fullmatch(value):
        return False
    end = text.index(value, begin)
    if value.isalpha():
        return _LITERAL.search(text[: end + len(value) + 1]) is not None
    return text[begin:end].rstrip().endswith((":", "\"", "'", "=", "："))


def _is_short_one(value: str) -> bool:
    """True for five to seven signs that people choose as a password."""
    if not 5 <= len(value) <= 7 or _ALGORITHM.fullmatch(value) or REFERENCE.match(value) or PLACEHOLDER.search(value):
        return False
    has_both = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    if is_plain(value):
        return has_both and WORD_AND_NUMBER.fullmatch(value) is not None
    return has_both and (num_sorts(value) > 2 or surprise(value) >= _ODD)


def _is_secret(value: str) -> bool:
    return not WORDS.fullmatch(value) and (looks_secret(value) or looks_gibberish(value))


STATED = Recogniser(
    "api_key.stated",
    Kind.API_KEY,
    55,
    rf"\"{_IN_QUOTES}']{{5,}}\"?|'{_IN_QUOTES}\"]{{5,}}'?|{RUN}*{_TELLING}{RUN}*[(<]?|{RUN}{{8,}}[(<]?",
    check_stated,
    tail=RUN,
    context=MOST_CONTEXT_CHARS,
)


_SUCH = (
    r"(?:password|passwort|passphrase|passwd|pwd|contraseña|mot de passe|senha|wachtwoord|hasło"
    r"|(?:api )?key|token|secret)"
)
_SAID_AFTER = (
    rf"[\"'`”»]?,? (?:is|as|was|ist|als|est|comme|es|como|é|è|come|to)(?: [a-z]{{1,9}}){{0,2}} {_SUCH}"
    r"|[\"']? ?\| ?(?:sudo -S|(?:sudo )?passwd --stdin|(?:sudo )?chpasswd|[\w ./:\-]{0,80}--password-stdin)"
)
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
    if not is_plain(value) and not _HEX.fullmatch(value) and (looks_secret(value) or looks_mixed(value)):
        yield 0, len(value)


SAID_AFTER = Recogniser(
    "api_key.said_after",
    Kind.API_KEY,
    54,
    rf"{RUN}*[0-9#$!&*^@]{RUN}*(?i:{_SAID_AFTER})",
    check_said_after,
)
