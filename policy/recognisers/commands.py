"""Passwords that a command line gives to a program by a short option.

Of a program that is known to take a password by the option, any value counts. Of another, only one that looks like a
password: -p is a port, a path, a package or a project elsewhere.
"""

import re
from collections.abc import Iterator

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans
from headrace.policy.recognisers.shapes import (
    is_plain,
    looks_chosen,
    looks_gibberish,
    looks_mixed,
    looks_random,
    looks_secret,
)

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
    ("k", r"openssl", True),
    ("A", r"snmp[a-z]+", True),
    ("X", r"snmp[a-z]+", True),
    ("pw", r"plink|pscp|psftp", True),
)
_PROGRAMS = tuple(
    (option, re.compile(rf"\b(?:{programs})(?:\.exe)?\s[^\n|;]*$"), may_stand_apart)
    for option, programs, may_stand_apart in _OPTIONS
)
_WRITTEN = re.compile(
    r"(?:-U[ =]?[\"']?[^\s%]+%|-(pw|[paPwkAX])([ =]?)|/(?i:user):\S+ |/p:)(?:\"([^\"]+)|'([^']+)|([^\s\"']+))$"
)
_REFERENCE = re.compile(r"[$%<{-]|\*\*\*|\.{0,2}/|~/|\d{1,5}(?::\d{1,5})?$")


def check_command_password(candidate: str, before: str) -> Spans:
    """The value of an option that is a password for the program before it on the line, or that looks like one."""
    found = _WRITTEN.match(candidate)
    # Not --password.
    if found is None or before[-1:].strip(" \t\n\"'"):
        return
    start, end = found.span(found.lastindex or 0)
    value = candidate[start:end]
    # A word that touches -p may be the program's own option.
    is_word = (
        found[1] is not None and not found[2] and value.isalpha() and value.islower() and not looks_gibberish(value)
    )
    if _REFERENCE.match(value) or is_word:
        return
    if any(_takes_password(found, before)) or (found[2] and found[1] not in {"a", "A", "X"} and _looks_like_one(value)):
        yield start, end


def _looks_like_one(value: str) -> bool:
    return not is_plain(value) and (
        looks_random(value) or looks_mixed(value) or (looks_chosen(value) and looks_secret(value))
    )


def _takes_password(found: re.Match[str], before: str) -> Iterator[bool]:
    if found[1] is None:
        yield found[0].startswith(("-U", "/p:")) or re.search(r"(?i)\bnet use\b[^\n]*$", before) is not None
        return
    for option, program, may_stand_apart in _PROGRAMS:
        if option == found[1] and (may_stand_apart or not found[2]):
            yield program.search(before) is not None


_VALUE = r"(?:\"[^\s\"]{4,128}|'[^\s']{4,128}|[^\s\"'|;<>]{4,128})"
COMMAND_PASSWORD = Recogniser(
    "api_key.command_password",
    Kind.API_KEY,
    56,
    rf"\B-(?:pw|[paPwkAX])[ =]?{_VALUE}|\B/p:{_VALUE}|\B/(?i:user):[^\s/]{{1,64}} {_VALUE}"
    r"|\B-U[ =]?[\"']?[^\s\"'%]{1,64}%[^\s\"']{4,128}",
    check_command_password,
)
