"""The memory of this process, and what it may still allocate: the free memory of the machine, within cgroup limits.

Linux only, from /proc and /sys; None on other systems. Page cache that the kernel can drop counts as free.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the number of free bytes for this process. ``root`` is the folder with ``proc`` and ``sys``."""
    free = _available(root / "proc/meminfo")
    if free is None:
        return None
    return max(0, min([free, *_left_by_groups(root)]))


def forget_peak() -> None:
    """Let the most memory of this process (``ru_maxrss``) be counted from now on, where Linux allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _available(meminfo: Path) -> int | None:
    for line in _lines(meminfo):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield the bytes left in the cgroup of this process and in each of its parents that has a limit."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            home, names = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            home, names = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        # In a container the path is often that of the host, and the own cgroup is mounted at the root.
        groups = [home]
        for part in Path(path).parts[1:]:
            groups.append(groups[-1] / part)
        for group in groups:
            left = _left(group, *names)
            if left is not None:
                yield left


def _left(group: Path, limit_name: str, usage_name: str, droppable_name: str) -> int | None:
    limit, usage = _number(group / limit_name), _number(group / usage_name)
    if limit is None or usage is None:
        return None
    droppable = (line.split() for line in _lines(group / "memory.stat"))
    return limit - usage + sum(int(value) for name, value in droppable if name == droppable_name)


def _number(path: Path) -> int | None:
    """Return the number in a file, or None if there is no file or no limit."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
