"""Heads of the audit chains in files outside the database: one line of JSON each, signed if there is a key.

A dispatcher also logs each head that has changed, so its log can be read too. Reads no database.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson

from headrace.features.audit.hash_chain import Head, canonical
from headrace.store.errors import InvalidRequest

EVENT = "audit_head"


def head_fields(head: Head, key: str = "") -> dict[str, Any]:
    """Return a head's fields, with ``signature``, HMAC-SHA256 in hex of the others as canonical JSON, if there is a
    key."""
    fields = asdict(head)
    return fields | {"signature": _signature(head, key)} if key else fields


def read_heads(lines: Iterable[bytes], key: str = "") -> list[Head]:
    """Return the heads in the lines; other events of a log are skipped.

    Raises InvalidRequest, which names the line, for a line that is no head, or is not signed with the key.
    """
    heads = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            fields = _fields(line, number)
            if fields.get("event", EVENT) == EVENT:
                heads.append(_head(fields, number, key))
    return heads


def _fields(line: bytes, number: int) -> dict[str, Any]:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"line {number} of the heads is not a JSON object", param="head")
    return fields


def _head(fields: dict[str, Any], number: int, key: str) -> Head:
    chain, seq, digest, taken_at = (fields.get(name) for name in ("chain", "seq", "hash", "taken_at"))
    is_good = isinstance(chain, str) and isinstance(digest, str) and isinstance(taken_at, str)
    if not is_good or not isinstance(seq, int) or seq < 1:
        raise InvalidRequest(f"line {number} of the heads has no chain, seq, hash and taken_at", param="head")
    head = Head(str(chain), seq, str(digest), str(taken_at))
    if key and not hmac.compare_digest(str(fields.get("signature")).encode(), _signature(head, key).encode()):
        raise InvalidRequest(
            f"line {number} of the heads, of the chain {head.chain}, is not signed with HEADRACE_AUDIT_HEAD_KEY: "
            "it was changed, or another key signed it",
            param="head",
        )
    return head


def _signature(head: Head, key: str) -> str:
    return hmac.new(key.encode(), canonical(asdict(head)), hashlib.sha256).hexdigest()
