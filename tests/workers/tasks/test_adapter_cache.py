"""LoRA adapters in the memory of a worker: which one leaves, who waits, and one that cannot be loaded."""

import threading
from contextlib import ExitStack
from typing import Any, cast

import pytest

from headrace.models.engine.requests import Adapter
from headrace.store.errors import ModelLoadError
from headrace.workers.tasks.adapted import AdapterCache, AdapterNotLoaded, AdaptersBusy
from tests.processes import wait_for


class Loads:
    """Loads adapters, which are their names; some are not here."""

    def __init__(self, *missing: str) -> None:
        self.missing = set(missing)
        self.loaded: list[str] = []

    def __call__(self, model: str, version: int) -> Adapter:
        name = f"{model}@{version}"
        self.loaded.append(name)
        if name in self.missing:
            raise ModelLoadError("its files are not here")
        found: Any = name
        return cast(Adapter, found)


def use(cache: AdapterCache, *models: str) -> None:
    for model in models:
        with cache.using(model, 1) as adapter:
            assert adapter == f"{model}@1"


def test_the_adapter_that_was_not_used_for_longest_makes_room() -> None:
    loads = Loads()
    cache = AdapterCache(loads, 2, wait_s=0.0)
    use(cache, "a", "b", "a", "c", "a")
    assert loads.loaded == ["a@1", "b@1", "c@1"], "b made room for c"
    use(cache, "b", "a", "c")
    assert loads.loaded[3:] == ["b@1", "c@1"]
    with cache.using("a", 2) as adapter:
        assert adapter == "a@2"


def test_an_adapter_in_use_stays_and_another_one_is_refused() -> None:
    loads = Loads()
    cache = AdapterCache(loads, 2, wait_s=0.0)
    with ExitStack() as stack:
        for model in ("a", "a", "b"):
            stack.enter_context(cache.using(model, 1))
        with pytest.raises(AdaptersBusy) as busy, cache.using("c", 1):
            pass
        assert "c@1" in str(busy.value)
        assert (busy.value.code, busy.value.progress) == ("handed_back", None)
        use(cache, "b")
    use(cache, "c")
    assert loads.loaded == ["a@1", "b@1", "c@1"]


def test_one_that_cannot_be_loaded_is_tried_again_and_takes_no_place() -> None:
    loads = Loads("lost@1")
    cache = AdapterCache(loads, 1, wait_s=0.0)
    for _ in range(2):
        with (
            pytest.raises(AdapterNotLoaded, match="lost@1") as error,
            cache.using("lost", 1),
        ):
            pass
    assert error.value.retryable
    loads.missing.clear()
    use(cache, "lost", "a")
    assert loads.loaded == ["lost@1"] * 3 + ["a@1"]


def test_those_who_wait_for_room_get_it_in_their_order() -> None:
    cache = AdapterCache(Loads(), 1, wait_s=60.0)
    had: list[str] = []

    def wait_and_use(model: str) -> None:
        with cache.using(model, 1):
            had.append(model)

    threads = [threading.Thread(target=wait_and_use, args=(model,)) for model in ("b", "a")]
    with cache.using("a", 1):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            wait_for(lambda number=number: len(cache.waiting) == number, "it waits")
        assert had == [], "a, whose adapter is in memory, does not go before b"
    for thread in threads:
        thread.join(30)
    assert had == ["b", "a"]
