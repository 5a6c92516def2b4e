"""PNG files without a library for images, for tests of processes that get pictures and decode none."""

import zlib
from base64 import b64encode


def png(shade: int, side: int = 8, *, said: int | None = None) -> bytes:
    """Return a grey PNG file. ``said``: the width and the height in its header, if they are others than its pixels."""
    size = (side if said is None else said).to_bytes(4)
    pixels = zlib.compress((b"\0" + bytes([shade]) * side) * side)
    parts = [(b"IHDR", size + size + bytes([8, 0, 0, 0, 0])), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in parts
    )


def url_of(content: bytes, kind: str = "image/png") -> str:
    """Return a data URL."""
    return f"data:{kind};base64,{b64encode(content).decode()}"
