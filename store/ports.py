"""Choice of a server's TCP port: the preferred one, or a free one if that is in use."""

import socket


def free_port(host: str, preferred: int) -> int:
    """Return ``preferred`` if nothing listens there, else a free port chosen by the system. 0: any port."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As servers do: otherwise a port with lingering connections would seem to be in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                if port == 0:
                    raise
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("unreachable: port 0 either binds or raises")
