"""The life of a model version: its states and the SQL expression for the state that is shown.

    registered ──a worker begins──▶ verifying ──▶ ready ──▶ retired
        ▲                               │            ◀── revive ──┘
        └── its lease ends ─────────────┤
        └── registered again ── rejected ◀┘

Three states are stored. ``verifying`` is a registered version with a lease that is not over, and ``retired`` is any
version with a ``retired_at``, so that a killed verifier and a revival need no statement that restores a state.
"""

from enum import StrEnum
from typing import Final


class VersionState(StrEnum):
    """The state of a model version."""

    REGISTERED = "registered"  # no worker has verified it
    VERIFYING = "verifying"  # a worker verifies it now
    READY = "ready"  # verified: workers run its jobs
    REJECTED = "rejected"  # it failed its verification: no worker runs it
    RETIRED = "retired"  # takes no new jobs


STATE_SQL: Final = """CASE
    WHEN retired_at IS NOT NULL THEN 'retired'
    WHEN state = 'registered' AND verifying_until > now() THEN 'verifying'
    ELSE state END"""
"""The state of a row of ``model_versions`` as it is shown."""
