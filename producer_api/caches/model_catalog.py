"""Model strings to model versions, and the tokenizer and the grammars of a version.

A resolved string is kept for two seconds, the longest time until a moved alias or a change of a rollout reaches new
jobs. A version never changes, so its tokenizer is kept until newer ones evict it, and its digest for ever. All of it
but the digest blocks; callers are in a thread.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar

from cachetools import LRUCache
from starlette.concurrency import run_in_threadpool

from headrace.producer_api.caches.ttl_cache import LoadingCache
from headrace.prompts.grammar import Grammars, grammars_for
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.prompts.tokenizer import Tokenizer, sampling_defaults_for, tokenizer_for
from headrace.store.db.database import Database
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion

T = TypeVar("T")

KEEP_S = 2.0
_MAX_NAMES = 1000
_MAX_VERSIONS = 16


class _LoadOnce(Generic[T]):
    """A part of a version, loaded once even if many threads need it at the same time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: T | None = None

    def get(self, load: Callable[[], T]) -> T:
        with self._lock:
            if self._found is None:
                self._found = load()
            return self._found

    @property
    def loaded(self) -> T | None:
        return self._found


class _LoadedVersion:
    """The loaded parts of one version."""

    def __init__(self) -> None:
        self.tokenizer: _LoadOnce[Tokenizer] = _LoadOnce()
        self.grammars: _LoadOnce[Grammars] = _LoadOnce()
        self.settings: _LoadOnce[object] = _LoadOnce()
        self.generation: _LoadOnce[SamplingDefaults] = _LoadOnce()


class ModelCatalog:
    """Model strings to versions, and versions to their tokenizers and grammars."""

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._resolved: LoadingCache[str, ModelVersion] = LoadingCache(
            self._resolve, ttl_s=KEEP_S, max_size=_MAX_NAMES, clock=clock
        )
        self._pinned: LoadingCache[str, ModelVersion] = LoadingCache(
            lambda names: {name: models.resolve(db, name, with_retired=True) for name in names},
            ttl_s=KEEP_S,
            max_size=_MAX_NAMES,
            clock=clock,
        )
        self._digests: dict[tuple[str, int], str] = {}
        self._lock = Lock()
        self._versions: LRUCache[tuple[str, int], _LoadedVersion] = LRUCache(_MAX_VERSIONS)

    def resolve(self, name: str) -> ModelVersion:
        """Return the version of ``name``, ``name@3`` or ``name@alias``; raise NotFound if there is none.

        Of an alias with an active rollout it is the stable version.
        """
        return self._resolved.get(name)

    def pinned(self, name: str) -> ModelVersion:
        """Return the version ``name@3`` for work that was accepted for it, also if it is retired now.

        Raises NotFound if it was deleted.
        """
        return self._pinned.get(name)

    def refresh(self) -> None:
        """Resolve again the names that were used lately and have half of their time behind them."""
        self._resolved.refresh()

    def _resolve(self, names: Sequence[str]) -> dict[str, ModelVersion]:
        found = {name: models.resolve(self._db, name) for name in names}
        for version in found.values():
            self._digests[version.model, version.version] = version.digest
        return found

    async def digest(self, model: str, version: int) -> str:
        """Return the digest of a version, retired or not. Only the first call for a version may read the database."""
        if (digest := self._digests.get((model, version))) is None:
            digest = (await run_in_threadpool(models.get_version, self._db, model, version)).digest
            self._digests[model, version] = digest
        return digest

    def tokenizer(self, version: ModelVersion) -> Tokenizer:
        """Return the version's tokenizer; raise ModelLoadError if its files are damaged."""
        loaded = self._loaded((version.model, version.version))
        return loaded.tokenizer.get(lambda: tokenizer_for(version, partial(models.read_file, self._db)))

    def grammars(self, version: ModelVersion) -> Grammars:
        """Return the version's grammars; raise ModelLoadError if its files are damaged."""
        loaded = self._loaded((version.model, version.version))
        tokenizer = self.tokenizer(version)
        return loaded.grammars.get(lambda: grammars_for(version, tokenizer, partial(models.read_file, self._db)))

    def task_settings(self, version: ModelVersion) -> Any:
        """Return the settings of the version's task (``prompts.tasks``); raise ModelLoadError if files are damaged."""
        loaded = self._loaded((version.model, version.version))
        read_settings = TASK_INPUTS[version.task].read_settings
        return loaded.settings.get(lambda: read_settings(version, partial(models.read_file, self._db)))

    def sampling(self, version: ModelVersion) -> SamplingDefaults:
        """Return the version's sampling defaults: of its record, else of its ``generation_config.json``.

        Raises ModelLoadError if that file is damaged.
        """
        loaded = self._loaded((version.model, version.version))
        own = loaded.generation.get(lambda: sampling_defaults_for(version, partial(models.read_file, self._db)))
        return own.under(version.sampling)

    def is_compiled(self, version: ModelVersion, kind: str, text: str) -> bool:
        """True if the grammar is compiled for the version. Reads nothing."""
        with self._lock:
            loaded = self._versions.get((version.model, version.version))
        grammars = None if loaded is None else loaded.grammars.loaded
        return grammars is not None and grammars.is_compiled(kind, text)

    def _loaded(self, key: tuple[str, int]) -> _LoadedVersion:
        with self._lock:
            return self._versions.setdefault(key, _LoadedVersion())
