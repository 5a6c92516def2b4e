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

THOROUGHLY = ("llama, kernels", "mistral, sliding window, torch", "gemma2, transformers")
"""These go every way in every run; the others all ways at once, and every way with ``--full``."""

ONLY_FULL = {f"{name}, transformers" for name in list(others.SUPPORTED)[1::2]} | {
    f"{name}, torch" for name in list(tiny.MODELS)[1::2]
}
"""Every other of those that go through transformers' own code, which is long on its way for little of ours, and of the
torch twins of what the kernels are tested with."""

_answers = pytest.StashKey[int]()
_near_ties = pytest.StashKey[int]()

AssertAnswers = Callable[[PreTrainedModel, Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"family", "way"} <= set(metafunc.fixturenames):
        is_full = metafunc.config.getoption("--full")
        cases = [
            (family, way)
            for family in FAMILIES
            for way in WAYS
            if is_full or family in THOROUGHLY or (way == "all of it" and family not in ONLY_FULL)
        ]
        metafunc.parametrize(("family", "way"), cases, ids=[f"{family}: {way}" for family, way in cases])


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
