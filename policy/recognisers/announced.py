"""Decides whether a value that a word announces is a secret: the sort of the word, what joins the two, and the look."""

import re
from dataclasses import dataclass
from typing import Any

from headrace.policy.recognisers.secret_words import NO_QUALIFIER, NO_SECRET_KEY, QUALIFIER, WORD, names_secret
from headrace.policy.recognisers.shapes import (
    DOTTED,
    PLACEHOLDER,
    REFERENCE,
    UUID,
    WORD_AND_NUMBER,
    WORDS,
    has_odd_part,
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
from headrace.policy.recognisers.unannounced import KNOWN
from headrace.policy.text.letter_triples import surprise
from headrace.policy.text.patterns import compiled

PIN_LENGTHS = (4, 5, 8)
MOST_DIGITS = 40
ODD = 6.0
"""Bits a triple, see ``letter_triples``: half of all words have more than 4.3, 2 % more than this."""

_WORD: Any = compiled(WORD)
_PARAMETER = re.compile(r"[a-z_\-]{2,24}=[^=]|--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?:\.?$|=)|\.\.\w")
# A sign that no name of a parameter and no word has.
_OTHER_SIGN = re.compile(r"[^\w=.,\-]")
# What programs that check code read in a comment.
_MARKER = re.compile(r"(?i)(?:nosec|noqa|nolint|nosonar|nosemgrep|skipcq|pylint|gitleaks|checkov)(?:[:=(]|$)")
_SETTING = re.compile(r"[A-Za-z_][\w.\-]*[=:]|.*\)$")
_ALGORITHM = re.compile(
    r"(?i)(?:sha|md|aes|argon|rsa|hmac|pbkdf)-?\d+[\w\-]*"
    r"|(?:utf|base|bcrypt|scrypt|oauth|tls|ssl|http|ipv|win|str|int|char)-?\d+"
)
# The next setting in the text, whose value is in quotes.
_NEXT_SETTING = re.compile(r"[A-Za-z_][\w.\-]*=")
_SCHEME = re.compile(r"(?i)[a-z][a-z0-9+._\-]{1,23}://")
_CAMEL = re.compile(r"[a-z]+(?:[A-Z][a-z]+)+\d{1,2}")
_HEX = re.compile(r"[0-9a-f]+")
_KEY_OF_HEX = re.compile(rf"{UUID.pattern}|[0-9a-f]{{12,}}")
# A word and a number: behind "is", and behind more words, where it is no year.
_WORD_AND_NUMBER_SAID = re.compile(r"[^\W\d_]{4,}\d{2}[!?]?|[^\W\d_]{3,}\d{3,8}[^\w\s]{0,3}")
_WORD_AND_NUMBER_TOLD = re.compile(r"(?=.{8})(?:[^\W\d_]{3,}(?!(?:19|20)\d\d$)\d{3,8}[^\w\s]{0,3}|[^\W\d_]{8,}\d\d)")
_WORD_AND_NUMBER_SET = re.compile(r"[^\W\d_]{3,}\d{3,}[^\w\s]{0,3}")
_PASSPHRASE = re.compile(r"[a-z]{3,}(?:[-_.][a-z]{3,}){3,}")
_SHORT_PASSPHRASE = re.compile(r"[a-z]{3,}(?:[-_][a-z]{3,}){2}\d{0,3}")
# What is written as the value of a name, an option or a setting, or behind letters that no program has: neither an
# argument of a call nor a word of a list.
_IN_QUOTES = re.compile(
    r"(?:[:=]|=>|\|)\s{0,3}[\"'`]{1,2}$|--[\w\-]{1,40}[ =][\"'`]?$|;[\w ]{1,24}=$|[^\W\x00-\x7f]\s?:\s?$"
    r"|\n[ \t]{0,8}[A-Za-z_]{0,24}[Pp]assword(?:  |\t)\s{0,8}$"
)
_SAID_IN_QUOTES = re.compile(r"(?:\s(?:is|ist|est|es)\s|[^\x00-\x7f]\s?:?\s?)[\"'`]{1,2}$")
# Begins as a variable does, but has more signs.
_SIGNS_BEHIND = re.compile(r"[$%](?=\S*\d)(?=\S*[A-Za-z])(?=(?:\S*[!@#^&*+~?=]){2})[^\s{}<>]{8,}")
# A type with a number in its name: Uint8Array.
_TYPE = re.compile(r"[A-Za-z]+(?:\d{1,2}[A-Z][A-Za-z]+)+")
_SET_TO = re.compile(r"(?:[:\"'=：\-→>|`「„“«]|\s--?[\w\-]+)$")
_CONSTANT = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_COLUMN = re.compile(r"\t|\s{2}")
# The name of a file with a key, which is printed.
_JUST_BEFORE = re.compile(r"(?i)(?:key|token|secret)\S{0,8}\n\s*$")
_SECRET = re.compile(r"(?i)\w*secret")
# A key of hexadecimal digits needs more than the word "key".
_MINE = re.compile(
    r"(?i)\b(?:use|using|my|our|with)(?: (?:the|this))? $|getenv\([\"']\w*$|\"username\"\s?:\s?\"[^\"]*\",\s?\"$"
)
_IN_QUERY = re.compile(r"(?i)[?&](?:api_?|access_?|auth_?)?key=$")
_OF_API = re.compile(r"(?i)(?:\S+[ \-])?api\b|\bpat\b")
_TWO_WORDS = re.compile(r"[^\W_][ _\-][^\W_]")
# Of a key or token that is no id.
_SURE = frozenset(
    re.findall(r"\w+", "auth oauth access refresh secret cookie csrf signing shared deploy master app webhook")
)
_ARN = re.compile(r"\barn:[\w:\-]*$")
_NAME_OF_ONE = re.compile(r"[a-z0-9_](?:Key|Token|Secret|Password)s?$")
HASHED = re.compile(r"(?:^|[\s:}\"'])\$(?:2[abxy]?|[156y]|argon2\w*|apr1)\$")
"""The begin of a password's hash."""
_OURS = re.compile(r"(?i)\b(?:my|our)\b[^.,;:\n]{0,40}$")
_RANDOM_SIGNS, _LEAST_SIGNS = 7.0, 8
_LEAST_KEY_DIGITS = 15
_BARE = re.compile(r"(?i)[a-z_]?(?:key|token)s?")
_ODD_SET = 5.5
_LEAST_KEY = 16
_LEAST_ODD_KEY = 10
_LEAST_CELL = 6
_LEAST_CELL_BITS = 5.1
_LEAST_DIGITS = {"set": 6, "said": 6, "told": 6, "spaced": 8, "far": 8, "line": 20}
# The value is written out: in quotes, in an element of XML, in a file of settings; not the name of a variable.
LITERAL = re.compile(
    r"(?:[\"']\s?(?::|=>|=)\s?|[=,]\s?)(?:\"[A-Za-z]{5,}\"|'[A-Za-z]{5,}')$|<[\w:.\-]{4,40}>[A-Za-z]{5,}<$"
    r"|(?:^|[\s\"'])[A-Z][A-Z0-9_]{3,40}=[A-Za-z_]{5,}$|(?:^|\s)(?:-D)?[\w\-]+(?:\.[\w\-]+)+=[A-Za-z_]{5,}$"
)
PHRASE_IN_QUOTES = re.compile(
    r"(?:[:=>|]\s{0,3}|\s(?:is|ist|est|es|é)\s|--[\w\-]{1,40}[ =]|[^\x00-\x7f]\s?)"
    r"(?P<quote>[\"'`])`?[a-z]{3,}(?:[-_.][a-z]{3,}){2,}(?P=quote)?$"
    r"|(?:--[\w\-]{0,30}pass(?:word|wd|phrase)[ =]|[^\W\x00-\x7f]\s?:\s?|[Pp]assword(?:  |\t)\s{0,8})"
    r"[a-z]{3,}(?:[-_.][a-z]{3,}){3,}$"
)
"""Words with signs between them, in quotes, as the value of a name; without, as that of an option or behind letters
that no program has."""
_NUMBERED_WORD = re.compile(r"[^\W\d_]{5,}\d{1,2}")
QUOTES = frozenset("\"'`")
_CHOSEN_WORD = re.compile(r"(?:[^\W\d_]|_(?=[a-z])){5,}\d{0,2}[!?.]?")
_NO_PASSWORD = re.compile(
    r"(?i)string|text|required|optional|invalid|incorrect|wrong|missing|hidden|null|none|true|false|undefined|default"
    r"|encrypted|redacted|changed|username|enter\w*|varchar|input|value|unset|empty|disabled|enabled|please|field|prompt"
    r"|(?:new|old|my|your|the|db|user|current|confirm|repeat|forgot)?_?(?:pass\w*|pwd|secret|token)"
)


@dataclass(frozen=True, slots=True)
class Announced:
    """A value, the sort of the word that announces it, what joins the two, and the text up to the value's end.

    ``begin``: where the word begins in the text.
    """

    value: str
    sort: str
    link: str
    text: str
    begin: int

    @property
    def before(self) -> str:
        """The text before the value."""
        return self.text[: self.text.rindex(self.value)]


def is_believed(it: Announced) -> bool:
    """True if the value is a secret."""
    if it.value.isdigit():
        return _is_number(it)
    if _is_something_else(it):
        return False
    word = _WORD.match(it.text, it.begin)
    is_camel = word is not None and word[0][1:] == "Key"
    if word is not None and _BARE.fullmatch(word[0]) and NO_SECRET_KEY.search(it.text, 0, it.begin + is_camel):
        return False
    if it.sort == "loose":
        return _is_loose_key(it)
    # A key may begin as a variable does; no variable looks random.
    is_key = it.value[0] == "$" and looks_random(it.value[1:])
    is_of_signs = _SIGNS_BEHIND.fullmatch(it.value) is not None or (it.value[0] == "$" and _is_of_signs(it.value))
    if is_key or (is_of_signs and _is_quoted_password(it)):
        return True
    return {"next": _is_below, "line": _is_in_line}.get(it.link, _BY_SORT[it.sort])(it)


def _is_something_else(it: Announced) -> bool:
    """True for a digest, an id, a hash of a password, a name in a program, or a date where no sign sets the value."""
    is_loose = it.link not in {"set", "said"}
    return (
        (is_loose and (KNOWN.search(it.before) is not None or (it.link != "spaced" and is_date(it.value))))
        or HASHED.search(it.value) is not None
        or (_PARAMETER.match(it.value) is not None and not _is_of_signs(it.value))
        or _MARKER.match(it.value) is not None
        or _ALGORITHM.fullmatch(it.value) is not None
        or (_TYPE.fullmatch(it.value) is not None and surprise(it.value) < ODD and it.before[-1:] not in QUOTES)
        or (_NEXT_SETTING.fullmatch(it.value) is not None and surprise(it.value) < ODD)
        or _SCHEME.match(it.value) is not None
        # Text up to a quote that no value began.
        or "</" in it.value
        # The next comment.
        or (it.value.startswith("#") and it.value[1:2].isalpha() and it.before.rstrip(" ").endswith("\n"))
        or _ARN.search(it.before) is not None
        or (
            not (_is_quoted_password(it) or _is_set_phrase(it))
            and (_CAMEL.fullmatch(it.value) is not None or is_name(it.value))
        )
    )


def _is_of_signs(value: str) -> bool:
    """True for random signs that only begin as a parameter does: ``lf=55@h*oun+)_55z*``."""
    return len(value) >= _LEAST_SIGNS and _OTHER_SIGN.search(value) is not None and surprise(value) >= _RANDOM_SIGNS


def _is_set_phrase(it: Announced) -> bool:
    """True for four words with dots behind a colon or in a cell or column; behind ``=`` an attribute stands so too."""
    is_set = it.sort == "password" and it.link == "set" and it.before.rstrip()[-1:] not in QUOTES | {"="}
    return is_set and DOTTED.fullmatch(it.value) is not None and not names_secret(it.value)


def _is_quoted_password(it: Announced) -> bool:
    """True for a value in quotes that is set as a password or said to be one: no variable, also if it looks so."""
    form = {"set": _IN_QUOTES, "said": _SAID_IN_QUOTES}.get(it.link)
    if it.sort not in {"password", "short"} or form is None or form.search(it.before) is None:
        return False
    return not PLACEHOLDER.search(it.value) and not names_secret(it.value)


def is_in_column(value: str, sort: str) -> bool:
    """True if a value in a column with such a word at its head is a secret."""
    if is_believed(Announced(value, sort, "set", f"{sort}: {value}", 0)):
        return True
    if sort != "password" or len(value) < _LEAST_CELL or _WORD.search(value) or PLACEHOLDER.search(value):
        return False
    return surprise(value) >= _LEAST_CELL_BITS and not REFERENCE.match(value)


def is_short_key(value: str) -> bool:
    """True for a key that is shorter than ``looks_drawn`` asks."""
    bare = value.rstrip("=")
    return len(value) >= _LEAST_KEY and num_sorts(bare) > 2 and looks_gibberish(bare)


def is_typed(value: str) -> bool:
    """True for a value that stands behind a user and looks like a password."""
    is_common = is_plain(value) and not WORD_AND_NUMBER.fullmatch(value)
    return not is_common and (looks_mixed(value) or looks_chosen(value) or _is_secret(value))


def _is_number(it: Announced) -> bool:
    """True for a password of digits only: behind a word for one password, or for a PIN."""
    if it.text[it.begin : it.begin + 3].lower() == "pin":
        return it.link != "line" and len(it.value) in PIN_LENGTHS
    word = _WORD.match(it.text, it.begin)
    if it.sort == "key":
        return it.link == "set" and len(it.value) >= _LEAST_KEY_DIGITS
    is_one = it.sort in {"password", "short"} and (word is None or not word[0].lower().endswith("s"))
    return is_one and _LEAST_DIGITS.get(it.link, MOST_DIGITS + 1) <= len(it.value) <= MOST_DIGITS


def _is_loose_key(it: Announced) -> bool:
    if _NAME_OF_ONE.search(it.value):
        return False
    if UUID.fullmatch(it.value):
        is_set = it.link == "set" and (_is_cookie(it) or _IN_QUERY.search(it.before) is not None)
        is_set |= it.link in {"set", "said"} and _OF_API.match(it.text, it.begin) is not None
        return is_set or (it.link != "line" and _is_qualified(it))
    is_drawn = looks_drawn(it.value) or (it.link in {"set", "spaced"} and is_short_key(it.value))
    if not is_drawn and not (it.link == "set" and (_is_qualified(it) or _is_cookie(it)) and _is_odd_key(it.value)):
        return False
    word = _WORD.match(it.text, it.begin)
    is_weak = word is not None and word[0].lower().endswith("key") and _HEX.fullmatch(it.value)
    return not is_weak or _is_qualified(it) or _MINE.search(it.text, 0, it.begin) is not None


def _is_qualified(it: Announced) -> bool:
    """True for a key with a word before it that says which: gateway_key, deviceKey; not "the key"."""
    word = _WORD.match(it.text, it.begin)
    if word is None or not word[0].lower().endswith("key"):
        return False
    found = QUALIFIER.search(it.text, 0, word.end() - len("key"))
    return found is not None and found[1].lower() not in NO_QUALIFIER and not NO_SECRET_KEY.search(found[0])


def _is_sure(it: Announced) -> bool:
    """True for a key that its name has two words for: client secret, auth token; an id may stand behind one."""
    word = _WORD.match(it.text, it.begin)
    if word is None:
        return False
    qualifier = QUALIFIER.search(it.text, 0, it.begin)
    is_two = _TWO_WORDS.search(word[0]) is not None
    return is_two or word[0].lower() == "bearer" or (qualifier is not None and qualifier[1].lower() in _SURE)


def _is_cookie(it: Announced) -> bool:
    """True behind the name of a cookie, in the header of that name."""
    return it.text[it.begin :].lower().startswith("cookie") and it.before.endswith("=")


def _is_odd_key(value: str) -> bool:
    """True for a key that is shorter than ``is_short_key`` asks, and no word."""
    return len(value) >= _LEAST_ODD_KEY and any(map(str.isdigit, value)) and looks_gibberish(value)


def _is_below(it: Announced) -> bool:
    """For a value at the begin of a later line."""
    if _CONSTANT.fullmatch(it.value):
        return False
    if it.sort == "key" and (looks_drawn(it.value) or UUID.fullmatch(it.value)):
        return _JUST_BEFORE.search(it.before) is not None
    return it.sort == "password" and not is_plain(it.value) and not _SETTING.match(it.value) and _is_odd(it.value)


def _is_in_line(it: Announced) -> bool:
    """For a value in the same line."""
    if looks_random(it.value):
        return True
    is_quoted = it.before[-1:] in {'"', "'", "`"} and _WORD_AND_NUMBER_SAID.fullmatch(it.value) is not None
    if it.sort == "key":
        is_chosen = is_quoted and _SECRET.match(it.text, it.begin) is not None
        return is_chosen or (looks_drawn(it.value))
    return it.sort == "password" and (is_quoted or (not is_plain(it.value) and _is_odd(it.value)))


def _is_key(it: Announced) -> bool:
    if UUID.fullmatch(it.value):
        is_column = _COLUMN.search(it.before[it.begin :]) is not None
        return it.link != "spaced" or is_column or _is_sure(it) or _OURS.search(it.text, 0, it.begin) is not None
    if it.link in {"spaced", "far", "told"}:
        return looks_drawn(it.value) or (num_sorts(it.value) > 1 and looks_gibberish(it.value) and _is_odd(it.value))
    if it.link == "set" and _KEY_OF_HEX.fullmatch(it.value):
        return True
    is_chosen = _SECRET.match(it.text, it.begin) and _WORD_AND_NUMBER_SET.fullmatch(it.value)
    return _is_secret(it.value) or (it.link == "set" and is_chosen is not None)


def _is_password(it: Announced) -> bool:
    value = it.value
    match it.link:
        case "set":
            is_word = _CHOSEN_WORD.fullmatch(value) is not None and _is_written_out(it)
            is_phrase = _SHORT_PASSPHRASE.fullmatch(value) is not None and _is_quoted_password(it)
            is_chosen = is_word or is_phrase or _is_short_one(value) or _PASSPHRASE.fullmatch(value) is not None
            is_like_one = looks_chosen(value) or looks_mixed(value) or has_odd_part(value, _ODD_SET)
            return is_chosen or is_like_one or _is_secret(value)
        case "said":
            is_word = it.before[-1:] in QUOTES and _NUMBERED_WORD.fullmatch(value) is not None
            is_chosen = (
                is_word or has_odd_part(value, _ODD_SET) or _is_said(value) or _PASSPHRASE.fullmatch(value) is not None
            )
            return is_chosen or _is_secret(value) or looks_mixed(value)
        case "far":
            is_chosen = looks_chosen(value) and not WORDS.fullmatch(value)
            return is_chosen or has_odd_part(value) or _is_secret(value) or looks_mixed(value)
        case _:
            is_known = _is_short_and_odd(value) or _WORD_AND_NUMBER_TOLD.fullmatch(value) is not None
            if it.link == "spaced":
                return is_known or _is_odd(value) or has_odd_part(value)
            is_like_one = _is_secret(value) or looks_chosen(value) or looks_mixed(value)
            return is_known or (not is_plain(value) and is_like_one)


def _is_short_name(it: Announced) -> bool:
    """For a value behind a short word for a password, which may mean something else: ``pass``, ``pw``."""
    value = it.value
    if it.link == "set":
        return _is_short_one(value) or _is_secret(value) or looks_chosen(value) or has_odd_part(value, _ODD_SET)
    if it.link == "far":
        return False
    is_pw = it.text[it.begin : it.begin + 2].lower() == "pw"
    if _is_short_and_odd(value) or (it.link == "said" and _is_said(value)):
        return True
    if it.link == "spaced" and is_pw and _is_short_one(value):
        return True
    return not is_plain(value) and (_is_secret(value) or looks_mixed(value))


_BY_SORT = {"key": _is_key, "password": _is_password, "short": _is_short_name}


def _is_said(value: str) -> bool:
    is_usual = looks_chosen(value) and WORD_AND_NUMBER.fullmatch(value) is not None
    return is_usual or _is_short_and_odd(value) or _WORD_AND_NUMBER_SAID.fullmatch(value) is not None


def _is_odd(value: str) -> bool:
    """True for what no sentence has, whatever names it: a secret, but neither a word nor a name."""
    if looks_mixed(value):
        return True
    has_sorts = not value.isalpha() or (not value.istitle() and num_sorts(value) > 1)
    return has_sorts and _is_secret(value)


def _is_written_out(it: Announced) -> bool:
    """True for a word as a password, with a number or not, if it is neither a label nor the name of a variable."""
    value = it.value
    if PLACEHOLDER.search(value) or _NO_PASSWORD.fullmatch(value) or names_secret(value):
        return False
    end = it.text.index(value, it.begin)
    if value.replace("_", "").isalpha():
        return LITERAL.search(it.text[: end + len(value) + 1]) is not None
    is_column = it.link == "set" and _COLUMN.search(it.text[it.begin : end]) is not None
    return is_column or _SET_TO.search(it.text[max(0, it.begin - 24) : end].rstrip()) is not None


def _is_short_one(value: str) -> bool:
    """True for five to seven signs that people choose as a password."""
    if not 5 <= len(value) <= 7 or REFERENCE.match(value) or PLACEHOLDER.search(value):
        return False
    has_both = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    if is_plain(value):
        return has_both and WORD_AND_NUMBER.fullmatch(value) is not None
    return has_both and (num_sorts(value) > 2 or surprise(value) >= ODD)


def _is_short_and_odd(value: str) -> bool:
    return num_sorts(value) > 2 and _is_short_one(value)


def _is_secret(value: str) -> bool:
    return not WORDS.fullmatch(value) and (looks_secret(value) or looks_gibberish(value))
