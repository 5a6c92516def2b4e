"""Lets the other threads of a machine go first: a bulk computation beside an interactive model on the same cores."""

import os

PATIENCE = 10
"""A step of a thread that gives way may take so many times as long before it counts as stuck."""


def give_way() -> None:
    """Give every other thread that wants this core the core at once; threads that this one starts do so too.

    This is Linux's policy SCHED_IDLE: the thread computes in the gaps that the others leave. With a lower priority
    alone (``nice``) an awakened thread waits until this one's slice has ended, at each of its many awakenings. The
    policy cannot be undone without privileges. On a system without it, as macOS, nothing is done.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
