"""The adapter of each kind of server, and the question whether its model reads images."""

import asyncio
from base64 import b64decode
from typing import Any

import pytest

from headrace.models.engine.requests import FinishReason, SamplingParams
from headrace.models.external import server_probes
from headrace.models.external.connect import connect
from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.server_probes import PICTURE, why_no_images
from headrace.models.external.sglang import SglangUpstream
from headrace.models.external.upstream import Piece, UpstreamFailed, UpstreamLost, UpstreamRefused
from headrace.models.external.vllm import VllmUpstream
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from tests.models.external.adapters.canned import Canned, use
from tests.models.external.seeing_server import Eyes
from tests.refusals import Naming


@pytest.mark.parametrize(
    ("kind", "upstream"),
    [
        (EngineKind.OPENAI, OpenaiChatUpstream),
        (EngineKind.SGLANG, SglangUpstream),
        (EngineKind.VLLM, VllmUpstream),
    ],
)
@pytest.mark.parametrize(("key", "header"), [("secret", "Bearer secret"), ("", None)])
def test_each_kind_of_server_has_its_adapter(
    server: Canned, kind: EngineKind, upstream: type[Any], key: str, header: str | None
) -> None:
    found = connect(EngineSpec(kind=kind, served_model="m"), url=f"{server.url}/base", api_key=key)
    assert type(found) is upstream
    use(found, ("describe",))
    assert all(path.startswith("/base/") for path, _ in server.asked)
    assert set(server.keys) == {header}


def test_a_server_is_asked_about_one_white_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    seeing = Eyes(pieces=[Piece(text="white", finish=FinishReason.STOP)])
    assert asyncio.run(why_no_images(seeing, "m")) is None
    (asked,) = seeing.sent
    assert (asked.id, asked.model, asked.prompt, asked.sampling) == ("probe", "m", (), SamplingParams(16))
    messages: Any = asked.messages["messages"]
    text, image = messages[0]["content"]
    assert (messages[0]["role"], text) == ("user", {"type": "text", "text": "Name the colour."})
    kind, _, data = image["image_url"]["url"].partition(",")
    assert (image["type"], kind, b64decode(data)) == ("image_url", "data:image/png;base64", PICTURE)
    for error in (UpstreamRefused("no eyes"), UpstreamFailed("no eyes")):
        assert asyncio.run(why_no_images(Eyes(pieces=[error]), "m")) == Naming("--accepts images", ": no eyes")
    with pytest.raises(UpstreamLost, match="away"):
        asyncio.run(why_no_images(Eyes(pieces=[UpstreamLost("away")]), "m"))
    monkeypatch.setattr(server_probes, "LONGEST_S", 0.0)
    with pytest.raises(UpstreamLost) as lost:
        asyncio.run(why_no_images(Eyes(), "m"))
    assert str(lost.value) == Naming(" 0 s")
