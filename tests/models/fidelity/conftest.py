"""Which family goes which way, and how many answers differed where the reference itself nearly ties."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pytest
from transformers import PreTrainedModel

from tests.models import others, tiny
from tests.models.driving import count_near_ties
from tests.models.fidelity.ways import WAYS


@dataclass(frozen=True)
class Family:
    """A tiny model of a family, and what computes it."""

    build: Callable[[], PreTrainedModel]
    native_kernels: Literal["auto", "off"] = "off"
    block_tokens: int = 8


FAMILIES: Mapping[str, Family] = {
    **{f"{name}, kernels": Family(partial(tiny.build, name), "auto", 16) for name in tiny.MODELS},
    **{f"{name}, torch": Family(partial(tiny.build, name)) for name in tiny.MODELS},
    **{f"{name}, transformers": Family(partial(others.build_other, name)) for name in others.SUPPORTED},
}

THOROUGHLY = "llama, kernels"
"""It goes every way in every run; every family does with ``--full``."""

ALL_AT_ONCE = {
    "qwen3, kernels",
    "qwen2, window in upper layers, kernels",
    "llama, biases, torch",
    "mistral, sliding window, torch",
    "gpt2, transformers",
    "gemma2, transformers",
    "qwen2_moe, transformers",
}
"""One of each kind goes all ways at once in every run: windows, biases, absolute positions, experts."""

_answers = pytest.StashKey[int]()
_near_ties = pytest.StashKey[int]()

AssertAnswers = Callable[[PreTrainedModel, Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"family", "way"} <= set(metafunc.fixturenames):
        cases = [
            pytest.param(family, way, marks=[] if _is_in_every_run(family, way) else pytest.mark.full)
            for family in FAMILIES
            for way in WAYS
        ]
        ids = [f"{family}: {way}" for family in FAMILIES for way in WAYS]
        metafunc.parametrize(("family", "way"), cases, ids=ids)


def _is_in_every_run(family: str, way: str) -> bool:
    return family == THOROUGHLY or (family in ALL_AT_ONCE and way == "all of it")


@pytest.fixture
def is_full(request: pytest.FixtureRequest) -> bool:
    """True if every family shall go every way."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def assert_answers(request: pytest.FixtureRequest) -> AssertAnswers:
    """Assert that answers are the reference's, but for few near ties, which are counted."""

    def counted(
        model: PreTrainedModel, prompts: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]
    ) -> None:
        near_ties = count_near_ties(model, prompts, found)
        stash = request.config.stash
        stash[_answers] = stash.get(_answers, 0) + len(found)
        stash[_near_ties] = stash.get(_near_ties, 0) + near_ties
        assert near_ties <= max(1, len(found) // 10)

    return counted


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _answers in config.stash:
        count, near = config.stash[_answers], config.stash[_near_ties]
        terminalreporter.write_line(
            f"fidelity: {count} answers equal the reference's token for token, but {near} from a near tie of its own on"
        )
