"""The audit log's hash chains: the canonical form of a row, and a verifier of chains. Reads no database.

    row 1               row 2               row 3                    head, kept elsewhere
    prev_hash 000…  ┌─▶ prev_hash ──┐   ┌─▶ prev_hash                seq 3
    hash ───────────┘   hash ───────┼───┘   hash ──────────────────▶ hash
                                    └─ of all other fields of row 2

Every tenant has its own chain; rows without a tenant are in the chain ``system``. A row's hash is SHA-256, in hex, of
all its other fields as JSON with sorted keys, no spaces, in UTF-8 (docs/audit.md). In a chain ``seq`` counts from 1.

The verifier reports the first broken link of each chain. A chain alone shows changed, removed and inserted rows. It
cannot show that its end was cut off, or that all rows from some row on were rewritten with good hashes: this is found
by a head that was taken earlier.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

SYSTEM = "system"
NO_PREVIOUS_HASH = "0" * 64
FIELDS = (
    "action",
    "actor",
    "address",
    "after_hash",
    "at",
    "before_hash",
    "detail",
    "id",
    "prev_hash",
    "request_id",
    "resource",
    "seq",
    "tenant_id",
    "version",
)

Row = Mapping[str, Any]


def canonical(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces, in UTF-8."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def row_hash(row: Row) -> str:
    """Return the hash that a row must carry, in hex; "" for an object that cannot be a row."""
    try:
        return hashlib.sha256(canonical({name: row.get(name) for name in FIELDS})).hexdigest()
    except (orjson.JSONEncodeError, TypeError):
        return ""


def chain_of(tenant_id: str | None) -> str:
    """Return the name of a tenant's chain."""
    return SYSTEM if tenant_id is None else tenant_id


class Problem(StrEnum):
    """The reason why a link of a chain is broken."""

    CHANGED = "changed"  # the row's fields do not give its hash
    MISSING = "missing"  # the row's place is not the next one
    REORDERED = "reordered"  # the row's place is already taken: it was inserted or moved
    REPLACED = "replaced"  # the row's prev_hash is not the hash of the row before it
    REWRITTEN = "rewritten"  # a head has another hash for this row
    CUT = "cut"  # a head has a higher place than the last row


@dataclass(frozen=True, slots=True)
class Finding:
    """The first broken link of a chain: ``seq`` is the place, ``id`` the row, or None if no row is there."""

    problem: Problem
    chain: str
    seq: int
    id: int | None
    message: str

    def __str__(self) -> str:
        where = f"row {self.id}" if self.id is not None else f"place {self.seq}"
        return f"{self.chain}: {where}: {self.problem}: {self.message}"


@dataclass(frozen=True, slots=True)
class Head:
    """The place and hash of a chain's newest row, and the time at which they were read."""

    chain: str
    seq: int
    hash: str
    taken_at: str


@dataclass(slots=True)
class _Chain:
    """One chain while it is read: its last row, and whether a broken link was found. Heads by place."""

    name: str
    heads: dict[int, Head]
    seq: int = 0
    id: object = None
    hash: object = NO_PREVIOUS_HASH
    is_broken: bool = False

    def check(self, row: Row) -> Finding | None:
        """Check the next row, and return the chain's first broken link."""
        if self.is_broken:
            return None
        found = self._first_problem(row)
        if found is not None:
            self.is_broken = True
            problem, message = found
            row_id = row.get("id")
            return Finding(problem, self.name, _place(row), row_id if isinstance(row_id, int) else None, message)
        self.seq, self.id, self.hash = _place(row), row["id"], row["hash"]
        return None

    def _first_problem(self, row: Row) -> tuple[Problem, str] | None:
        seq, expected = _place(row), self.seq + 1
        # The hash does not cover an additional field, so there must be none.
        if len(row) != len(FIELDS) + 1 or row.get("hash") != row_hash(row):
            return Problem.CHANGED, f"its fields do not give its hash (its place is {seq})"
        if seq > expected:
            places = f"place {expected}" if seq == expected + 1 else f"places {expected} to {seq - 1}"
            return Problem.MISSING, f"{places} is not between {self._last()} and this row"
        if seq < expected:
            return Problem.REORDERED, f"place {seq} comes after place {self.seq}: the row was moved or inserted"
        if row["prev_hash"] != self.hash:
            return Problem.REPLACED, f"it is not linked to {self._last()}: one of them was replaced"
        head = self.heads.get(seq)
        if head is not None and head.hash != row["hash"]:
            return Problem.REWRITTEN, f"the head of {head.taken_at} has another hash: this row or one before is new"
        return None

    def check_end(self) -> Finding | None:
        """Return a finding if a head has a higher place than the last row."""
        newest = max(self.heads, default=0)
        if self.is_broken or newest <= self.seq:
            return None
        message = f"the head of {self.heads[newest].taken_at} has place {newest}; the chain ends at place {self.seq}"
        return Finding(Problem.CUT, self.name, self.seq + 1, None, message)

    def _last(self) -> str:
        return f"row {self.id}" if self.seq else "the beginning"


def _place(row: Row) -> int:
    seq = row.get("seq")
    return seq if isinstance(seq, int) else 0


class Verifier:
    """Checks rows of one chain or of many, each chain in its order. Keeps one row of each chain in memory."""

    def __init__(self, heads: Iterable[Head] = ()) -> None:
        self.num_rows = 0
        self._chains: dict[str, _Chain] = {}
        for head in heads:
            self._chain(head.chain).heads[head.seq] = head

    def check(self, row: Row) -> Finding | None:
        """Check the next row. Return the first broken link of its chain; later rows of that chain are only counted."""
        self.num_rows += 1
        tenant_id = row.get("tenant_id")
        return self._chain(chain_of(tenant_id if tenant_id is None else str(tenant_id))).check(row)

    def check_ends(self) -> Iterator[Finding]:
        """Yield a finding for each chain that was cut off at its end. Call it after the last row."""
        for chain in self._chains.values():
            if (finding := chain.check_end()) is not None:
                yield finding

    @property
    def num_chains(self) -> int:
        """Number of chains of the rows and the heads."""
        return len(self._chains)

    def _chain(self, name: str) -> _Chain:
        if name not in self._chains:
            self._chains[name] = _Chain(name, {})
        return self._chains[name]
