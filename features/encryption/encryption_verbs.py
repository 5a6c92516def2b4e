"""``headrace encryption``: create master keys, list the keys in use, and re-encrypt with the newest key.

Needs the database, the blob storage and the keys of the processes; Redis only to count streams.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.progress import Progress, TextColumn

from headrace.cli.groups import noun
from headrace.cli.operator.admin import database, located
from headrace.cli.render import JsonOption, err, show
from headrace.features.encryption import master_keys, reencryption
from headrace.features.encryption.master_key_check import forget_key
from headrace.features.encryption.reencryption import PLAIN, TARGETS
from headrace.features.encryption.vault import Vault
from headrace.features.files.blob_storage import Blobs, open_blobs
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen, InvalidRequest, Unavailable
from headrace.store.redis.connection import connect
from headrace.store.settings import load_settings

app = noun("Master keys: see which are needed, make one, seal under the newest.")

_ROWS = 100
_FILES, _STREAMS = "files", "streams in Redis"
_ERRORS_SHOWN = 5


@dataclass
class _Seen:
    """Number of values by key and table, number of re-encrypted values, and errors."""

    found: dict[str, Counter[str]] = field(default_factory=dict)
    num_resealed: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, place: str, found: Counter[str]) -> None:
        for key_id, number in found.items():
            self.found.setdefault(key_id, Counter())[place] += number


@app.command("status")
def status(as_json: JsonOption = False) -> None:
    """Count the values of each key, and show the keys that are still needed; exit 1 if one is missing."""
    db = database()
    try:
        seen = _Seen()
        for place in _look(db, seen):
            seen.add(*place)
        key_ids = _key_ids(db)
        _tell(key_ids, seen, as_json=as_json)
    finally:
        db.close()
    if set(seen.found) - {PLAIN, *key_ids}:
        raise typer.Exit(1)


@app.command("new-key")
def new_key(as_json: JsonOption = False) -> None:
    """Print a new master key, for HEADRACE_ENCRYPTION_KEYS or the key file, where it needs an id."""
    key = master_keys.new_key()
    show({"key": key}, key, as_json=as_json)


@app.command("rotate")
def rotate(as_json: JsonOption = False) -> None:
    """Re-encrypt values of older keys, and values in plaintext, with the first key. Can be stopped and repeated."""
    db = database()
    try:
        vault = db.seal
        if not isinstance(vault, Vault):
            raise InvalidRequest("there is no key to seal with: give HEADRACE_ENCRYPTION_KEYS or _KEY_FILE")
        seen = _Seen()
        for _ in _look(db, seen, vault):
            pass
        if seen.errors:
            _complain(seen)
            sys.stderr.write(f"headrace: {len(seen.errors)} values were left as they are\n")
            told = f"{seen.num_resealed} values sealed under {vault.sealing_key}"
            show({"resealed": seen.num_resealed, "left": len(seen.errors)}, told, as_json=as_json)
            raise typer.Exit(1)
        after = _Seen(num_resealed=seen.num_resealed)
        for place in _look(db, after):
            after.add(*place)
        _tell(vault.key_ids, after, as_json=as_json, sealed_by=vault.sealing_key)
    finally:
        db.close()


@app.command("forget")
def forget(key_id: Annotated[str, typer.Argument(help="The id of a master key.")], as_json: JsonOption = False) -> None:
    """Let an id be used for another key. Values of the old key cannot be decrypted without it."""
    db = database(keys_checked=False)
    try:
        forget_key(db, key_id)
    finally:
        db.close()
    told = f"the id {key_id} can be used for another key now"
    show({"key_id": key_id, "forgotten": True}, told, as_json=as_json)


def _key_ids(db: Database) -> Sequence[str]:
    """Return the ids of the keys, of which the first one seals."""
    return tuple(db.seal.checks())


def _look(db: Database, seen: _Seen, vault: Vault | None = None) -> Iterator[tuple[str, Counter[str]]]:
    """Read all encrypted values in pages; yield the findings of each page. With ``vault``, re-encrypt them."""
    verb = "sealing" if vault else "looking at"
    with Progress(
        TextColumn(verb + " {task.description}: {task.completed:,.0f}"), console=err, disable=not err.is_terminal
    ) as progress:
        for target in TARGETS:
            task = progress.add_task(target.table, total=None)
            for page in reencryption.pages(db, target, limit=_ROWS, vault=vault):
                seen.num_resealed += page.num_resealed
                seen.errors += page.errors
                progress.advance(task, page.num_rows)
                yield target.table, page.found
        blobs = open_blobs(load_settings())
        task = progress.add_task(_FILES, total=None)
        for digest in reencryption.digests(db):
            progress.advance(task)
            try:
                yield _FILES, _file(db, blobs, digest, seen, vault)
            except (CannotOpen, Unavailable) as error:
                seen.errors.append(f"the file content {digest}: {error.message}")
        if vault is None and (url := located(load_settings()).get("REDIS_URL")):
            with connect(url, timeout_s=5.0) as client:
                yield _STREAMS, reencryption.stream_key_ids(client)


def _file(db: Database, blobs: Blobs, digest: str, seen: _Seen, vault: Vault | None) -> Counter[str]:
    key_id = reencryption.file_key_id(blobs, digest)
    if vault is not None and key_id != vault.sealing_key:
        reencryption.reseal_file(db, blobs, digest)
        seen.num_resealed += 1
    return Counter([key_id])


def _tell(key_ids: Sequence[str], seen: _Seen, *, as_json: bool, sealed_by: str | None = None) -> None:
    lines = [] if sealed_by is None else [f"{seen.num_resealed} values sealed under {sealed_by}"]
    for key_id in dict.fromkeys([*key_ids, *sorted(seen.found)]):
        places = seen.found.get(key_id, Counter())
        where = ", ".join(f"{number} in {place}" for place, number in places.items()) or "nothing"
        lines.append(f"{_state(key_ids, key_id, places)} ({where})")
    data = {
        "sealing_key": next(iter(key_ids), None),
        "keys": list(key_ids),
        "missing": sorted(set(seen.found) - {PLAIN, *key_ids}),
        "found": {key_id: dict(places) for key_id, places in seen.found.items()},
        "resealed": seen.num_resealed,
    }
    show(data, "\n".join(lines), as_json=as_json)
    _complain(seen)


def _complain(seen: _Seen) -> None:
    for message in seen.errors[:_ERRORS_SHOWN]:
        sys.stderr.write(f"headrace: {message}\n")


def _state(key_ids: Sequence[str], key_id: str, places: Counter[str]) -> str:
    """Return the status of a key."""
    if key_id == PLAIN:
        return "not sealed: run `headrace encryption rotate`" if key_ids else "not sealed"
    if key_ids and key_id == key_ids[0]:
        return f"{key_id} seals"
    if key_id not in key_ids:
        return f"{key_id} IS MISSING, nothing of this can be read: give it in HEADRACE_ENCRYPTION_KEYS"
    if set(places) - {_STREAMS}:
        return f"{key_id} is still needed: run `headrace encryption rotate`"
    if places:
        return f"{key_id} is needed until its streams end, HEADRACE_STREAM_TTL_S after their last words"
    return f"{key_id} is no longer needed, if no process seals with it any more"
