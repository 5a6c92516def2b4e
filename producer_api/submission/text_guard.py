"""What reads the texts of a tenant before anything of them is stored: it replaces some, or refuses them.

Its rules are those of a feature (``features.policy``). The guards in force are read again every few seconds.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from headrace.producer_api.caches.ttl_cache import LoadingCache
from headrace.producer_api.submission.draft_job import DraftJob
from headrace.store.jobs.face_row import FaceRow
from headrace.store.payloads.job_payload import EVERY_MODEL, PinnedPolicy
from headrace.store.tasks.registry import JobRequest

KEEP_S = 5.0
"""The longest time until changed rules take effect in every process."""

_MAX_TENANTS = 10_000


@dataclass(frozen=True, slots=True)
class Guarded:
    """A request as it may be stored, and the policy that is stored with its job.

    ``vault``: the values of placeholders, for the texts of a later request that belongs to it.
    """

    request: JobRequest
    response: FaceRow | None
    policy: PinnedPolicy | None
    vault: Mapping[str, Any] | None


class TextGuard(ABC):
    """A tenant's rules for the texts that come in for a model. Its methods may compute for seconds.

    They raise InvalidRequest for what the rules refuse, and Unavailable if this server cannot follow them.
    ``version``: the name and the number of the rules.
    """

    version: tuple[str, int]

    @property
    @abstractmethod
    def restores(self) -> bool:
        """True if values that it replaces are put back in answers."""

    @abstractmethod
    def apply(self, draft: DraftJob) -> None:
        """Replace what must not be stored in a draft's texts and in the caller's own names, and set its policy."""

    @abstractmethod
    def request(
        self, request: JobRequest, response: FaceRow | None, before: Mapping[str, Any] | None, *, reads_file: bool
    ) -> Guarded:
        """Return a request as it may be stored. ``before``: the vault of the texts that come before.

        ``reads_file``: the worker applies the policy too, to texts that it reads.
        """

    @abstractmethod
    def fields(self, fields: dict[str, Any], param: str) -> dict[str, Any]:
        """Return fields beside a request as they may be stored."""

    @abstractmethod
    def name(self, name: str, param: str) -> str:
        """Return a name that the caller chose as it may be stored: itself, a digest, or what the rules leave of it."""

    @abstractmethod
    def key(self, key: str, is_known: Callable[[str], bool]) -> str:
        """Return an Idempotency-Key as it is stored. ``is_known`` tells if a form of it is stored already."""

    @abstractmethod
    def check_fixed(self, text: str, param: str) -> None:
        """Refuse a text that would have to be changed, and cannot have a placeholder."""

    @abstractmethod
    def check_unchanged(self, given: Any, param: str, what: str, *, with_names: bool = False) -> None:
        """Refuse texts, and names among them, that would have to be changed. ``what``: for the error."""

    @abstractmethod
    def check_images(self, param: str) -> None:
        """Refuse images if the rules would have to read them."""


LoadGuards: TypeAlias = Callable[[str, Mapping[str, TextGuard]], Mapping[str, TextGuard]]
"""Returns the guards of a tenant by model. It gets those that were known last, and blocks on Postgres."""


def no_guards(_tenant_id: str, _known: Mapping[str, TextGuard]) -> Mapping[str, TextGuard]:
    """Return no guards."""
    return {}


class TextGuards(LoadingCache[str, Mapping[str, TextGuard]]):
    """The guards in force, by tenant. Blocks on Postgres for those that are not cached."""

    def __init__(self, load: LoadGuards = no_guards, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._load_one = load
        super().__init__(self._read, ttl_s=KEEP_S, max_size=_MAX_TENANTS, clock=clock)

    def in_force(self, tenant_id: str, model: str = EVERY_MODEL) -> TextGuard | None:
        """Return the tenant's guard for a model, else its guard for every model; None if it has neither."""
        kept = self.get(tenant_id)
        return kept.get(model) or kept.get(EVERY_MODEL)

    def _read(self, tenant_ids: Sequence[str]) -> dict[str, Mapping[str, TextGuard]]:
        return {tenant_id: self._load_one(tenant_id, self.last(tenant_id) or {}) for tenant_id in tenant_ids}
