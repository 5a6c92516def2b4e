"""Which version takes a job of an alias with an active rollout. Pure.

A sticky key has a point between 0 and 100 that depends on the rollout and the key alone. The keys below the rollout's
percentage go to the candidate. So a key stays on its side, and a growing percentage only adds keys to the candidate.
"""

import hashlib
from typing import Final

from headrace.features.rollouts.rollouts import Rollout, RolloutMode, StickyKey

_BITS: Final = 64

# A job without the rollout's kind of key is divided by the next kind; every job has a tenant.
_ORDER = (StickyKey.CONVERSATION, StickyKey.USER, StickyKey.TENANT)
_BY_JOB = (StickyKey.CONVERSATION, StickyKey.JOB)


def takes_candidate(
    rollout: Rollout, tenant_id: str, user: str | None, conversation: str | None, draw: str = ""
) -> bool:
    """Return True if the candidate takes a job with these keys. ``draw``: a random text of this job alone."""
    if rollout.mode is RolloutMode.SHADOW or not rollout.state.is_active:
        return False
    values = {StickyKey.CONVERSATION: conversation, StickyKey.USER: user, StickyKey.JOB: draw}
    order = _BY_JOB if rollout.sticky_key is StickyKey.JOB else _ORDER[_ORDER.index(rollout.sticky_key) :]
    for kind in order:
        if value := values.get(kind):
            # The tenant is a part of it: two tenants may have users of the same name.
            return point_of(rollout.id, f"{kind.value} {tenant_id} {value}") < rollout.percent
    return point_of(rollout.id, f"{StickyKey.TENANT.value} {tenant_id}") < rollout.percent


def point_of(rollout_id: str, key: str) -> float:
    """Return a number from 0 to below 100, even over the keys and independent between rollouts."""
    digest = hashlib.blake2b(key.encode(), key=rollout_id.encode()[:64], digest_size=_BITS // 8).digest()
    return 100.0 * int.from_bytes(digest) / 2.0**_BITS
