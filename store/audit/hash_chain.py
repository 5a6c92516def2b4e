"""The audit log's hash chains: the canonical form of a row, and finding what was done to a chain. Reads no database.

    row 1               row 2               row 3                    head, kept elsewhere
    prev_hash 000…  ┌─▶ prev_hash ──┐   ┌─▶ prev_hash                seq 3
    hash ───────────┘   hash ───────┼───┘   hash ──────────────────▶ hash
                                    └─ of all other fields of row 1

Every tenant has a chain of its own, what belongs to nobody is in the chain ``system``. A row's hash is SHA-256, in hex,
of all its other fields as JSON with sorted keys, no spaces, in UTF-8 (docs/audit.md). In a chain ``seq`` counts from 1.

A chain alone tells a changed, removed or inserted row from what was written. Whoever cuts off its end, or writes all of
it anew from some row on, leaves a good chain: that is seen against a head that was taken earlier.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

SYSTEM = "system"
NOTHING_BEFORE = "0" * 64
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
    """Return the hash that a row must carry, in hex; "" for one that cannot be a row."""
    try:
        return hashlib.sha256(canonical({name: row.get(name) for name in FIELDS})).hexdigest()
    except (orjson.JSONEncodeError, TypeError):
        return ""


def chain_of(tenant_id: str | None) -> str:
    """Return the name of a tenant's chain."""
    return SYSTEM if tenant_id is None else tenant_id


class Problem(StrEnum):
    """What is wrong at one place of a chain."""

    CHANGED = "changed"  # its fields do not give its hash
    REPLACED = "replaced"  # a good row, but not the one that the next was chained to
    MISSING = "missing"
    INSERTED = "inserted"  # its place in the chain is another's
    REORDERED = "reordered"
    REWRITTEN = "rewritten"  # not the row that a head tells of
    CUT = "cut"  # a head tells of more rows than there are


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and where: ``id`` of the row, None where there is none; ``seq`` its place in the chain."""

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
    """Where a chain stood: its newest row's place and hash, and when that was looked up."""

    chain: str
    seq: int
    hash: str
    taken_at: str


@dataclass(frozen=True, slots=True)
class _Link:
    """A row as far as its neighbours and the head ask for it. ``is_whole``: its fields give its hash."""

    seq: int
    id: int | None
    prev_hash: object
    hash: object
    is_whole: bool


@dataclass(slots=True)
class _Hole:
    first: int
    last: int
    after_id: int | None
    before_id: int | None


# More rows than this that claim one place are reported as they come, not kept.
_MOST_RIVALS = 64


@dataclass(slots=True)
class _Chain:
    """One chain while it is read: what its last good place held, and what is not explained yet."""

    name: str
    heads: dict[int, Head]
    last: _Link = field(default_factory=lambda: _Link(0, None, None, NOTHING_BEFORE, is_whole=True))
    is_last_told: bool = False
    # Rows that claim the same place, until the one after them says whom it was chained to.
    rivals: list[_Link] = field(default_factory=list)
    holes: list[_Hole] = field(default_factory=list)
    # Rows that came before their turn.
    early: dict[int, _Link] = field(default_factory=dict)

    def feed(self, link: _Link) -> Iterator[Finding]:
        if self.rivals and self.rivals[0].seq != link.seq:
            yield from self._settle(link)
        if len(self.rivals) == _MOST_RIVALS:
            yield self._found(Problem.INSERTED, link, "many rows claim this place")
        else:
            self.rivals.append(link)

    def end(self) -> Iterator[Finding]:
        if self.rivals:
            yield from self._settle(None)
        if self.early:
            self.last = self.early[max(self.early)]
            self._skip_to(_Link(self.last.seq + 1, None, None, None, is_whole=True))
        for hole in self.holes:
            what = f"rows {hole.first} to {hole.last} are" if hole.last > hole.first else f"row {hole.first} is"
            where = f"between row {hole.after_id} and row {hole.before_id}" if hole.after_id else "at the beginning"
            yield Finding(Problem.MISSING, self.name, hole.first, None, f"{what} missing {where}")
        newest = max(self.heads, default=0)
        if newest > self.last.seq:
            what = f"rows {self.last.seq + 1} to {newest}" if newest > self.last.seq + 1 else f"row {newest}"
            since = f"the head taken at {self.heads[newest].taken_at}"
            yield Finding(Problem.CUT, self.name, self.last.seq + 1, None, f"{since} tells of {what}, no more there")

    def _settle(self, following: _Link | None) -> Iterator[Finding]:
        """Decide which of the rows at one place is the one, and put it into the chain."""
        genuine = self._genuine(following)
        for rival in self.rivals:
            if rival is not genuine:
                yield self._stranger(rival)
        self.rivals = []
        if genuine.seq == self.last.seq + 1:
            yield from self._next(genuine)
        elif genuine.seq > self.last.seq:
            yield from self._ahead(genuine, following)
        else:
            yield self._late(genuine)

    def _genuine(self, following: _Link | None) -> _Link:
        head = self.heads.get(self.rivals[0].seq)

        def likeness(link: _Link) -> tuple[bool, bool, bool, bool]:
            is_followed = following is not None and following.prev_hash == link.hash
            is_told_of = head is not None and head.hash == link.hash
            return is_told_of, is_followed, link.prev_hash == self.last.hash, link.is_whole

        return max(self.rivals, key=likeness)

    def _next(self, link: _Link) -> Iterator[Finding]:
        """Take the row whose turn it is."""
        if (forerunner := self.early.pop(link.seq, None)) is not None:
            yield self._stranger(forerunner)
        is_told = not link.is_whole
        if is_told:
            yield self._changed(link)
        elif link.prev_hash != self.last.hash and not self.is_last_told:
            is_told = self._is_vouched_for()
            yield (
                self._unlinked(self.last, link)
                if not is_told
                else self._found(Problem.REPLACED, link, f"it is not chained to row {self.last.id}, the one before it")
            )
        yield from self._advance(link, is_told=is_told)

    def _ahead(self, link: _Link, following: _Link | None) -> Iterator[Finding]:
        """Take a row that leaves places out: either they are missing, or it is the row that is out of its place."""
        is_confirmed = following is not None and following.prev_hash == link.hash
        has_overtaken = following is not None and self.last.seq < following.seq < link.seq
        if has_overtaken or not (link.is_whole or is_confirmed):
            if not link.is_whole:
                yield self._changed(link)
            else:
                self.early[link.seq] = link
                yield self._found(Problem.REORDERED, link, f"it comes right after place {self.last.seq}")
            return
        before = self._skip_to(link)
        if not link.is_whole:
            yield self._changed(link)
        elif before is not None and link.prev_hash != before.hash:
            yield self._unlinked(before, link)
        yield from self._advance(link, is_told=not link.is_whole)

    def _is_vouched_for(self) -> bool:
        """True if the last row is as a head says, or there is none before the first."""
        head = self.heads.get(self.last.seq)
        return self.last.seq == 0 or (head is not None and head.hash == self.last.hash)

    def _unlinked(self, before: _Link, link: _Link) -> Finding:
        why = f"row {link.id} after it was chained to another: it was written anew, or that one was inserted"
        return self._found(Problem.REPLACED, before, why)

    def _skip_to(self, link: _Link) -> _Link | None:
        """Note the places before the row that nobody held; return the row before it, if that came early."""
        first = self.last.seq + 1
        for seq in [*sorted(seq for seq in self.early if first <= seq < link.seq), link.seq]:
            if seq > first:
                self.holes.append(_Hole(first, seq - 1, self.last.id, link.id))
            first = seq + 1
        before = self.early.get(link.seq - 1)
        for seq in [seq for seq in self.early if seq < link.seq]:
            del self.early[seq]
        return before

    def _late(self, link: _Link) -> Finding:
        """Say of a row whose turn is over whether it was missed."""
        if link.is_whole:
            for position, hole in enumerate(self.holes):
                if hole.first <= link.seq <= hole.last:
                    rest = [
                        _Hole(hole.first, link.seq - 1, hole.after_id, link.id),
                        _Hole(link.seq + 1, hole.last, link.id, hole.before_id),
                    ]
                    self.holes[position : position + 1] = [part for part in rest if part.first <= part.last]
                    return self._found(Problem.REORDERED, link, f"it comes after place {self.last.seq}")
        return self._stranger(link)

    def _advance(self, link: _Link, *, is_told: bool) -> Iterator[Finding]:
        self.last, self.is_last_told = link, is_told
        head = self.heads.get(link.seq)
        if head is not None and head.hash != link.hash and not is_told:
            self.is_last_told = True
            since = f"the head taken at {head.taken_at}"
            yield self._found(Problem.REWRITTEN, link, f"{since} has another hash: it or a row before it is another")

    def _stranger(self, link: _Link) -> Finding:
        if not link.is_whole:
            return self._changed(link)
        return self._found(Problem.INSERTED, link, f"place {link.seq} is another row's")

    def _changed(self, link: _Link) -> Finding:
        return self._found(Problem.CHANGED, link, f"its fields do not give its hash (it claims place {link.seq})")

    def _found(self, problem: Problem, link: _Link, message: str) -> Finding:
        return Finding(problem, self.name, link.seq, link.id, message)


class Verifier:
    """Reads rows, of one chain or many, each chain in its order, and says what is wrong as soon as it is certain.

    Holds one row of each chain and what it could not explain, not the rows.
    """

    def __init__(self, heads: Iterable[Head] = ()) -> None:
        self.num_rows = 0
        self._heads: dict[str, dict[int, Head]] = {}
        self._chains: dict[str, _Chain] = {}
        for head in heads:
            self._heads.setdefault(head.chain, {})[head.seq] = head

    def feed(self, row: Row) -> Sequence[Finding]:
        """Take the next row; return what is wrong with it or with those before it."""
        self.num_rows += 1
        seq, row_id, tenant_id = row.get("seq"), row.get("id"), row.get("tenant_id")
        link = _Link(
            # What has no place claims none that a row can have.
            seq if isinstance(seq, int) else 0,
            row_id if isinstance(row_id, int) else None,
            row.get("prev_hash"),
            row.get("hash"),
            # A field more would be one that nothing vouches for.
            is_whole=len(row) == len(FIELDS) + 1 and row.get("hash") == row_hash(row),
        )
        name = chain_of(tenant_id if tenant_id is None else str(tenant_id))
        return list(self._chain(name).feed(link))

    def end(self) -> Iterator[Finding]:
        """Say what is wrong with the chains as a whole, once all rows were given."""
        for name in self._heads:
            self._chain(name)
        for chain in self._chains.values():
            yield from chain.end()

    @property
    def num_chains(self) -> int:
        """How many chains there were."""
        return len(self._chains)

    def _chain(self, name: str) -> _Chain:
        if name not in self._chains:
            self._chains[name] = _Chain(name, self._heads.get(name, {}))
        return self._chains[name]
