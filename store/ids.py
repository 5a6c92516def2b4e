"""Identifiers: time-ordered, opaque, made in Python so that no database version is asked for them."""

from uuid_utils import uuid7


def new_id(prefix: str) -> str:
    """Return for example ``job_0197…``: a prefix and a UUIDv7 in hex, so that ids sort by the time they were made."""
    return f"{prefix}_{uuid7().hex}"
