"""``headrace audit``: export the audit log as JSON lines, print its heads, and verify its hash chains.

Reads the database of DATABASE_URL, or of the running local stack. An exported file is verified without a database.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import orjson
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from headrace.cli.operator.admin import database
from headrace.cli.render import JsonOption, err, show
from headrace.features.audit import export as audit_log
from headrace.features.audit.chain_heads import head_fields, read_heads
from headrace.features.audit.hash_chain import Head, Row, Verifier, canonical
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.settings import load_settings
from headrace.store.tenants.api_keys import find_tenant

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The audit log: export, verify, head.")

# A row, or None for a line that is no row, and its position: rows or bytes from the start.
Found = tuple[Row | None, int]

TenantOption = Annotated[
    str | None, typer.Option(help="Only this tenant's chain, by its name; `system`: entries without a tenant.")
]
_SYSTEM = "system"


@app.command("export")
def export(tenant: TenantOption = None) -> None:
    """Write the log to stdout, one row per line; `headrace audit verify FILE` verifies it."""
    db = database()
    try:
        for row in _rows(db, _chains(db, tenant)):
            sys.stdout.buffer.write(canonical(row) + b"\n")
        sys.stdout.flush()
    finally:
        db.close()


@app.command("head")
def head() -> None:
    """Print the head of each chain, one per line. Keep them where the database's owner cannot change them."""
    key = load_settings().audit_head_key
    db = database()
    try:
        for found in audit_log.heads(db):
            sys.stdout.buffer.write(canonical(head_fields(found, key)) + b"\n")
        sys.stdout.flush()
    finally:
        db.close()


@app.command("verify")
def verify(
    file: Annotated[Path | None, typer.Argument(help="An exported log; default: the database's.")] = None,
    head_file: Annotated[
        Path | None, typer.Option("--head", help="The output of `headrace audit head`, or a dispatcher's log.")
    ] = None,
    tenant: TenantOption = None,
    most: Annotated[int, typer.Option(help="Stop after this number of findings.", min=1)] = 100,
    as_json: JsonOption = False,
) -> None:
    """Verify the log: exit 0 if it is unchanged, else print the first broken link of each chain and exit 1."""
    heads = [] if head_file is None else _heads(head_file)
    report = _verify_database(heads, tenant, most) if file is None else _verify_file(file, heads, most)
    data = {"verified": report.is_good, "findings": report.findings, "summary": report.summary}
    show(data, "\n".join([*report.findings, report.summary]), as_json=as_json)
    if not report.is_good:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Report:
    """The findings, one sentence each, and a summary."""

    findings: list[str]
    summary: str
    is_good: bool


def _verify_database(heads: list[Head], tenant: str | None, most: int) -> _Report:
    db = database()
    try:
        guards = [
            f"the trigger {name} is gone or off: the log is not protected" for name in audit_log.missing_guards(db)
        ]
        # Read the heads before the rows: a row that is written meanwhile only makes its chain longer.
        recorded, chains = audit_log.recorded_heads(db), _chains(db, tenant)
        if tenant is not None:
            names = {chain or _SYSTEM for chain in chains}
            heads, recorded = ([one for one in some if one.chain in names] for some in (heads, recorded))
        num_rows = sum(one.seq for one in audit_log.heads(db))
        found = ((row, number) for number, row in enumerate(_rows(db, chains), start=1))
        report = _verify(found, num_rows, heads, most, recorded)
        return _Report([*guards, *report.findings], report.summary, report.is_good and not guards)
    finally:
        db.close()


def _verify_file(file: Path, heads: list[Head], most: int) -> _Report:
    with _open(file) as lines:
        return _verify(_parsed(lines), file.stat().st_size, heads, most)


def _verify(found: Iterable[Found], total: int, heads: list[Head], most: int, recorded: Iterable[Head] = ()) -> _Report:
    """Verify rows, of which the last has the position ``total``.

    ``heads`` were kept elsewhere; ``recorded`` are those of the database.
    """
    verifier = Verifier([*recorded, *heads])
    findings = list(islice(_findings(verifier, _shown(found, total)), most))
    if len(findings) == most:
        return _Report(findings, f"stopped after {most} findings: --most N shows more", is_good=False)
    if not verifier.num_rows and not findings:
        return _Report([], "there are no rows: nothing is verified", is_good=False)
    read = f"{verifier.num_rows} rows of {verifier.num_chains} chains"
    if findings:
        return _Report(findings, f"{read}: {len(findings)} findings", is_good=False)
    against = f"and agree with {len(heads)} heads" if heads else "(only a --head can show that no end is cut off)"
    return _Report([], f"{read} are as they were written {against}", is_good=True)


def _findings(verifier: Verifier, found: Iterable[Found]) -> Iterator[str]:
    for row, where in found:
        if row is None:
            yield f"the line that ends at byte {where} is not a JSON object, or has a field twice"
        elif (finding := verifier.check(row)) is not None:
            yield str(finding)
    yield from map(str, verifier.check_ends())


def _shown(found: Iterable[Found], total: int) -> Iterator[Found]:
    """Yield the rows, and show a progress bar on a terminal."""
    columns = (TextColumn("verifying"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for number, one in enumerate(found):
            if number % 1000 == 0:
                progress.update(task, completed=one[1])
            yield one


def _parsed(lines: BinaryIO) -> Iterator[Found]:
    num_bytes = 0
    for line in lines:
        num_bytes += len(line)
        yield _row(line), num_bytes


def _row(line: bytes) -> Row | None:
    """Return the line's JSON object; None if it is no object, or has a field twice and so is ambiguous."""
    try:
        row = orjson.loads(line)
        if canonical(row) != line.rstrip():  # an export of Headrace is always canonical
            json.loads(line, object_pairs_hook=_check_names)
    except (ValueError, TypeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _check_names(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field twice")


def _rows(db: Database, chains: Iterable[str | None]) -> Iterator[Row]:
    for chain in chains:
        yield from audit_log.rows(db, chain)


def _chains(db: Database, tenant: str | None) -> list[str | None]:
    if tenant is None:
        return list(audit_log.chains(db))
    return [None if tenant == _SYSTEM else find_tenant(db, tenant)]


def _heads(file: Path) -> list[Head]:
    with _open(file) as lines:
        return read_heads(lines, load_settings().audit_head_key)


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    try:
        with file.open("rb") as lines:
            yield lines
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from None
