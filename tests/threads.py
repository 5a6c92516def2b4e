"""Threads of this process, by the names that the product gives them."""

import threading


def threads_named(name: str) -> set[threading.Thread]:
    """Return the threads with this name that have started and not ended."""
    return {thread for thread in threading.enumerate() if thread.name == name}
