"""Every kind of tampering breaks the chain, and the first broken link is reported.

``rehash`` computes the canonical form with the standard library."""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.audit.chain_heads import head_fields, read_heads
from headrace.features.audit.hash_chain import Finding, Head, Problem, Verifier, canonical
from headrace.store.errors import InvalidRequest

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
    found = [finding for row in rows if (finding := verifier.check(row)) is not None]
    return [*found, *verifier.check_ends()]


def places(findings: list[Finding]) -> list[tuple[Problem, int, int | None]]:
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
def test_a_changed_field_is_found_at_its_row(rows: list[Row], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(sorted(CHANGES)))
    row, head = rows[position], head_of(rows)
    changed = row | {name: CHANGES[name](row[name])}
    forged = sorted([*rows[:position], changed, *rows[position + 1 :]], key=lambda one: one["seq"])
    findings = verify(forged, head)
    if name == "seq":  # the row is the last one now, so that its old place is missing unless it was the last one
        (finding,) = findings
        is_last = position == len(rows) - 1
        assert (finding.problem, finding.seq) == (
            (Problem.CHANGED, changed["seq"]) if is_last else (Problem.MISSING, rows[position + 1]["seq"])
        )
        return
    assert (Problem.CHANGED, changed["seq"], changed["id"]) in places(findings)
    # A row that was moved to another tenant breaks both chains.
    assert [finding.chain for finding in findings] == (["ten_2", "ten_1"] if name == "tenant_id" else ["ten_1"])


def test_a_field_that_no_hash_covers_is_found() -> None:
    rows = write([{}, {}, {}])
    forged = [rows[0], rows[1] | {"approved_by": "nobody"}, rows[2]]
    assert places(verify(forged, head_of(rows))) == [(Problem.CHANGED, 2, rows[1]["id"])]


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_a_replaced_row_with_a_good_hash_is_found(rows: list[Row], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    head, forged = head_of(rows), rehash(rows[position] | {"actor": "nobody"})
    (finding,) = verify([*rows[:position], forged, *rows[position + 1 :]], head)
    if position == len(rows) - 1:
        assert (finding.problem, finding.id) == (Problem.REWRITTEN, forged["id"])
    else:
        assert (finding.problem, finding.id) == (Problem.REPLACED, rows[position + 1]["id"])
        assert f"row {forged['id']}" in finding.message


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_removed_rows_are_named_by_their_places_and_neighbours(rows: list[Row], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(rows) - 1))
    last = data.draw(st.integers(first, len(rows) - 1))
    (finding,) = verify([*rows[:first], *rows[last + 1 :]], head_of(rows))
    is_tail = last == len(rows) - 1
    if is_tail:
        assert (finding.problem, finding.seq) == (Problem.CUT, first + 1)
        assert verify(rows[:first]) == [], "only a head can show it"
    else:
        assert (finding.problem, finding.id) == (Problem.MISSING, rows[last + 1]["id"])
        assert f"place {first + 1} " in finding.message or f"places {first + 1} to {last + 1} " in finding.message
        assert first == 0 or f"row {rows[first - 1]['id']}" in finding.message


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_an_inserted_row_is_found_at_every_position(rows: list[Row], data: st.DataObject) -> None:
    claimed = data.draw(st.integers(0, len(rows) - 1))
    stands = data.draw(st.integers(0, len(rows)))
    guess = data.draw(st.sampled_from([rows[claimed]["prev_hash"], "7" * 64]))
    forged = rehash(rows[claimed] | {"id": 1000, "actor": "nobody", "prev_hash": guess})
    lines = [*rows[:stands], forged, *rows[stands:]]
    (finding,) = verify(lines, head_of(rows))
    # The first broken link is that of the inserted row or, if it could be the genuine one, that of the row after it.
    assert finding.id in [row["id"] for row in lines[stands : stands + 2]]


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_rows_in_another_order_are_found(rows: list[Row], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(rows) - 2))
    second = data.draw(st.integers(first + 1, len(rows) - 1))
    swapped, moved = [*rows], [*rows]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    moved.insert(second, moved.pop(first))
    for lines in (swapped, moved):
        (finding,) = verify(lines, head_of(rows))
        assert (finding.problem, finding.id) == (Problem.MISSING, lines[first]["id"])
    late = [*rows, rows[first]]
    (finding,) = verify(late, head_of(rows))
    assert (finding.problem, finding.id) == (Problem.REORDERED, rows[first]["id"])
    # In the table the place is a column: each of the two rows has the other's place.
    traded = [*rows]
    traded[first] = rows[second] | {"seq": first + 1}
    traded[second] = rows[first] | {"seq": second + 1}
    assert places(verify(traded, head_of(rows))) == [(Problem.CHANGED, first + 1, rows[second]["id"])]


@settings(max_examples=40)
@given(CHAINS, st.data())
def test_a_rewritten_chain_is_found_only_by_a_head(rows: list[Row], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    forged = rows[:start]
    for row in rows[start:]:
        forged = [*forged, rehash(row | {"actor": "n", "prev_hash": forged[-1]["hash"] if forged else "0" * 64})]
    assert verify(forged) == []
    (finding,) = verify(forged, head_of(rows))
    assert (finding.problem, finding.id) == (Problem.REWRITTEN, rows[-1]["id"])
    if start:
        assert places(verify(forged, head_of(rows), head_of(rows[:start]))) == places([finding])


@pytest.mark.parametrize(
    "row",
    [{}, {"seq": None, "id": "x"}, {"hash": 1, "seq": 10**30}, {"detail": {"n": 10**30}}, {"tenant_id": 5, "seq": 1.0}],
)
def test_an_object_that_is_no_row_is_found(row: Row) -> None:
    assert {finding.problem for finding in verify([row])} == {Problem.CHANGED}


def test_a_finding_says_where_and_why() -> None:
    rows = write([{}, {}, {}, {}])
    head = head_of(rows)
    forged = rehash(rows[1] | {"actor": "nobody"})
    said = {
        r"row 4: changed: .* 2\b": [rows[0], rows[1] | {"actor": "x"}],
        r"row 7: missing: place 2 .*row 1\b": [rows[0], *rows[2:]],
        r"row 10: missing: places 1 to 3\b": [rows[3]],
        r"row 1: reordered: place 1 .*place 4\b": [*rows, rows[0]],
        r"row 7: replaced: .*row 4\b": [rows[0], forged, *rows[2:]],
    }
    for named, lines in said.items():
        assert re.match(f"ten_1: {named}", str(verify(lines, head)[0]))
    other = Head("ten_1", 4, "1" * 64, "2026-11-25T21:00:00Z")
    (rewritten,), (cut,) = verify(rows, other), verify(rows[:2], head)
    assert re.match("ten_1: row 10: rewritten: .*2026-11-25T21:00:00Z", str(rewritten))
    assert re.match("ten_1: place 3: cut: .*2026-11-25T21:00:00Z .*place 4.* place 2", str(cut))
    verifier = Verifier([Head("ten_2", 1, "x", "t")])
    assert [verifier.check(row) for row in rows] == [None] * 4
    assert (verifier.num_rows, verifier.num_chains) == (4, 2)


def test_heads_are_signed_and_read_line_by_line() -> None:
    head = Head("ten_1", 3, "a" * 64, "2026-11-25T21:00:00Z")
    fields = {"chain": "ten_1", "seq": 3, "hash": "a" * 64, "taken_at": "2026-11-25T21:00:00Z"}
    signature = hmac.new(b"key", canonical(fields), hashlib.sha256).hexdigest()
    assert head_fields(head) == fields
    assert head_fields(head, "key") == fields | {"signature": signature}
    signed, plain = (
        json.dumps(one).encode() for one in (fields | {"signature": signature, "event": "audit_head"}, fields)
    )
    assert read_heads([b"", b'{"event": "job.ended"}', signed, b"  "], "key") == [head]
    assert read_heads([plain, signed]) == [head, head]
    for line, said in (
        (b"no", "line 2 .*JSON object"),
        (b"[1]", "line 2 .*JSON object"),
        (plain.replace(b"3", b"0", 1), "line 2 .*chain, seq, hash and taken_at"),
        (b'{"chain": "ten_1", "seq": 1, "hash": "a"}', "line 2 .*chain, seq, hash and taken_at"),
        (plain, "line 2 .*ten_1, .*HEADRACE_AUDIT_HEAD_KEY"),
    ):
        with pytest.raises(InvalidRequest, match=said) as refused:
            read_heads([signed, line], "key")
        assert refused.value.param == "head"


def test_the_newest_of_several_heads_shows_where_the_end_was_cut_off() -> None:
    rows = write([{}] * 5)
    heads = [head_of(rows[:4]), head_of(rows[:1]), head_of(rows[:3])]
    assert places(verify(rows[:2], *heads)) == [(Problem.CUT, 3, None)]
    assert verify(rows[:4], *heads) == []
