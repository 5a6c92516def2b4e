"""The commands of servers of MCP that the operator has, by name: ``HEADRACE_MCP_COMMANDS``."""

import re
from collections.abc import Mapping
from typing import Final

import orjson

Commands = Mapping[str, tuple[str, ...]]
"""The program and its arguments, by the name that tenants use."""

COMMAND_NAME: Final = r"^[A-Za-z0-9_-]{1,64}$"

_EXAMPLE: Final = '{"clock": ["/usr/bin/clock-mcp", "--utc"]}'


def parse_commands(given: str) -> Commands:
    """Return the commands of a setting; "" is none. Raises ValueError, whose message shows no argument."""
    if not given.strip():
        return {}
    try:
        read = orjson.loads(given)
    except ValueError:
        raise ValueError(f"it is not valid JSON: write {_EXAMPLE}") from None
    if not isinstance(read, dict):
        raise ValueError(f"it is not a JSON object: write {_EXAMPLE}")
    return {name: _checked(name, command) for name, command in read.items()}


def check_commands(given: str) -> str:
    """Return a setting as it is. Raises as ``parse_commands``."""
    parse_commands(given)
    return given


def _checked(name: str, command: object) -> tuple[str, ...]:
    if not re.fullmatch(COMMAND_NAME, name):
        raise ValueError(f"the name {name!r} is not 1 to 64 letters, digits, `_` and `-`")
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise ValueError(f"the command {name} is not a list of texts, the program and its arguments: write {_EXAMPLE}")
    if not command[0].startswith("/"):
        raise ValueError(f"the program of the command {name} is no absolute path")
    if any("\x00" in part for part in command):
        raise ValueError(f"the command {name} has the character NUL")
    return tuple(command)
