"""What is vLLM's own: the fake server answers as the recorded real one, and what the adapter makes of its answers."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.models.external.fake_vllm import MODEL, FakeVllm
from tests.models.external.vllm_exchanges import exchanges, play, shape

RECORDED = json.loads((Path(__file__).parent / "recordings" / "vllm-0.32.json").read_text())


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    server = FakeVllm()
    try:
        return play(server.url, MODEL)
    finally:
        server.close()


@pytest.mark.parametrize("name", exchanges(MODEL))
def test_the_fake_server_answers_in_the_shape_of_the_real_one(played: dict[str, Any], name: str) -> None:
    assert differences(shape(played[name]), shape(RECORDED[name])) == []
    assert played[name]["status"] == RECORDED[name]["status"]
    events = [len(each.get("events", [])) for each in (played[name], RECORDED[name])]
    assert events[0] == events[1], "as many tokens, and the same last events"


def differences(found: Any, recorded: Any, at: str = "") -> list[str]:
    """Return where the shapes differ."""
    if found is None or recorded is None:
        return []
    if isinstance(found, dict) and isinstance(recorded, dict):
        both = [differences(found[name], recorded[name], f"{at}.{name}") for name in found.keys() & recorded.keys()]
        return [f"{at}.{name} is there once" for name in found.keys() ^ recorded.keys()] + list(chain(*both))
    if isinstance(found, list) and isinstance(recorded, list):
        return list(chain(*(differences(*pair, f"{at}[]") for pair in zip(found, recorded, strict=False))))
    return [] if found == recorded else [f"{at}: {found} instead of {recorded}"]
