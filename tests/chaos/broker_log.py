"""What Redis's append-only file says of Celery's messages: which were taken and never noted as taken.

kombu takes a message (``BRPOP``, in the file ``RPOP``) and notes it as unacknowledged in a second step. A message whose
worker, or Redis, dies between the two is nowhere.
"""

import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MARK = b"chaos"
"""A key whose values are noted as they pass: what the test did at that point."""


@dataclass
class Message:
    """A message of the broker, by its delivery tag. ``mark``: the last mark before it was taken."""

    task: str
    args: list[Any]
    state: Literal["queued", "taken", "noted", "ended"] = "queued"
    mark: str = ""


def read_messages(folder: Path, database: int) -> list[Message]:
    """Return the messages of a database in the order of their first appearance; ``folder``: the server's data."""
    log = _BrokerLog()
    chosen = 0
    for command in _commands(folder):
        match command:
            case [b"SELECT", number]:
                chosen = int(number)
            case [b"SET", key, value, *_] if key == MARK:
                log.mark = value.decode()
            case [name, key, *arguments] if chosen == database:
                log.note(name, key, arguments)
    return list(log.messages.values())


class _BrokerLog:
    """The messages by their tags, and the lists that they wait in, as the commands leave them."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.mark = ""
        self._lists: dict[bytes, list[Message]] = {}

    def note(self, name: bytes, key: bytes, arguments: list[bytes]) -> None:
        """Follow a command."""
        waiting = self._lists.setdefault(key, [])
        if name in (b"LPUSH", b"RPUSH") and b'"task":' in arguments[0]:
            message = self._read(arguments[0])
            message.state = "queued"
            waiting.insert(0 if name == b"LPUSH" else len(waiting), message)
        elif name == b"RPOP" and waiting:
            message = waiting.pop()
            message.state, message.mark = "taken", self.mark
        elif key == b"unacked" and name in (b"HSET", b"HDEL"):
            for tag in arguments[:1] if name == b"HSET" else arguments:
                if found := self.messages.get(tag.decode()):
                    found.state = "noted" if name == b"HSET" else "ended"

    def _read(self, raw: bytes) -> Message:
        read = json.loads(raw)
        args = json.loads(b64decode(read["body"]))[0]
        return self.messages.setdefault(read["properties"]["delivery_tag"], Message(read["headers"]["task"], args))


def _commands(folder: Path) -> Iterator[list[bytes]]:
    """The commands of the file, as far as it is whole."""
    for path in sorted(folder.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3])):
        with path.open("rb") as file:
            while line := file.readline():
                if not line.startswith(b"*"):
                    continue  # the time
                parts = []
                for _ in range(int(line[1:])):
                    length = int(file.readline()[1:])
                    parts.append(file.read(length + 2)[:-2])
                yield [parts[0].upper(), *parts[1:]]
