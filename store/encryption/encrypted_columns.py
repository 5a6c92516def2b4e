"""Encrypted columns: reading and writing their values. ``store.encryption.vault`` does the encryption.

Fields that SQL must read stay outside of the envelope: the finish reason of an output, the code of an error, and the
search tokens of metadata.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping

from store.encryption.vault import EncryptionContext, Vault, envelope_of

Row = Mapping[str, Any] | RowMapping

TOKENS = "t"
"""The field for search tokens, beside the envelope of metadata."""

OUTSIDE: Mapping[str, tuple[str, ...]] = {"output": ("finish_reason",), "error": ("code", "retryable", "attempt")}
_JOB_COLUMNS = ("payload", "metadata", "output", "error")


def seal_job(vault: Vault, tenant_id: str, job_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a job's encrypted columns, sealed."""
    context = EncryptionContext(tenant_id, "jobs", "", job_id)
    sealed = {
        name: vault.seal(values[name], context.with_column(name), outside=OUTSIDE.get(name, ()))
        for name in _JOB_COLUMNS
        if name in values
    }
    if "metadata" in sealed:
        sealed["metadata"] = seal_metadata(vault, values["metadata"], context.with_column("metadata"))
    return sealed


def open_job(vault: Vault, row: Row) -> dict[str, Any]:
    """Return a row of ``jobs`` with its sealed values opened. It must have ``id`` and ``tenant_id``."""
    context = EncryptionContext(row["tenant_id"], "jobs", "", row["id"])
    return {
        name: vault.open(value, context.with_column(name)) if name in _JOB_COLUMNS else value
        for name, value in row.items()
    }


def seal_metadata(vault: Vault, metadata: Mapping[str, str] | None, context: EncryptionContext) -> Any:
    """Return metadata sealed, with the search tokens for ``metadata_filters``."""
    sealed = vault.seal(metadata, context)
    if metadata and envelope_of(sealed) is not None:
        sealed[TOKENS] = vault.tokens(context.tenant_id, metadata)[vault.sealing_key]
    return sealed


def metadata_filters(vault: Vault, tenant_id: str, wanted: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    """Return JSON values for ``@>``: metadata with these pairs contains one of them, in plaintext or as tokens."""
    tokens = vault.tokens(tenant_id, wanted).values()
    return [dict(wanted), *({TOKENS: found} for found in tokens)]


def seal_columns(vault: Vault, context: EncryptionContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values sealed, each for the column with its name."""
    return {name: vault.seal(value, context.with_column(name)) for name, value in values.items()}


def open_columns(vault: Vault, context: EncryptionContext, row: Row, *columns: str) -> dict[str, Any]:
    """Return the row with the values of these columns opened."""
    return {**row, **{name: vault.open(row[name], context.with_column(name)) for name in columns}}
