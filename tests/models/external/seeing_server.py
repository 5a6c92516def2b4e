"""A scripted server that answers a question about a picture."""

import asyncio
from collections.abc import AsyncGenerator

from headrace.models.external.upstream import Piece, UpstreamRequest
from tests.models.external.test_external_engine import Script


class Eyes(Script):
    """A server that sees, or says why not."""

    async def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        self.sent.append(request)
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
        if not self.pieces:
            await asyncio.Event().wait()
