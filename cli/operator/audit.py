"""``headrace audit``: the audit log as JSON lines, its heads, and whether it is what was written.

Reads the database with DATABASE_URL, or that of the running stack; an exported file without any.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import orjson
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cli.operator.admin import database
from cli.render import JsonOption, err, show
from store.audit import export as audit_log
from store.audit.chain_heads import head_fields, read_heads
from store.audit.hash_chain import Head, Row, Verifier, canonical
from store.db.database import Database
from store.errors import InvalidRequest
from store.settings import load_settings
from store.tenants.api_keys import find_tenant

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The audit log: export, verify, head.")

Found = tuple[Row | None, int]

TenantOption = Annotated[
    str | None, typer.Option(help="Only this tenant's chain, by its name; `system`: what belongs to no tenant.")
]
_SYSTEM = "system"


@app.command("export")
def export(tenant: TenantOption = None) -> None:
    """Write the log to stdout, one row a line; `headrace audit verify FILE` reads it again."""
    db = database()
    try:
        for row in _rows(db, _chains(db, tenant)):
            sys.stdout.buffer.write(canonical(row) + b"\n")
        sys.stdout.flush()
    finally:
        db.close()


@app.command("head")
def head() -> None:
    """Print where each chain stands, one a line, to be kept where the database's owner cannot change it."""
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
        Path | None, typer.Option("--head", help="What `headrace audit head` printed, or a dispatcher's log.")
    ] = None,
    tenant: TenantOption = None,
    most: Annotated[int, typer.Option(help="Stop after this many findings.", min=1)] = 100,
    as_json: JsonOption = False,
) -> None:
    """Say whether the log is what was written: exit 0, or name each row that is not and exit 1."""
    heads = [] if head_file is None else _heads(head_file)
    report = _verify_database(heads, tenant, most) if file is None else _verify_file(file, heads, most)
    data = {"verified": report.is_good, "findings": report.findings, "summary": report.summary}
    show(data, "\n".join([*report.findings, report.summary]), as_json=as_json)
    if not report.is_good:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Report:
    """What is wrong, a sentence each, and a last one on the whole."""

    findings: list[str]
    summary: str
    is_good: bool


def _verify_database(heads: list[Head], tenant: str | None, most: int) -> _Report:
    db = database()
    try:
        guards = [
            f"the trigger {name} is gone or off: rows can be written that are not chained"
            for name in audit_log.missing_guards(db)
        ]
        # Before the rows: what is written meanwhile is more than they tell of, not less.
        ends, chains = audit_log.ends(db), _chains(db, tenant)
        if tenant is not None:
            names = {chain or _SYSTEM for chain in chains}
            heads, ends = ([one for one in some if one.chain in names] for some in (heads, ends))
        num_rows = sum(one.seq for one in audit_log.heads(db))
        found = ((row, number) for number, row in enumerate(_rows(db, chains), start=1))
        report = _verify(found, num_rows, heads, most, ends)
        return _Report([*guards, *report.findings], report.summary, report.is_good and not guards)
    finally:
        db.close()


def _verify_file(file: Path, heads: list[Head], most: int) -> _Report:
    with _open(file) as lines:
        return _verify(_parsed(lines), file.stat().st_size, heads, most)


def _verify(found: Iterable[Found], total: int, heads: list[Head], most: int, ends: Sequence[Head] = ()) -> _Report:
    """Read rows, each with how far it is of ``total``, and return what is wrong.

    ``heads`` were kept elsewhere, ``ends`` beside the rows.
    """
    verifier = Verifier([*ends, *heads])
    findings = list(islice(_findings(verifier, _shown(found, total)), most))
    if len(findings) == most:
        return _Report(findings, f"stopped after {most} findings: --most N shows more", is_good=False)
    if not verifier.num_rows and not findings:
        return _Report([], "there are no rows: nothing is verified", is_good=False)
    read = f"{verifier.num_rows} rows of {verifier.num_chains} chains"
    if findings:
        return _Report(findings, f"{read}: {len(findings)} findings", is_good=False)
    against = f"and agree with {len(heads)} heads" if heads else "(that no end is cut off, only a --head can tell)"
    return _Report([], f"{read} are as they were written {against}", is_good=True)


def _findings(verifier: Verifier, found: Iterable[Found]) -> Iterator[str]:
    for row, where in found:
        if row is None:
            yield f"the line that ends at byte {where} is not a JSON object, or says a field twice"
        else:
            yield from map(str, verifier.feed(row))
    yield from map(str, verifier.end())


def _shown(found: Iterable[Found], total: int) -> Iterator[Found]:
    """Yield what is found, and show on a terminal how far it is."""
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
    """Return the object that a line is, None if it is none or has a field twice, which others may read otherwise."""
    try:
        row = orjson.loads(line)
        if canonical(row) != line.rstrip():  # as we do not write it
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
