r"""Parses regular expressions, so that a stream knows how much of its end could still become a match.

For a pattern R two RE2 expressions are made: R itself, and its *opening*, which matches every beginning of a match of
R, whole matches included. ``opening\z`` searched from the right then finds where the longest open match begins:
no later text can change anything before that position. RE2 does it in one backward pass.

    opening(x)      = x?                       for one character
    opening(a b)    = opening(a) | loose(a) opening(b)
    opening(a | b)  = opening(a) | opening(b)
    opening(a{m,n}) = loose(a){0,n-1} opening(a)

An opening does not count the characters of a word: loose(x{m,n}) is x* if x is no white space and n is more than 8. So
it may begin too early in a long run, which holds back more, never less. Counting is expensive: from the end of a text
every count is possible, and RE2 needs a state for each, which takes milliseconds for each character.

The parser of the standard library reads the patterns. They may use the features that it shares with RE2: no look-around
and no back-references. ``^`` and ``$`` are refused, because a stream has no start and no end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import re2

MAX_MEM = 64 << 20
"""The memory limit of one compiled expression in bytes, its automaton included."""


_MAX_COUNTED = 8


class BadPattern(ValueError):
    """A pattern that cannot be used here. The message has the reason and an alternative."""


@dataclass(frozen=True, slots=True)
class ParsedPattern:
    """A pattern in RE2's syntax, a looser one without counting, and its opening.

    ``longest`` is None if a match may be of any length.
    """

    whole: str
    loose: str
    opening: str
    longest: int | None


_NOTHING = ParsedPattern("", "", "", 0)


def compiled(expression: str, max_mem: int = MAX_MEM) -> Any:
    """Compile with RE2. Raises BadPattern; logs nothing."""
    try:
        return re2.compile(expression, options(max_mem))
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise BadPattern(f"RE2 refuses the pattern: {reason}") from None


def options(max_mem: int = MAX_MEM) -> re2.Options:
    """Return the RE2 options for all expressions."""
    chosen = re2.Options()
    chosen.log_errors = False
    chosen.max_mem = max_mem
    return chosen


def parse_pattern(pattern: str) -> ParsedPattern:
    """Parse a pattern. Raises BadPattern."""
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


def _sequence(items: Sequence[tuple[Any, Any]]) -> ParsedPattern:
    parsed = [_item(str(name), value) for name, value in items]
    if not parsed:
        return _NOTHING
    opening = parsed[-1].opening
    for each in reversed(parsed[:-1]):
        opening = f"(?:{each.opening}|{each.loose}(?:{opening}))"
    lengths = [each.longest for each in parsed]
    return ParsedPattern(
        "".join(one.whole for one in parsed), "".join(one.loose for one in parsed), opening, _total(lengths)
    )


def _total(lengths: Sequence[int | None]) -> int | None:
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def _item(name: str, value: Any) -> ParsedPattern:
    known = _FORMS.get(name)
    if known is None:
        reason = _REFUSED.get(name, f"{name.lower()} is not supported")
        raise BadPattern(f"{reason}; patterns are matched in linear time, without look-around and back-references")
    return known(value)


_REFUSED = {
    "GROUPREF": "a back-reference cannot be used",
    "ASSERT": "look-ahead and look-behind cannot be used",
    "ASSERT_NOT": "look-ahead and look-behind cannot be used",
}
_INLINE = {2: "i", 16: "s"}
_UNICODE_FLAG = 32


def _with_flags(inner: ParsedPattern, added: int, removed: int) -> ParsedPattern:
    if removed or added & ~(sum(_INLINE) | _UNICODE_FLAG):
        raise BadPattern("of the inline flags only i and s can be used")
    letters = "".join(letter for flag, letter in _INLINE.items() if added & flag)
    whole, loose, opening = (f"(?{letters}:{one})" for one in (inner.whole, inner.loose, inner.opening))
    return ParsedPattern(whole, loose, opening, inner.longest)


def _single(expression: str) -> ParsedPattern:
    return ParsedPattern(expression, expression, f"{expression}?", 1)


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


def _class(members: Sequence[tuple[Any, Any]]) -> ParsedPattern:
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
    return _single(f"[{''.join(parts)}]")


def _is_run(inner: ParsedPattern, most: int | None) -> bool:
    """Return True for a long repetition of one character class without white space."""
    if inner.longest != 1 or inner.opening != f"{inner.whole}?" or (most is not None and most <= _MAX_COUNTED):
        return False
    one = compiled(inner.whole)
    return not any(one.fullmatch(space) for space in (" ", "\n"))


def _repeat(lazy: bool) -> Callable[[Any], ParsedPattern]:
    def repeat(value: Any) -> ParsedPattern:
        least, most, items = value
        inner = _sequence(items)
        limit = most if isinstance(most, int) and most < 2**31 else None
        if limit == 0:
            return _NOTHING
        count = f"{{{least},{'' if limit is None else limit}}}{'?' if lazy else ''}"
        whole = f"(?:{inner.whole}){count}"
        longest = None if limit is None or inner.longest is None else inner.longest * limit
        if _is_run(inner, limit):
            return ParsedPattern(whole, f"(?:{inner.whole})*", f"(?:{inner.whole})*", longest)
        before = "*" if limit is None else f"{{0,{limit - 1}}}"
        return ParsedPattern(
            whole, f"(?:{inner.loose}){count}", f"(?:(?:{inner.loose}){before}{inner.opening})", longest
        )

    return repeat


def _group(value: Any) -> ParsedPattern:
    _, added, removed, items = value
    return _with_flags(_sequence(items), added, removed)


def _branch(value: Any) -> ParsedPattern:
    parsed = [_sequence(items) for items in value[1]]
    lengths = [each.longest for each in parsed]
    longest = None if None in lengths else max(length for length in lengths if length is not None)
    whole, loose, opening = (
        f"(?:{'|'.join(parts)})"
        for parts in zip(*((each.whole, each.loose, each.opening) for each in parsed), strict=True)
    )
    return ParsedPattern(whole, loose, opening, longest)


def _anchor(value: Any) -> ParsedPattern:
    match str(value):
        case "AT_BOUNDARY":
            return ParsedPattern(r"\b", r"\b", "", 0)
        case "AT_NON_BOUNDARY":
            return ParsedPattern(r"\B", r"\B", "", 0)
        case _:
            raise BadPattern(r"^, $, \A and \Z cannot be used: a stream has no end to look at; use \b")


_FORMS: dict[str, Callable[[Any], ParsedPattern]] = {
    "LITERAL": lambda value: _single(_character(value)),
    "NOT_LITERAL": lambda value: _single(f"[^{_character(value)}]"),
    "ANY": lambda _: _single("."),
    "IN": _class,
    "MAX_REPEAT": _repeat(lazy=False),
    "MIN_REPEAT": _repeat(lazy=True),
    "SUBPATTERN": _group,
    "BRANCH": _branch,
    "AT": _anchor,
}
