"""Every table: importing this module is enough for ``metadata`` to hold all of them."""

from importlib import import_module

from headrace.assembly import with_part
from headrace.store.schema import (  # noqa: F401 - importing them adds their tables to the metadata
    check_tables,
    limit_tables,
    model_tables,
    prompt_tables,
    queue_tables,
    usage_tables,
)
from headrace.store.schema.tables import metadata as metadata

for _module in with_part("tables"):
    import_module(_module)
