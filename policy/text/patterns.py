r"""Regular expressions taken apart, so that a stream knows how much of its end could still become a match.

For a pattern R two RE2 expressions are made: R itself, and its *opening*, which matches every beginning of a match of
R, whole matches included. ``opening\z`` searched from the right then finds where the longest open match begins:
nothing before that place can change any more, whatever the rest of the text is. RE2 does it in one pass backwards.

    opening(x)      = x?                       for one character
    opening(a b)    = opening(a) | loose(a) opening(b)
    opening(a | b)  = opening(a) | opening(b)
    opening(a{m,n}) = loose(a){0,n-1} opening(a)

An opening does not count the characters of a word: loose(x{m,n}) is x* where x is no white space and n is more than
8. It may then begin too early in a long run, which holds back more and never less. Counting is dear: from the end of a
text every count is open at once, and RE2 keeps each as a place of its own: milliseconds for each character.

Patterns are read by the standard library's own parser, and hold what both it and RE2 have: no look-around and no
back-references, and no ``^`` and ``$``, since a stream has neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import re2

MAX_MEM = 64 << 20
"""Bytes that one compiled expression may use, its automaton included."""


_MOST_COUNTED = 8


class BadPattern(ValueError):
    """A pattern that cannot be used here; the message says why and what to write instead."""


@dataclass(frozen=True, slots=True)
class Form:
    """A pattern in RE2's spelling, what covers it without counting, and its opening.

    ``longest`` is None if a match may be of any length.
    """

    whole: str
    loose: str
    opening: str
    longest: int | None


_NOTHING = Form("", "", "", 0)


def compiled(expression: str, max_mem: int = MAX_MEM) -> Any:
    """Compile with RE2. Raises BadPattern; logs nothing."""
    try:
        return re2.compile(expression, options(max_mem))
    except re2.error as error:
        reason = error.args[0] if error.args else error
        told = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise BadPattern(f"RE2 refuses the pattern: {told}") from None


def options(max_mem: int = MAX_MEM) -> re2.Options:
    """RE2's options for every expression of ours."""
    chosen = re2.Options()
    chosen.log_errors = False
    chosen.max_mem = max_mem
    return chosen


def form(pattern: str) -> Form:
    """Take a pattern apart. Raises BadPattern."""
    parser: Any = import_module("re._parser")
    try:
        tree = parser.parse(pattern)
    except Exception as error:  # noqa: BLE001 - the parser raises re.error, and RecursionError, OverflowError besides
        raise BadPattern(f"not a regular expression: {error}") from None
    try:
        found = _with_flags(_sequence(tree), tree.state.flags, 0)
    except RecursionError:
        raise BadPattern("the groups are nested too deeply") from None
    compiled(found.whole)
    compiled(f"(?:{found.opening})")
    return found


def _sequence(items: Sequence[tuple[Any, Any]]) -> Form:
    forms = [_item(str(name), value) for name, value in items]
    if not forms:
        return _NOTHING
    opening = forms[-1].opening
    for each in reversed(forms[:-1]):
        opening = f"(?:{each.opening}|{each.loose}(?:{opening}))"
    lengths = [each.longest for each in forms]
    return Form("".join(one.whole for one in forms), "".join(one.loose for one in forms), opening, _total(lengths))


def _total(lengths: Sequence[int | None]) -> int | None:
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def _item(name: str, value: Any) -> Form:
    known = _FORMS.get(name)
    if known is None:
        told = _REFUSED.get(name, f"{name.lower()} is not supported")
        raise BadPattern(f"{told}; patterns are matched in linear time, without look-around and back-references")
    return known(value)


_REFUSED = {
    "GROUPREF": "a back-reference cannot be used",
    "ASSERT": "look-ahead and look-behind cannot be used",
    "ASSERT_NOT": "look-ahead and look-behind cannot be used",
}
_INLINE = {2: "i", 16: "s"}
_UNICODE_FLAG = 32


def _with_flags(inner: Form, added: int, removed: int) -> Form:
    if removed or added & ~(sum(_INLINE) | _UNICODE_FLAG):
        raise BadPattern("of the inline flags only i and s can be used")
    letters = "".join(letter for flag, letter in _INLINE.items() if added & flag)
    whole, loose, opening = (f"(?{letters}:{one})" for one in (inner.whole, inner.loose, inner.opening))
    return Form(whole, loose, opening, inner.longest)


def _one(expression: str) -> Form:
    return Form(expression, expression, f"{expression}?", 1)


def _character(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:x}}}"


_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}


def _class(members: Sequence[tuple[Any, Any]]) -> Form:
    parts = []
    for name, value in members:
        match str(name):
            case "NEGATE":
                parts.append("^")
            case "LITERAL":
                parts.append(_character(value))
            case "RANGE":
                parts.append(f"{_character(value[0])}-{_character(value[1])}")
            case _:
                parts.append(_CATEGORIES[str(value)])
    return _one(f"[{''.join(parts)}]")


def _is_run(inner: Form, most: int | None) -> bool:
    """True for many characters of a word."""
    if inner.longest != 1 or inner.opening != f"{inner.whole}?" or (most is not None and most <= _MOST_COUNTED):
        return False
    one = compiled(inner.whole)
    return not any(one.fullmatch(space) for space in (" ", "\n"))


def _repeat(lazy: bool) -> Callable[[Any], Form]:
    def repeat(value: Any) -> Form:
        least, most, items = value
        inner = _sequence(items)
        limit = most if isinstance(most, int) and most < 2**31 else None
        if limit == 0:
            return _NOTHING
        count = f"{{{least},{'' if limit is None else limit}}}{'?' if lazy else ''}"
        whole = f"(?:{inner.whole}){count}"
        longest = None if limit is None or inner.longest is None else inner.longest * limit
        if _is_run(inner, limit):
            return Form(whole, f"(?:{inner.whole})*", f"(?:{inner.whole})*", longest)
        before = "*" if limit is None else f"{{0,{limit - 1}}}"
        return Form(whole, f"(?:{inner.loose}){count}", f"(?:(?:{inner.loose}){before}{inner.opening})", longest)

    return repeat


def _group(value: Any) -> Form:
    _, added, removed, items = value
    return _with_flags(_sequence(items), added, removed)


def _branch(value: Any) -> Form:
    forms = [_sequence(items) for items in value[1]]
    lengths = [each.longest for each in forms]
    longest = None if None in lengths else max(length for length in lengths if length is not None)
    whole, loose, opening = (
        f"(?:{'|'.join(parts)})"
        for parts in zip(*((each.whole, each.loose, each.opening) for each in forms), strict=True)
    )
    return Form(whole, loose, opening, longest)


def _place(value: Any) -> Form:
    match str(value):
        case "AT_BOUNDARY":
            return Form(r"\b", r"\b", "", 0)
        case "AT_NON_BOUNDARY":
            return Form(r"\B", r"\B", "", 0)
        case _:
            raise BadPattern(r"^, $, \A and \Z cannot be used: a stream has no end to look at; use \b")


_FORMS: dict[str, Callable[[Any], Form]] = {
    "LITERAL": lambda value: _one(_character(value)),
    "NOT_LITERAL": lambda value: _one(f"[^{_character(value)}]"),
    "ANY": lambda _: _one("."),
    "IN": _class,
    "MAX_REPEAT": _repeat(lazy=False),
    "MIN_REPEAT": _repeat(lazy=True),
    "SUBPATTERN": _group,
    "BRANCH": _branch,
    "AT": _place,
}
