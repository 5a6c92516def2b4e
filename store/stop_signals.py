"""Stop signals (SIGTERM, SIGINT), none of which is lost.

A handler must not raise: Python drops exceptions that are raised while it runs a callback of its own, for example the
callback of a weak reference that frees a module's lock after an import; the process would go on for ever. A handler
must not take a lock either, as ``threading.Event.set`` does: the interrupted code may hold it. So a handler only puts
the signal into a ``SimpleQueue``, which is reentrant, and a thread does the rest.
"""

import signal
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import FrameType

Handler = Callable[[int, FrameType | None], None]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_stop_signals(stop: Callable[[], None], numbers: Sequence[signal.Signals] = STOP_SIGNALS) -> Handler:
    """Call ``stop`` on a thread of its own for each of these signals that comes from now on.

    Call it from the main thread. Returns the handler, to be installed again after a library has installed another.
    """
    heard = SimpleQueue[int]()

    def handle(number: int, _frame: FrameType | None) -> None:
        heard.put(number)

    def obey() -> None:
        while True:
            heard.get()
            stop()

    threading.Thread(target=obey, name="stop-signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, handle)
    return handle
