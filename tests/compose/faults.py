"""What is done to the stack under load. Each fault returns when it is repaired; the load never stops."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from tests.compose.engine import Engine, EngineError
from tests.compose.images import CONTROL, WORKER
from tests.compose.stack import APIS, FAKE_WORKERS, LASTING, READY_S, Stack

AGAIN_S = 120.0
"""Longest time for a killed container to run again."""

PAUSED_S = 15.0
"""Longer than a lease (10 s)."""

CUT_S = 15.0
FULL_S = 12.0
INSIDE = "inside"
_LOOK_S = 0.1

Fault = Callable[[Stack], None]


def kill(service: str) -> Fault:
    """End its first process as the kernel would for want of memory; its restart policy starts it again."""

    def strike(stack: Stack) -> None:
        pid = stack.inspect(service).pid
        os.kill(pid, signal.SIGKILL)
        stack.journal.write("exit", member=_kind(service), name=service, pid=pid, code=-9)
        until = time.monotonic() + AGAIN_S
        while (again := stack.inspect(service)).pid in (0, pid) or again.status != "running":
            if time.monotonic() > until:
                raise EngineError(f"{service} was not started again: {again.status}, {stack.tail(service)}")
            time.sleep(_LOOK_S)

    return strike


def pause(service: str) -> Fault:
    """Freeze it for longer than a lease."""

    def strike(stack: Stack) -> None:
        stack.engine.run("pause", stack.container(service))
        stack.journal.write("signal", member=_kind(service), name=service, signal="freeze")
        time.sleep(PAUSED_S)
        stack.engine.run("unpause", stack.container(service))

    return strike


def disconnect(service: str) -> Fault:
    """Take it out of the inner network, and put it back under its name."""

    def strike(stack: Stack) -> None:
        network = next(name for name in stack.inspect(service).addresses if name.endswith(f"_{INSIDE}"))
        container = stack.container(service)
        stack.engine.run("network", "disconnect", network, container)
        time.sleep(CUT_S)
        stack.engine.run("network", "connect", "--alias", service, network, container)

    return strike


def drop(service: str, server: str) -> Fault:
    """Lose every packet between two containers, without an error to either."""

    def strike(stack: Stack) -> None:
        address = stack.inspect(server).addresses
        with _rules(stack, service, list(address.values())):
            time.sleep(CUT_S)

    return strike


@contextmanager
def _rules(stack: Stack, service: str, addresses: list[str]) -> Iterator[None]:
    inside = ["nsenter", "-t", str(stack.inspect(service).pid), "-n", "iptables"]
    rules = [(chain, way, one) for one in addresses for chain, way in (("INPUT", "-s"), ("OUTPUT", "-d"))]
    for chain, way, one in rules:
        subprocess.run([*inside, "-I", chain, way, one, "-j", "DROP"], check=True, capture_output=True)
    try:
        yield
    finally:
        for chain, way, one in rules:
            subprocess.run([*inside, "-D", chain, way, one, "-j", "DROP"], check=True, capture_output=True)


def fill(stack: Stack) -> None:
    """Leave Postgres no byte, until it has noticed."""
    stack.fill_disk()
    until = time.monotonic() + FULL_S
    while time.monotonic() < until:
        with suppress(psycopg.Error, EngineError, StopIteration):
            stack.ask("CREATE TABLE IF NOT EXISTS filled AS SELECT repeat('x', 100) FROM generate_series(1, 1000)")
            stack.ask("DROP TABLE filled")
        time.sleep(1)
    stack.free_disk()


def update(*services: str) -> Fault:
    """A rolling update: another image under the same name, and one container after another made again from it."""

    def strike(stack: Stack) -> None:
        for service in services:
            stack.keep_log(service)
            stack.compose("up", "-d", "--no-build", "--no-deps", "--force-recreate", service)
            stack.wait_healthy((service,), READY_S)

    return strike


def renew_images(engine: Engine, folder: str) -> None:
    """Give both names other images than those that run: the same files, another release."""
    for name in (CONTROL, WORKER):
        file = f"FROM {name}\nLABEL headrace.release=next\n"
        engine.run("build", *engine.ulimits, "--pull=never", "-t", name, "-f", "-", folder, stdin=file.encode())


def plan() -> list[tuple[str, Fault]]:
    """Every fault once, with its name."""
    return [
        *((f"kill {one}", kill(one)) for one in LASTING),
        ("lose packets worker-fake, valkey", drop("worker-fake", "valkey")),
        ("lose packets api, postgres", drop("api", "postgres")),
        ("full disk of postgres", fill),
        ("update of the APIs", update(*APIS)),
        ("update of the workers", update(*FAKE_WORKERS)),
        ("update of the dispatcher", update("dispatcher")),
        *((f"disconnect {one}", disconnect(one)) for one in ("valkey", "postgres", "worker-fake", "api", "dispatcher")),
        *((f"pause {one}", pause(one)) for one in LASTING),
    ]


def _kind(service: str) -> str:
    kind = service.partition("-")[0]
    return "redis" if kind == "valkey" else kind
