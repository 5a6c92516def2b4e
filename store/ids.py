"""Identifiers: time-ordered, opaque, made in Python so that no database version is asked for them."""

from datetime import datetime

from uuid_utils import uuid7


def new_id(prefix: str) -> str:
    """Return for example ``job_0197…``: a prefix and a UUIDv7 in hex, so that ids sort by the time they were made."""
    return f"{prefix}_{uuid7().hex}"


def first_id(prefix: str, at: datetime) -> str:
    """Return what sorts before every id that is made from ``at`` on, and after all that were made before."""
    return f"{prefix}_{max(0, int(at.timestamp() * 1000)):012x}"
