"""Trace contexts of the W3C header ``traceparent``: which trace, which span in it, and whether its spans are exported.

The row of a job holds the header, so that every process finds the job's trace and adds its spans.
"""

import re
import secrets
from dataclasses import dataclass, replace
from hashlib import blake2b

# Version 00 has four fields; later versions may have more. Version ff and ids of zeros are invalid.
_HEADER = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of a trace. ``trace_id``: 32 hexadecimal digits, ``span_id``: 16. Unsampled: nothing is exported."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @property
    def header(self) -> str:
        """The value of ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"

    def child(self, span_id: str | None = None) -> "TraceContext":
        """Return another span of the trace; without ``span_id`` its id is random."""
        return replace(self, span_id=span_id or new_span_id())


def read_traceparent(header: str | None) -> TraceContext | None:
    """Return the context of a ``traceparent`` header; None if there is none or it is invalid, as W3C asks."""
    found = _HEADER.fullmatch(header or "")
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    return TraceContext(found["trace"], found["span"], bool(int(found["flags"], 16) & _SAMPLED))


def new_trace_id() -> str:
    """Return a random trace id."""
    return secrets.token_hex(16)


def new_span_id() -> str:
    """Return a random span id."""
    return secrets.token_hex(8)


def attempt_span_id(job_id: str, epoch: int) -> str:
    """Return the span id of an attempt. It is the same in every process, so each can link to the attempt."""
    return blake2b(f"{job_id} {epoch}".encode(), digest_size=8).hexdigest()
