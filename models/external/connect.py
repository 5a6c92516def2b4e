"""The adapter of each kind of inference server. A new kind is one more entry of ``UPSTREAMS``."""

from collections.abc import Callable, Mapping

from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.sglang import SglangUpstream
from headrace.models.external.upstream import Upstream
from headrace.models.external.vllm import VllmUpstream
from headrace.store.registry.engine_spec import EngineKind, EngineSpec

UPSTREAMS: Mapping[EngineKind, Callable[[EngineSpec, str, str | None], Upstream]] = {
    EngineKind.OPENAI: lambda spec, url, api_key: OpenaiChatUpstream(
        url, api_key=api_key, continues=bool(spec.continues)
    ),
    EngineKind.SGLANG: lambda _spec, url, api_key: SglangUpstream(url, api_key=api_key),
    EngineKind.VLLM: lambda spec, url, api_key: VllmUpstream(url, api_key=api_key, is_router=bool(spec.router)),
}
"""Makes the adapter of a server: by the version's engine, the server's address and the key that it asks for."""


def connect(spec: EngineSpec, *, url: str, api_key: str = "") -> Upstream:
    """Return the adapter of a version's server. No request is sent yet.

    ``url``: the server's address, which is the registered one or that of a server that the worker has started.
    """
    return UPSTREAMS[spec.kind](spec, url, api_key or None)
