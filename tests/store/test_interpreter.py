"""The interpreter's settings, in a process of their own: they are not for the tests."""

import subprocess
import sys

_PROGRAM = """
import gc, sys
from headrace.store import interpreter
interpreter.settle()
assert sys.getswitchinterval() == interpreter.SWITCH_S, sys.getswitchinterval()
assert gc.isenabled()
assert gc.get_threshold() == (10_000, 20, 20), gc.get_threshold()
assert interpreter.SWITCH_S == 0.0005
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
class Loop: pass
loops = [Loop() for _ in range(30_000)]
for loop in loops: loop.itself = loop
collected = gc.get_stats()[0]["collected"]
del loops, loop
kept = [[] for _ in range(30_000)]
assert sum(stat["collected"] for stat in gc.get_stats()) > collected, "cycles that come later are still found"
"""


def test_threads_take_turns_quickly_and_what_was_imported_is_not_searched_for_garbage() -> None:
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True, timeout=60)
