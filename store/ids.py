"""Identifiers: time-ordered and opaque, made in Python for every version of the database."""

from datetime import datetime

from uuid_utils import uuid7


def new_id(prefix: str) -> str:
    """Return for example ``job_0197…``: a prefix and a UUIDv7 in hex, so that ids sort by the time they were made."""
    return f"{prefix}_{uuid7().hex}"


def first_id(prefix: str, at: datetime) -> str:
    """Return a string that sorts before every id made from ``at`` on, and after all earlier ids."""
    return f"{prefix}_{max(0, int(at.timestamp() * 1000)):012x}"
