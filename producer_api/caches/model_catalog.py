"""What a model string means right now, and the tokenizer and the grammars of the version it names.

Resolutions are kept for two seconds, which bounds how long a moved alias takes to reach new jobs. A version never
changes, so its tokenizer is kept until others push it out. All of it blocks; callers are in a thread.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Generic, TypeVar

from prompts.embedding import Embedder, embedder_for
from prompts.grammar import Grammars, grammars_for
from prompts.tokenizer import Tokenizer, sampling_defaults_for, tokenizer_for
from store.db.database import Database
from store.payloads.sampling_params import SamplingDefaults
from store.registry import models
from store.registry.models import ModelVersion

T = TypeVar("T")

KEEP_S = 2.0
_MOST_NAMES = 1000
_MOST_TOKENIZERS = 16


class _Once(Generic[T]):
    """Something of a version, loaded once however many ask at the same time."""

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

    @property
    def is_loaded(self) -> bool:
        return self._found is not None


class _Slot:
    """What is kept of one version."""

    def __init__(self) -> None:
        self.tokenizer: _Once[Tokenizer] = _Once()
        self.grammars: _Once[Grammars] = _Once()
        self.embedder: _Once[Embedder] = _Once()
        self.generation: _Once[SamplingDefaults] = _Once()


class Catalog:
    """Model strings to versions, versions to tokenizers and grammars."""

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._lock = Lock()
        self._resolved: dict[str, tuple[ModelVersion, float]] = {}
        self._slots: OrderedDict[tuple[str, int], _Slot] = OrderedDict()

    def resolve(self, name: str) -> ModelVersion:
        """Return the version that ``name``, ``name@3`` or ``name@alias`` means; raise NotFound if there is none."""
        kept = self._resolved.get(name)
        if kept is not None and self._clock() < kept[1]:
            return kept[0]
        return self._read(name)

    def is_aging(self, name: str) -> bool:
        """True if what ``name`` means is known, and half of the time is over for which that is kept."""
        kept = self._resolved.get(name)
        return kept is not None and self._clock() >= kept[1] - KEEP_S / 2

    def renew(self, name: str) -> None:
        """Read again what ``name`` means, so that nobody need wait for it."""
        self._read(name)

    def _read(self, name: str) -> ModelVersion:
        version = models.resolve(self._db, name)
        if len(self._resolved) >= _MOST_NAMES:
            self._resolved.clear()
        self._resolved[name] = (version, self._clock() + KEEP_S)
        return version

    def tokenizer(self, version: ModelVersion) -> Tokenizer:
        """Return the version's tokenizer; raise ModelLoadError if its files are damaged."""
        slot = self._slot((version.model, version.version))
        return slot.tokenizer.get(lambda: tokenizer_for(version, partial(models.read_file, self._db)))

    def grammars(self, version: ModelVersion) -> Grammars:
        """Return the version's grammars; raise ModelLoadError if its files are damaged."""
        slot = self._slot((version.model, version.version))
        tokenizer = self.tokenizer(version)
        return slot.grammars.get(lambda: grammars_for(version, tokenizer, partial(models.read_file, self._db)))

    def embedder(self, version: ModelVersion) -> Embedder:
        """Return what the version's files say of its vectors; raise ModelLoadError if they are damaged."""
        slot = self._slot((version.model, version.version))
        return slot.embedder.get(lambda: embedder_for(version, partial(models.read_file, self._db)))

    def sampling(self, version: ModelVersion) -> SamplingDefaults:
        """Return what is set for the version: by its record, else by its own ``generation_config.json``.

        Raises ModelLoadError if that is damaged.
        """
        slot = self._slot((version.model, version.version))
        own = slot.generation.get(lambda: sampling_defaults_for(version, partial(models.read_file, self._db)))
        return own.under(version.sampling)

    def is_loaded(self, name: str) -> bool:
        """True if the tokenizer of what ``name`` means, or meant when it was last asked for, is here."""
        kept = self._resolved.get(name)
        slot = None if kept is None else self._slots.get((kept[0].model, kept[0].version))
        return slot is not None and slot.tokenizer.is_loaded

    def is_compiled(self, version: ModelVersion, kind: str, text: str) -> bool:
        """True if a grammar is here that the version can follow, without reading anything."""
        slot = self._slots.get((version.model, version.version))
        grammars = None if slot is None else slot.grammars.loaded
        return grammars is not None and grammars.is_compiled(kind, text)

    def _slot(self, key: tuple[str, int]) -> _Slot:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            if len(self._slots) > _MOST_TOKENIZERS:
                self._slots.popitem(last=False)
            return slot
