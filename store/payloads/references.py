"""References of a step's input: ``{"$from": "classify.output.label"}`` stands for a value of the job's input or of an
earlier step's output.

    input.question                          of the job's ``input``
    classify.output.classifications.0.0     of the output of the step ``classify``; a number is a place in a list

A reference stands where a text may stand. A value that is no text is written as JSON. There is no other syntax: nothing
of a value is read again as a reference.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from headrace.store.errors import InvalidRequest

MARK: Final = "$from"
OF_INPUT: Final = "input"
MAX_PATH_CHARS: Final = 300
MAX_FILLED_CHARS: Final = 1 << 20
"""Of all values that the references of one step stand for, unless the API's bound of a body is another."""

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}(\.[A-Za-z0-9_-]{1,64}){0,15}")


def references(value: Any) -> Iterator[str]:
    """Yield the path of each reference in a JSON value. Raises InvalidRequest for one that is malformed."""
    if isinstance(value, Mapping):
        if MARK in value:
            yield _path_of(value)
            return
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from references(item)


def replaced(value: Any, by: Callable[[str], Any]) -> Any:
    """Return a JSON value with what ``by`` returns for the path of each reference."""
    if isinstance(value, Mapping):
        if MARK in value:
            return by(_path_of(value))
        return {name: replaced(item, by) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(item, by) for item in value]
    return value


def _path_of(value: Mapping[str, Any]) -> str:
    path = value[MARK]
    if len(value) > 1 or not isinstance(path, str) or len(path) > MAX_PATH_CHARS or _PATH.fullmatch(path) is None:
        raise InvalidRequest(
            f'a reference is {{"{MARK}": "step.output.field"}} or {{"{MARK}": "input.field"}}, with names and numbers '
            "between dots and no other field"
        )
    return path


def step_of(path: str) -> str | None:
    """Return the step that a path refers to; None for the job's input. Raises InvalidRequest for another part of it."""
    first, *rest = path.split(".")
    if first == OF_INPUT:
        return None
    if not rest or rest[0] != "output":
        raise InvalidRequest(f"`{path}` is no reference: after the step comes `output`, as in `{first}.output.text`")
    return first


def look_up(value: Any, path: str) -> str:
    """Return what a path names in ``value``, as text. Raises InvalidRequest if there is nothing."""
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise InvalidRequest(f"there is no `{path}`: `{part}` was not found")
    if value is None:
        raise InvalidRequest(f"there is no `{path}`: it is null")
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def look_up_all(value: Any, paths: Iterable[str], most_chars: int = MAX_FILLED_CHARS) -> dict[str, str]:
    """Return what each of the paths names in ``value``, as text. A path stands in ``paths`` as often as it is referred
    to.

    Raises InvalidRequest as ``look_up``, and if the texts, each as often as it is referred to, have more characters
    together than ``most_chars``. Nothing is copied before that is known: one value may be referred to thousands of
    times.
    """
    texts: dict[str, str] = {}
    num_chars = 0
    for path, times in Counter(paths).items():
        texts[path] = look_up(value, path)
        num_chars += len(texts[path]) * times
        if num_chars > most_chars:
            raise InvalidRequest(
                f"its references stand for more than {most_chars} characters together: refer to less or fewer times",
                param="input",
            )
    return texts
