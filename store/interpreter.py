"""How the interpreter is set up in a process that serves many callers at once: its threads and its garbage collector.

Call ``settle`` once, when everything is imported and built and before the first job. It knows nothing of what runs.
"""

import gc
import sys

SWITCH_S = 0.0005
"""A thread waits this long before it asks a busy one for the interpreter; Python's own 5 ms, paid after every answer
from Postgres and Redis, made a wave's thread wait for a busy event loop longer than for the disk."""

_YOUNG_OBJECTS = 10_000


def settle() -> None:
    """Let threads take turns quickly, and the collector look at what comes from now on and no more.

    What was imported, some hundred thousand objects, stays for as long as the process does; to search it again and
    again for garbage costs a tenth of the CPU under load. What a job leaves is freed by counting references, so young
    objects need looking at less often, too.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
