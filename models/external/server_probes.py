"""Asks a server of chat completions what its API does not say: if it takes images, and if it goes on with an answer."""

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from headrace.models.engine.requests import SamplingParams
from headrace.models.external.upstream import Upstream, UpstreamFailed, UpstreamLost, UpstreamRefused, UpstreamRequest

PICTURE: Final = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAATUlEQVR42u3PQQ0AAAgEILV/5zOFDzdoQCepz6aeExAQEBAQEBAQ"
    "EBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQELi3cqoDfaKuZM4AAAAASUVORK5CYII="
)
"""A PNG file of 64 x 64 white pixels: some models take no smaller ones."""

LONGEST_S = 60.0
_NOT_CONTINUED = "the version was registered with --continues, and its server has no continue_final_message: {}"
_MOST_TOKENS = 16  # some models refuse one token


async def why_no_images(upstream: Upstream, model: str) -> str | None:
    """Return why the server's model takes no images, None if it has answered about one. Raises UpstreamLost."""
    url = f"data:image/png;base64,{b64encode(PICTURE).decode()}"
    parts = [{"type": "text", "text": "Name the colour."}, {"type": "image_url", "image_url": {"url": url}}]
    try:
        await _ask(upstream, model, [{"role": "user", "content": parts}])
    except (UpstreamRefused, UpstreamFailed) as error:
        return f"the version was registered with --accepts images, and its server takes none: {error}"
    return None


async def why_not_continued(upstream: Upstream, model: str) -> str | None:
    """Return why the server does not go on with an answer, None if it does or does not count. Raises UpstreamLost.

    A server that does not know the field ignores it, and reads the marks of another turn after the answer.
    """
    question, begun = {"role": "user", "content": "Count."}, "One, two, three,"
    try:
        whole = await _ask(upstream, model, [question, {"role": "assistant", "content": begun}])
        shorter = await _ask(upstream, model, [question], begun)
    except (UpstreamRefused, UpstreamFailed, UpstreamLost) as error:
        if isinstance(error, UpstreamLost) and upstream.capabilities.continues_text:
            raise
        return _NOT_CONTINUED.format(error)
    if whole is not None and shorter is not None and shorter >= whole:
        return _NOT_CONTINUED.format(f"its prompt has {shorter} tokens with the field and {whole} without it")
    return None


async def _ask(upstream: Upstream, model: str, messages: Sequence[object], emitted_text: str = "") -> int | None:
    """Return how many tokens the prompt has, None if the server does not say it."""
    found = None
    request = UpstreamRequest(
        "probe", model, (), SamplingParams(_MOST_TOKENS), messages={"messages": messages}, emitted_text=emitted_text
    )
    try:
        async with asyncio.timeout(LONGEST_S), aclosing(upstream.generate(request)) as pieces:
            async for piece in pieces:
                found = piece.num_prompt_tokens or found
    except TimeoutError:
        raise UpstreamLost(f"the inference server gave no answer to a question within {LONGEST_S:.0f} s") from None
    return found
