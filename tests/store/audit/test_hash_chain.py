"""Whatever is done to a chain is found and named. ``write`` is the canonical form once more, by the standard one."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.audit.hash_chain import Finding, Head, Problem, Verifier

Row = dict[str, Any]


def rehash(row: Row) -> Row:
    fields = {name: value for name, value in row.items() if name != "hash"}
    said = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return fields | {"hash": hashlib.sha256(said).hexdigest()}


def write(details: Iterable[Any], tenant_id: str | None = "ten_1", first_id: int = 1) -> list[Row]:
    """A chain, one row for each detail; ids have gaps."""
    rows: list[Row] = []
    for number, detail in enumerate(details):
        row = {
            "id": first_id + 3 * number,
            "tenant_id": tenant_id,
            "seq": number + 1,
            "version": 1,
            "at": f"2026-11-25T20:00:{number:02}.000001Z",
            "actor": "key_1",
            "action": "queue.paused",
            "resource": "tiny@1",
            "detail": detail,
            "before_hash": None,
            "after_hash": "0" * 64,
            "request_id": "req_1",
            "address": "::1",
            "prev_hash": rows[-1]["hash"] if rows else "0" * 64,
        }
        rows.append(rehash(row))
    return rows


def head_of(rows: list[Row]) -> Head:
    return Head(rows[-1]["tenant_id"] or "system", rows[-1]["seq"], rows[-1]["hash"], "2026-11-25T21:00:00Z")


def verify(rows: Iterable[Row], *heads: Head) -> list[Finding]:
    verifier = Verifier(heads)
    found = [finding for row in rows for finding in verifier.feed(row)]
    return [*found, *verifier.end()]


def told(findings: list[Finding]) -> list[tuple[Problem, int, int | None]]:
    return [(finding.problem, finding.seq, finding.id) for finding in findings]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15) + 1, 10**15 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
CHAINS = st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), min_size=2, max_size=9).map(write)


@settings(max_examples=40)
@given(CHAINS)
def test_what_was_written_is_good_beside_another_chain(rows: list[Row]) -> None:
    other = write([{}] * 3, tenant_id=None, first_id=2)
    mixed = [row for pair in zip(rows, other, strict=False) for row in pair]
    mixed += rows[len(other) :] + other[len(rows) :]
    assert verify(mixed, head_of(rows), head_of(other)) == []


CHANGES: dict[str, Callable[[Any], Any]] = {
    "actor": lambda value: value + "x",
    "detail": lambda value: value | {"more": 1},
    "at": lambda value: value.replace("20:", "19:"),
    "address": lambda _: None,
    "before_hash": lambda _: "1" * 64,
    "id": lambda value: value + 1,
    "seq": lambda value: value + 100,
    "version": lambda value: value + 1,
    "prev_hash": lambda _: "1" * 64,
    "hash": lambda _: "1" * 64,
    "tenant_id": lambda _: "ten_2",
}


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_a_changed_field_is_found_in_its_row(rows: list[Row], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(sorted(CHANGES)))
    row, head = rows[position], head_of(rows)
    changed = row | {name: CHANGES[name](row[name])}
    forged = sorted([*rows[:position], changed, *rows[position + 1 :]], key=lambda one: one["seq"])
    findings = verify(forged, head)
    assert (Problem.CHANGED, changed["seq"], changed["id"]) in told(findings)
    # Where it was nobody is now, which is said too.
    assert len(findings) == (2 if name in ("seq", "tenant_id") else 1)


def test_a_field_that_no_hash_vouches_for_is_found() -> None:
    rows = write([{}, {}, {}])
    forged = [rows[0], rows[1] | {"approved_by": "nobody"}, rows[2]]
    assert told(verify(forged, head_of(rows))) == [(Problem.CHANGED, 2, rows[1]["id"])]


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_a_row_that_was_written_anew_is_found_with_its_hash_made_right(rows: list[Row], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    head, forged = head_of(rows), rehash(rows[position] | {"actor": "nobody"})
    (finding,) = verify([*rows[:position], forged, *rows[position + 1 :]], head)
    is_last = position == len(rows) - 1
    assert finding.problem is (Problem.REWRITTEN if is_last else Problem.REPLACED)
    assert (finding.seq, finding.id) == (forged["seq"], forged["id"])


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_removed_rows_are_named_by_their_places_and_neighbours(rows: list[Row], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(rows) - 1))
    last = data.draw(st.integers(first, len(rows) - 1))
    (finding,) = verify([*rows[:first], *rows[last + 1 :]], head_of(rows))
    is_tail = last == len(rows) - 1
    assert (finding.problem, finding.seq) == (Problem.CUT if is_tail else Problem.MISSING, first + 1)
    if is_tail:
        assert verify(rows[:first]) == [], "without the head nobody can know"
    elif first:
        assert f"row {rows[first - 1]['id']} and row {rows[last + 1]['id']}" in finding.message


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_an_inserted_row_is_named_wherever_it_stands(rows: list[Row], data: st.DataObject) -> None:
    claimed = data.draw(st.integers(0, len(rows) - 1))
    stands = data.draw(st.integers(0, len(rows)))
    guess = data.draw(st.sampled_from([rows[claimed]["prev_hash"], "7" * 64]))
    forged = rehash(rows[claimed] | {"id": 1000, "actor": "nobody", "prev_hash": guess})
    findings = verify([*rows[:stands], forged, *rows[stands:]], head_of(rows))
    assert 1000 in [finding.id for finding in findings]
    assert {finding.id for finding in findings} == {1000}


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_rows_in_another_order_are_named(rows: list[Row], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(rows) - 2))
    second = data.draw(st.integers(first + 1, len(rows) - 1))
    swapped, moved = [*rows], [*rows]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    moved.insert(second, moved.pop(first))
    for lines in (swapped, moved):
        findings = verify(lines, head_of(rows))
        assert {finding.problem for finding in findings} == {Problem.REORDERED}
        # Of three rows in reverse any one may be said to have stayed where it was.
        ids = {finding.id for finding in findings}
        near = {row["id"] for row in rows[first : second + 1]}
        assert ids & {rows[first]["id"], rows[second]["id"]}
        assert ids <= (near if second - first < 3 else {rows[first]["id"], rows[second]["id"]})
    # In the table, where a place is a number, each has the other's.
    traded = [*rows]
    traded[first] = rows[second] | {"seq": first + 1}
    traded[second] = rows[first] | {"seq": second + 1}
    findings = verify(traded, head_of(rows))
    assert {finding.id for finding in findings} == {rows[first]["id"], rows[second]["id"]}


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_a_chain_that_was_written_anew_is_seen_against_the_head_alone(rows: list[Row], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    forged = rows[:start]
    for row in rows[start:]:
        forged = [*forged, rehash(row | {"actor": "n", "prev_hash": forged[-1]["hash"] if forged else "0" * 64})]
    assert verify(forged) == []
    (finding,) = verify(forged, head_of(rows))
    assert (finding.problem, finding.id) == (Problem.REWRITTEN, rows[-1]["id"])
    if start:
        assert told(verify(forged, head_of(rows), head_of(rows[:start]))) == told([finding])


@pytest.mark.parametrize(
    "row",
    [{}, {"seq": None, "id": "x"}, {"hash": 1, "seq": 10**30}, {"detail": {"n": 10**30}}, {"tenant_id": 5, "seq": 1.0}],
)
def test_what_is_no_row_is_found_too(row: Row) -> None:
    assert {finding.problem for finding in verify([row])} == {Problem.CHANGED}
