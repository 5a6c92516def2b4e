"""The caches of a process by themselves: their times and bounds, and what of a version is loaded once."""

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.producer_api.caches import live_processes, model_catalog
from headrace.producer_api.caches.live_processes import LiveProcesses
from headrace.producer_api.caches.model_catalog import ModelCatalog
from headrace.producer_api.caches.ttl_cache import LoadingCache, TtlCache
from headrace.store.db.presence import GONE_AFTER_S, Serving
from headrace.store.errors import NotFound, Unavailable
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry.models import ModelVersion

AT = datetime(2026, 11, 29, tzinfo=UTC)
VERSION = ModelVersion("tiny", 1, "generate", "fake", "fake:tiny", "d1", "float32", 512, {}, AT, None)
CANDIDATE = replace(VERSION, version=2, digest="d2")


def test_a_value_is_used_for_its_time_and_a_full_cache_begins_anew() -> None:
    now = [0.0]
    cache: TtlCache[str, int] = TtlCache(ttl_s=2.0, max_size=2, clock=lambda: now[0])
    cache.put("a", 1)
    now[0] = 1.99
    assert (cache.fresh("a"), cache.last("a")) == (1, 1)
    cache.put("b", 2)
    now[0] = 2.0
    assert (cache.fresh("a"), cache.last("a"), cache.fresh("b")) == (None, 1, 2)
    cache.put("c", 3)
    assert [cache.last(key) for key in "abc"] == [None, None, 3]
    cache.forget()
    assert cache.last("c") is None


def test_an_entry_is_loaded_again_from_half_of_its_time_while_it_is_used() -> None:
    now, loads = [0.0], list[str]()

    def load(keys: Any) -> dict[str, float]:
        loads.extend(keys)
        return dict.fromkeys(keys, now[0])

    cache = LoadingCache(load, ttl_s=4.0, max_size=9, clock=lambda: now[0])
    assert cache.get("a") == 0.0
    for at, expected in ((1.9, ["a"]), (2.0, ["a", "a"]), (3.9, ["a", "a"]), (4.0, ["a", "a", "a"]), (9.9, ["a"] * 4)):
        now[0] = at
        cache.refresh()
        assert loads == expected, at
    now[0] = 12.0
    cache.refresh()
    assert len(loads) == 4, "it was not used for ten seconds"


class Registry:
    """The models of a catalog: names to versions, and what was read."""

    def __init__(self, patch: pytest.MonkeyPatch, **names: ModelVersion) -> None:
        self.names = {name.replace("_", "@"): version for name, version in names.items()}
        self.read: list[str] = []

        def resolve(_db: object, name: str, *, with_retired: bool = False) -> ModelVersion:
            self.read.append(f"{name} retired" if with_retired else name)
            if name not in self.names:
                raise NotFound(f"no model {name}")
            return self.names[name]

        def get_version(_db: object, model: str, version: int) -> ModelVersion:
            self.read.append(f"digest of {model}@{version}")
            return self.names[f"{model}@{version}"]

        patch.setattr("headrace.producer_api.caches.model_catalog.models.resolve", resolve)
        patch.setattr("headrace.producer_api.caches.model_catalog.models.get_version", get_version)
        nothing: Any = None
        self.now = 0.0
        self.catalog = ModelCatalog(nothing, clock=lambda: self.now)


async def test_a_name_is_kept_for_two_seconds_and_a_digest_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(monkeypatch, tiny=VERSION, tiny_2=CANDIDATE)
    catalog = registry.catalog
    for at in (0.0, 1.99, 2.0):
        registry.now = at
        assert catalog.resolve("tiny") is VERSION
    assert catalog.pinned("tiny@2") is CANDIDATE
    assert registry.read == ["tiny", "tiny", "tiny@2 retired"]
    assert [await catalog.digest("tiny", number) for number in (1, 2, 2)] == ["d1", "d2", "d2"]
    assert registry.read[3:] == ["digest of tiny@2"]
    with pytest.raises(NotFound):
        catalog.resolve("gone")


def test_the_parts_of_a_version_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def loader(what: str, found: Any = None) -> Any:
        def load(version: ModelVersion, *_: object) -> Any:
            loads.append(f"{what} {version.version}")
            return found or f"{what} {version.version}"

        return load

    compiled = SimpleNamespace(is_compiled=lambda kind, text: (kind, text) == ("regex", "a"))
    registry = Registry(monkeypatch, tiny=VERSION)
    monkeypatch.setattr(model_catalog, "tokenizer_for", loader("tokenizer"))
    monkeypatch.setattr(model_catalog, "grammars_for", loader("grammars", compiled))
    monkeypatch.setattr(
        model_catalog, "sampling_defaults_for", loader("sampling", SamplingDefaults(temperature=0.5, top_k=3))
    )
    catalog = registry.catalog
    catalog.resolve("tiny")
    assert not catalog.is_compiled(VERSION, "regex", "a")
    own = replace(VERSION, sampling=SamplingDefaults(temperature=0.1))
    found = catalog.sampling(own)
    assert (found.temperature, found.top_k) == (0.1, 3), "the operator's go first"
    for _ in range(2):
        assert catalog.tokenizer(VERSION) == "tokenizer 1"
        assert catalog.grammars(VERSION) is compiled
    assert [catalog.is_compiled(VERSION, "regex", text) for text in "ab"] == [True, False]
    assert loads == ["sampling 1", "tokenizer 1", "grammars 1"]
    for number in range(2, 17):
        catalog.tokenizer(replace(VERSION, version=number))
    catalog.tokenizer(VERSION)
    catalog.tokenizer(replace(VERSION, version=17))
    catalog.tokenizer(VERSION)
    assert loads[-2:] == ["tokenizer 16", "tokenizer 17"], "sixteen versions are kept, those that were used last"
    catalog.tokenizer(replace(VERSION, version=2))
    assert loads[-1] == "tokenizer 2"
    catalog.tokenizer(replace(VERSION, version=17))
    assert loads.count("tokenizer 17") == 1


class Presence:
    """The live processes as Postgres has them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.num_reads, self.is_away = 100.0, 0, False
        self.serving: dict[str, Serving] = {}
        self.left: list[str] = []

        def read_serving(_: object) -> dict[str, Serving]:
            self.num_reads += 1
            if self.is_away:
                raise Unavailable("away")
            return dict(self.serving)

        def leave(_: object, process_id: str) -> None:
            self.left.append(process_id)
            if self.is_away:
                raise Unavailable("away")

        patch.setattr(
            live_processes, "presence", SimpleNamespace(beat=lambda *_: 1, read_serving=read_serving, leave=leave)
        )
        patch.setattr(live_processes, "read_hosts", lambda _: ())
        nothing: Any = None
        self.known = LiveProcesses(nothing, clock=lambda: self.now)


def test_a_missing_worker_is_looked_for_again_and_a_known_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Presence(monkeypatch)
    assert (found.known.num_alive(), found.known.is_unserved("tiny@1"), found.num_reads) == (8, True, 1)
    found.serving = {"tiny@1": Serving(2, 64)}
    found.now += 0.25
    assert (found.known.is_unserved("tiny@1"), found.num_reads) == (True, 1), "it was read a moment ago"
    found.now += 0.01
    assert (found.known.serving("tiny@1"), found.num_reads) == (Serving(2, 64), 2)
    found.now += 1.0
    assert (found.known.serving("tiny@1"), found.num_reads) == (Serving(2, 64), 2)
    found.is_away = True
    assert (found.known.serving("other@1"), found.num_reads) == (Serving(), 3), "the last reading is used"
    found.now += GONE_AFTER_S
    assert (found.known.serving("tiny@1"), found.known.is_unserved("other@1")) == (None, False)
    found.known.start()
    found.known.stop(60)
    assert [one.startswith("api_") for one in found.left] == [True]
