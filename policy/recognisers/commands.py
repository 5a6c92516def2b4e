"""Passwords that a command line gives to a program: the program's name says which option takes one."""

import re
from collections.abc import Iterator

from policy.recognisers.recogniser import Kind, Recogniser, Spans

# The option, the programs that take a password by it, and whether a space may stand between the two.
_OPTIONS = (
    ("p", r"mysql(?:dump|admin|import|check|sh)?|mariadb(?:-[a-z]+)?|7z[ar]?", False),
    (
        "p",
        r"sshpass|mongo(?:sh|dump|restore|import|export)?|(?:docker|podman|helm|oc|az|npm) (?:registry )?login",
        True,
    ),
    ("p", r"cqlsh|clickhouse-client|arangosh", True),
    ("a", r"(?:redis|valkey|keydb)-cli", True),
    ("w", r"ldap[a-z]+", True),
    ("P", r"sqlcmd|bcp|isql|tsql|mosquitto_(?:pub|sub)|unzip|zip|ipmitool", True),
    ("pw", r"plink|pscp|psftp", True),
)
_PROGRAMS = tuple(
    (option, re.compile(rf"\b(?:{programs})(?:\.exe)?\s[^\n|;]*$"), may_stand_apart)
    for option, programs, may_stand_apart in _OPTIONS
)
_WRITTEN = re.compile(r"(?:-(pw|[paPw])([ =]?)|/(?i:user):\S+ )(?:\"([^\"]+)|'([^']+)|([^\s\"']+))$")
_REFERENCE = re.compile(r"[$%<{-]|\*\*\*|\.{0,2}/|~/|\d{1,5}(?::\d{1,5})?$")


def check_command_password(candidate: str, before: str) -> Spans:
    """The value of an option that is a password for the program that stands before it on the line."""
    found = _WRITTEN.match(candidate)
    # Not --password.
    if found is None or before[-1:].strip() or not any(_takes_password(found, before)):
        return
    start, end = found.span(found.lastindex or 0)
    value = candidate[start:end]
    # A word that touches -p may be the program's own option.
    is_word = found[1] is not None and not found[2] and value.isalpha() and value.islower()
    if not _REFERENCE.match(value) and not is_word:
        yield start, end


def _takes_password(found: re.Match[str], before: str) -> Iterator[bool]:
    if found[1] is None:
        yield re.search(r"(?i)\bnet use\b[^\n]*$", before) is not None
        return
    for option, program, may_stand_apart in _PROGRAMS:
        if option == found[1] and (may_stand_apart or not found[2]):
            yield program.search(before) is not None


_VALUE = r"(?:\"[^\s\"]{4,128}|'[^\s']{4,128}|[^\s\"'|;<>]{4,128})"
COMMAND_PASSWORD = Recogniser(
    "api_key.command_password",
    Kind.API_KEY,
    56,
    rf"\B-(?:pw|[paPw])[ =]?{_VALUE}|\B/(?i:user):[^\s/]{{1,64}} {_VALUE}",
    check_command_password,
)
