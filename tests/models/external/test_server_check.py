"""What runs is what was registered: a server's description beside a version's engine."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.models.external.server_check import ServerCheck
from headrace.models.external.upstream import ServerInfo
from headrace.store.registry.engine_spec import EngineKind, EngineSpec

SPEC = EngineSpec(kind=EngineKind.VLLM, served_model="llama", revision="abc", quantization="awq", context_window=4096)
INFO = ServerInfo(
    "0.32.0", ("llama", "poet"), revision="abc", quantization="awq", context_window=8192, adapters=("poet",)
)


@pytest.mark.parametrize(
    ("spec", "info", "said"),
    [
        ({"served_model": "gpt"}, {}, "it serves llama, poet, and not gpt"),
        ({"adapter": "bard"}, {}, "it serves llama, poet, and not bard"),
        ({"adapter": "poet"}, {"adapters": ()}, "its poet is not an adapter"),
        ({"revision": "def"}, {}, "its revision is abc, and not def"),
        ({}, {"quantization": "fp8"}, "its quantization is fp8, and not awq"),
        ({"context_window": 8193}, {}, "its context window is 8192, and not 8193"),
        (
            {},
            {"revision": "", "models": ("poet",)},
            "it serves poet, and not llama; its revision is empty, and not abc",
        ),
        ({}, {"context_window": 2048}, "its context window is 2048, and not 4096"),
        ({"batch_invariant": True}, {"batch_invariant": False}, "its batch invariance is False, and not True"),
        (
            {},
            {"models": (), "context_window": 1},
            "it serves no model, and not llama; its context window is 1, and not 4096",
        ),
    ],
)
def test_every_difference_is_said(spec: dict[str, Any], info: dict[str, Any], said: str) -> None:
    check = ServerCheck(SPEC.model_copy(update=spec), is_own=False)
    reason = check.refuse(replace(INFO, **info))
    assert reason.endswith(f": {said}")
    assert check.description is None


def test_the_same_is_accepted_and_described_once() -> None:
    noted: list[str] = []
    check = ServerCheck(SPEC.model_copy(update={"adapter": "poet"}), is_own=False, note=noted.append)
    assert check.refuse(INFO) is check.refuse(INFO) is None
    assert noted == ["vllm 0.32.0; poet; revision abc; quantization awq; context window 8192"]
    assert check.refuse(replace(INFO, engine_version="0.33.0")) is None
    assert (check.description, len(noted)) == (noted[0].replace("0.32.0", "0.33.0"), 2)


def test_a_chat_server_need_not_say_what_is_an_adapter_and_its_number_format_is_described() -> None:
    chat = EngineSpec(kind=EngineKind.OPENAI, served_model="llama", adapter="poet")
    check = ServerCheck(chat, is_own=False)
    assert check.refuse(replace(INFO, adapters=(), dtype="bfloat16", batch_invariant=True)) is None
    assert check.description == (
        "openai 0.32.0; poet; revision abc; quantization awq; dtype bfloat16; context window 8192; batch invariant"
    )


def test_what_a_server_does_not_say_is_not_compared_and_named() -> None:
    spec = SPEC.model_copy(update={"batch_invariant": True})
    silent = ServerInfo(None, ("llama",))
    other, own = ServerCheck(spec, is_own=False), ServerCheck(spec, is_own=True)
    assert other.refuse(silent) is own.refuse(silent) is None
    assert other.description == (
        "vllm (version not said); llama; not said: revision, quantization, context window, batch invariance"
    )
    assert own.description == "vllm (version not said); llama; quantization awq; batch invariant"
