"""Which TCP port a server gets: the one asked for, or a free one when that is taken."""

import socket


def free_port(host: str, preferred: int) -> int:
    """Return ``preferred`` if nothing listens there, else a port the system picks; 0 asks for any."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As servers do, or a port whose last connections linger would seem taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                if port == 0:
                    raise
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("unreachable: port 0 either binds or raises")
