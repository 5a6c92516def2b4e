"""Secrets that a word before them names: the word, what stands between, and what the value looks like decide together.

The candidate is any run of characters that may hold a value. What names it stands before it, in the candidate itself
(``token=x``) or in the characters that a check may look at, so nothing but the run is held back in a stream. A value
that is set to a name (``password: x``) needs to look like less than one that only stands in the same line.
"""

import re
from collections.abc import Iterator
from typing import Any

from policy.recognisers.recogniser import Kind, Recogniser, Spans
from policy.recognisers.secret_words import CALL, FLAG, LINKS, NO_SECRET_KEY, PAIR, PAIR_IN_CALL, SCHEME, WORD
from policy.recognisers.shapes import (
    UUID,
    WORD_AND_NUMBER,
    WORDS,
    is_date,
    is_name,
    is_plain,
    looks_chosen,
    looks_drawn,
    looks_mixed,
    looks_random,
    looks_secret,
)
from policy.text.patterns import compiled

# ASCII and the alphabets of Latin, Greek and Cyrillic letters, without quotes, brackets and signs between values.
_LETTERS = r"\u00a1-\u00aa\u00ac-\u00ba\u00bc-\u052f"
RUN = rf"[!#$%&*+\-./0-9:=?@A-Z\\^_a-z~{_LETTERS}]"
_IN_QUOTES = rf"[!#$%&()*+,\-./0-9:;<=>?@A-Z\[\\\]^_`a-z{{|}}~{_LETTERS}"
_TELLING = r"[0-9#$!&*^@]"

_WORD: Any = compiled(WORD)
_END = re.compile(r"&\w+=")
# A word and a number that is no year.
_WORD_AND_NUMBER_TOLD = re.compile(r"[^\W\d_]{3,}(?!(?:19|20)\d\d$)\d{3,4}[^\w\s]{0,3}")
_AFTER = re.compile(r"(?:[.:?]|\*\*)+$|\\+$")
_FORM = re.compile(r"(?:base64|b64|hex|plain|raw|pass):")
_IN_URL = re.compile(r"://[^\s/@]*$")
_PARAMETER = re.compile(r"[a-z_]{1,24}=[^=]")
# "Passwords are hashed with argon2id"
_STORED = re.compile(r"(?i)\b(?:hash|encrypt|encod|salt|stored)")
_OTHER = re.compile(r"(?i)\b(?:user|username|login|account|host|server|database|role)[\s\"'`“„«]*$")
_HEX = re.compile(r"[0-9a-f]+")
_UNQUOTED = re.compile(rf"{RUN}*")
_OPENING = re.compile(r"[\"']?[=:]*")
_MOST_APART = 48


def check_stated(candidate: str, before: str) -> Spans:
    """Yield the values in the candidate that a word before them names."""
    if not any(map(str.isalpha, candidate)):
        return
    text, start = before + candidate, len(before)
    done = start
    names = [(found.start(), found.end(), found.lastgroup) for found in _WORD.finditer(text)]
    for index, (begin, end, sort) in enumerate(names):
        is_nearest = index + 1 == len(names)
        for link, at in _links(text, begin, end, sort, start, is_nearest=is_nearest):
            value_start, value_end = _value(text, at, start, candidate)
            if at < done or value_end <= value_start:
                continue
            value = text[value_start:value_end]
            # A function's name.
            if text[value_end : value_end + 1] != "(" and _is_believed(value, sort, link, text, begin):
                yield value_start - start, value_end - start
                done = value_end
                break
    if done == start and (span := _given(text, start, candidate)):
        yield span[0] - start, span[1] - start


def _given(text: str, start: int, candidate: str) -> tuple[int, int] | None:
    """Return the value of a candidate that a call is given, or that stands behind a user."""
    quoted = start + (text[start] in "\"'")
    value_start, value_end = _value(text, quoted, start, candidate)
    value, left = text[value_start:value_end], text[:quoted]
    if (
        (looks_drawn(value) and CALL.search(left))
        or ((looks_chosen(value) or looks_mixed(value)) and PAIR_IN_CALL.search(left))
        or (looks_chosen(value) and not is_plain(value) and not UUID.fullmatch(value) and PAIR.search(left))
    ):
        return value_start, value_end
    return None


def _links(text: str, begin: int, end: int, sort: str, start: int, *, is_nearest: bool) -> Iterator[tuple[str, int]]:
    """Yield what joins a word to a value of the candidate, and where the value begins; the surest first."""
    if sort == "key" and text[begin:end].lower() == "authorization":
        scheme = SCHEME.match(text, end)
        if scheme is not None and scheme.end() >= start:
            yield "set", scheme.end()
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
    return at, at + len(_AFTER.sub("", text[at:end]))


def _is_believed(value: str, sort: str, link: str, text: str, begin: int) -> bool:
    if is_name(value) or _PARAMETER.match(value) or (link in {"far", "told", "line"} and is_date(value)):
        return False
    if sort == "loose":
        is_weak = text[begin:].lower().startswith("key") and _HEX.fullmatch(value)
        return looks_drawn(value) and not NO_SECRET_KEY.search(text[:begin]) and not is_weak
    if link == "line":
        return looks_random(value) or (sort == "password" and looks_secret(value) and not is_plain(value))
    if sort == "key":
        if link in {"spaced", "far", "told"}:
            return looks_drawn(value)
        return _is_secret(value) or (link == "set" and UUID.fullmatch(value) is not None)
    return _is_password(value, sort, link)


def _is_password(value: str, sort: str, link: str) -> bool:
    if sort == "short":
        if link == "set":
            return _is_secret(value) or looks_chosen(value)
        return link != "far" and not is_plain(value) and (_is_secret(value) or looks_mixed(value))
    if link == "told":
        if len(value) >= 8 and _WORD_AND_NUMBER_TOLD.fullmatch(value):
            return True
        return not is_plain(value) and (_is_secret(value) or looks_chosen(value) or looks_mixed(value))
    return (
        _is_secret(value)
        or (link == "set" and looks_chosen(value))
        or (link == "far" and looks_chosen(value) and not WORDS.fullmatch(value))
        or (link == "said" and looks_chosen(value) and WORD_AND_NUMBER.fullmatch(value) is not None)
        or (link in {"set", "said", "far"} and looks_mixed(value))
    )


def _is_secret(value: str) -> bool:
    return not WORDS.fullmatch(value) and looks_secret(value)


STATED = Recogniser(
    "api_key.stated",
    Kind.API_KEY,
    55,
    rf"\"{_IN_QUOTES}']{{6,}}|'{_IN_QUOTES}\"]{{6,}}|{RUN}*{_TELLING}{RUN}*\(?",
    check_stated,
    tail=RUN,
)


_KNOWN = re.compile(
    r"(?i)(?:\b|_)(?:sha-?\d*|md5|blake\w*|digest|checksum|integrity|hash|etag|commit|revision|rev|fingerprint|nonce"
    r"|ssh-\w+|ecdsa-\w+|public.?key|pubkey|cert\w*|uuid|guid|\w*id|ids|base64,|data:|h1:)"
    r"[\\\"'`\])>]{0,3}\s{0,2}(?:[:=\-(]|=>|is|w/)?\s{0,2}[\\\"'`(<\[]{0,3}$"
    r"|-----\s*$|[A-Za-z0-9+/]{40,}\s*\n\s*$"
)
_PUBLIC = re.compile(
    r"(?:sha\d+|md5|h1|chatcmpl|cmpl|call|msg|resp|req|run|thread|asst|file|batch|step|toolu|cus|pi|ch|cs|price|prod|sub|in|evt"
    r"|acct|pm|seti|si|txn|po|re|src|tok|card|ba|ii|il|pk|price|whk|we|usr|user|org|team|proj|ws|ses|sess|sid|id|trace|span"
    r"|job|task|doc|img|ex|inv|ord|order)[-_:]"
)
_IN_PATH = re.compile(r"://[^\s\"'<>]*$|/[^\s?#=\"'<>]*$")


def check_random(candidate: str, before: str) -> Spans:
    """A value that is drawn at random by its look alone, and neither a digest nor an id nor a part of a path."""
    value = candidate.rstrip("-_/.")
    if looks_random(value) and not _PUBLIC.match(value) and not _KNOWN.search(before) and not _IN_PATH.search(before):
        yield 0, len(value)


RANDOM = Recogniser(
    "api_key.random",
    Kind.API_KEY,
    50,
    r"[A-Za-z0-9][A-Za-z0-9+/_\-]{19,}={0,2}",
    check_random,
    tail=r"[A-Za-z0-9+/_\-=]",
)


_SUCH = (
    r"(?:password|passwort|passphrase|passwd|pwd|contraseña|mot de passe|senha|wachtwoord|hasło"
    r"|(?:api )?key|token|secret)"
)
_SAID_AFTER = (
    rf"[\"'`”»]?,? (?:is|as|was|ist|als|est|comme|es|como|é|è|come|to)(?: [a-z]{{1,9}}){{0,2}} {_SUCH}"
    r"|[\"']? ?\| ?(?:sudo -S|(?:sudo )?passwd --stdin)"
)
_WHAT_IT_IS = re.compile(rf"(?i)(?:{_SAID_AFTER})$")


def check_said_after(candidate: str, _before: str) -> Spans:
    """A value that is called a password or key behind it: "x is my password", "use x as the token", x | sudo -S."""
    found = _WHAT_IT_IS.search(candidate)
    value = candidate[: found.start()] if found else ""
    if not is_plain(value) and not _HEX.fullmatch(value) and (looks_secret(value) or looks_mixed(value)):
        yield 0, len(value)


SAID_AFTER = Recogniser(
    "api_key.said_after",
    Kind.API_KEY,
    54,
    rf"{RUN}*[0-9#$!&*^@]{RUN}*(?i:{_SAID_AFTER})",
    check_said_after,
)
