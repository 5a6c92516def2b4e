"""Which columns are sealed, and how a row's sealed values are read and written. ``store.encryption.vault`` does the
sealing.

What SQL itself must see stays outside of the envelope: how an answer ended, an error's code, and of metadata the
tokens by which it is searched for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping

from store.encryption.vault import Place, Vault, envelope_of

Row = Mapping[str, Any] | RowMapping

TOKENS = "t"
"""Beside metadata's envelope: what stands for its pairs in a search."""

OUTSIDE: Mapping[str, tuple[str, ...]] = {"output": ("finish_reason",), "error": ("code", "retryable", "attempt")}
_JOB_COLUMNS = ("payload", "metadata", "output", "error")


def seal_job(vault: Vault, tenant_id: str, job_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a job's columns that are among ``values``, sealed."""
    place = Place(tenant_id, "jobs", "", job_id)
    sealed = {
        name: vault.seal(values[name], place.column_of(name), outside=OUTSIDE.get(name, ()))
        for name in _JOB_COLUMNS
        if name in values
    }
    if "metadata" in sealed:
        sealed["metadata"] = seal_metadata(vault, values["metadata"], place.column_of("metadata"))
    return sealed


def open_job(vault: Vault, row: Row) -> dict[str, Any]:
    """Return a row with columns of ``jobs``, ``id`` and ``tenant_id`` among them, with what is sealed opened."""
    place = Place(row["tenant_id"], "jobs", "", row["id"])
    return {
        name: vault.open(value, place.column_of(name)) if name in _JOB_COLUMNS else value for name, value in row.items()
    }


def seal_metadata(vault: Vault, metadata: Mapping[str, str] | None, place: Place) -> Any:
    """Return metadata sealed, and beside it the tokens that ``metadata_filters`` looks for."""
    sealed = vault.seal(metadata, place)
    if metadata and envelope_of(sealed) is not None:
        sealed[TOKENS] = vault.tokens(place.tenant_id, metadata)[vault.sealing_key]
    return sealed


def metadata_filters(vault: Vault, tenant_id: str, wanted: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    """Return JSON values of which a metadata column contains one if it has the pairs: as they are, or as tokens."""
    tokens = vault.tokens(tenant_id, wanted).values()
    return [dict(wanted), *({TOKENS: found} for found in tokens)]


def seal_columns(vault: Vault, place: Place, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values sealed, each for the column of its name in the place's row."""
    return {name: vault.seal(value, place.column_of(name)) for name, value in values.items()}


def open_columns(vault: Vault, place: Place, row: Row, *columns: str) -> dict[str, Any]:
    """Return the row with these columns opened."""
    return {**row, **{name: vault.open(row[name], place.column_of(name)) for name in columns}}
