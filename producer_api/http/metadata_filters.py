"""The filter ``metadata[key]=value`` of lists."""

import re
from collections.abc import Collection

from starlette.requests import Request

from headrace.store.errors import InvalidRequest

_METADATA = re.compile(r"metadata\[(.{1,64})\]")


def metadata_filters(request: Request, others: Collection[str]) -> dict[str, str]:
    """Return the filters by metadata; raise InvalidRequest for a parameter that is neither one nor in ``others``."""
    wanted = {}
    for name, value in request.query_params.items():
        if (match := _METADATA.fullmatch(name)) is not None:
            wanted[match[1]] = value
        elif name not in others:
            known = ", ".join(sorted(others))
            raise InvalidRequest(
                f"`{name[:64]}` is not a filter: use {known} or metadata[key]",
                code="unsupported_parameter",
                param=name[:64],
            )
    return wanted
