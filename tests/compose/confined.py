"""What each container may do, as the kernel tells it, and what its health check says of a process that hangs."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.compose.stack import LASTING, ONCE, Stack

# The longest of the checks waits 6 s for its answer.
_NOTICED_S = 10.0
_REFUSED = ("permission denied", "insufficientprivilege", "read-only file system")
_SECCOMP_FILTERS = 2


def check_confined(stack: Stack) -> list[str]:
    """Every process of every container that breaks a rule of docs/hardening.md, with the rule."""
    return [
        f"{service}: {problem}"
        for service in LASTING
        for pid in stack.pids(service)
        for problem in _beyond(Path(f"/proc/{pid}"))
    ]


def _beyond(process: Path) -> Iterator[str]:
    try:
        lines = (process / "status").read_text().splitlines()
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return  # It has ended.
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    name = " ".join(status["Name"])
    if "0" in (*status["Uid"], *status["Gid"]):
        yield f"{name} runs as root"
    if any(int(status[kind][0], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")):
        yield f"{name} has capabilities"
    if status["NoNewPrivs"] != ["1"]:
        yield f"{name} can gain rights"
    if int(status["Seccomp"][0]) != _SECCOMP_FILTERS:
        yield f"{name} may make every system call"
    (root,) = (mount[5].split(",") for mount in mounts if mount[4] == "/")
    if "ro" not in root:
        yield f"{name} can write to its root file system"


def check_health(stack: Stack) -> list[str]:
    """Services whose check is content while they hang, and APIs that call themselves ready without Postgres."""
    wrong = list[str]()
    for service in LASTING:
        asked = (service, "api") if service == "postgres" else (service,)
        hanging = stack.pids(service)
        _signal(hanging, signal.SIGSTOP)
        try:
            wrong += [f"{one} is called healthy while {service} hangs" for one in asked if not _noticed(stack, one)]
        finally:
            _signal(hanging, signal.SIGCONT)
    return wrong


def _signal(pids: list[int], what: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, what)


def _noticed(stack: Stack, service: str) -> bool:
    until = time.monotonic() + _NOTICED_S
    while time.monotonic() < until:
        if not stack.is_content(service):
            return True
    return False


def check_rights(stack: Stack) -> list[str]:
    """What the database or the kernel refused a process: each process has a role of its own here, and no root."""
    for service in ONCE:
        stack.keep_log(service)
    logs = sorted((stack.folder / "logs").glob("*.log"))
    refused = (
        f"{log.stem}: {line.strip()[:300]}"
        for log in logs
        for line in log.open(errors="replace")
        if any(word in line.lower() for word in _REFUSED)
    )
    return sorted(set(refused))
