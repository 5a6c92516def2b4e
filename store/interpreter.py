"""Settings of the Python interpreter for a process with many callers: thread switching and garbage collection.

Call ``settle`` once, when everything is imported and built and before the first job.
"""

import gc
import sys

SWITCH_S = 0.0005
"""A thread waits this long before it requests the interpreter from a busy one. Python's default is 5 ms: after every
answer from Postgres and Redis, a group commit waited longer for the event loop than for the disk."""

_YOUNG_OBJECTS = 10_000


def settle() -> None:
    """Make threads switch quickly, and exclude all present objects from garbage collection.

    The imported objects, some hundred thousand, live as long as the process; scanning them again and again costs a
    tenth of the CPU under load. The objects of a job are freed by reference counting, so young objects are scanned less
    often, too.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
