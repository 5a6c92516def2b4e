"""Asks a server of chat completions about one small picture: its API does not say whether its model takes images."""

import asyncio
from base64 import b64decode, b64encode
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
_MOST_TOKENS = 16  # some models refuse one token


async def why_no_images(upstream: Upstream, model: str) -> str | None:
    """Return why the server's model takes no images, None if it has answered about one. Raises UpstreamLost."""
    url = f"data:image/png;base64,{b64encode(PICTURE).decode()}"
    parts = [{"type": "text", "text": "Name the colour."}, {"type": "image_url", "image_url": {"url": url}}]
    messages: dict[str, object] = {"messages": [{"role": "user", "content": parts}]}
    request = UpstreamRequest("image-probe", model, (), SamplingParams(_MOST_TOKENS), messages=messages)
    try:
        async with asyncio.timeout(LONGEST_S), aclosing(upstream.generate(request)) as pieces:
            async for _ in pieces:
                pass
    except (UpstreamRefused, UpstreamFailed) as error:
        return f"the version was registered with --accepts images, and its server takes none: {error}"
    except TimeoutError:
        raise UpstreamLost(f"the inference server gave no answer about a picture within {LONGEST_S:.0f} s") from None
    return None
