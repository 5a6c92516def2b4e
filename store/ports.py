"""Choice of a server's TCP port: the preferred one, or a free one if that is in use."""

import random
import socket
import threading
from collections import deque

_TRIES = 50
# The system gives higher ports to outgoing connections, so one of them may be taken before the server listens on it, or
# while the server is started anew.
_OWN_PORTS = range(31_000, 32_768)
# Those that this process chose last: their servers may not listen yet.
_chosen: deque[int] = deque(maxlen=len(_OWN_PORTS) // 2)
_lock = threading.Lock()


def free_port(host: str, preferred: int) -> int:
    """Return ``preferred`` if nothing listens there, else another port. 0: any port. Raises OSError for a bad host.

    The other ports that a process gets differ, also while nothing listens on them yet.
    """
    with _lock:
        port = _found(host, preferred)
        _chosen.append(port)
    return port


def _found(host: str, preferred: int) -> int:
    others = random.SystemRandom().sample([port for port in _OWN_PORTS if port not in _chosen], _TRIES)
    refused = OSError("no port")
    for port in (preferred, *others) if preferred else others:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As servers do: otherwise a port with lingering connections would seem to be in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                refused = error
                continue
            return port
    raise refused
