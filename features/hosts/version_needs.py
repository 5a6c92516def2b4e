"""What a version needs on this machine: memory and seconds to load, as measured, or an estimate before."""

from pathlib import Path

from headrace.store.child_process import descendants
from headrace.store.hosts.hosted_versions import PROCESS_START_S, HostedVersion

_PROCESS_BYTES = 512 << 20
"""A worker without weights: Python, torch, connections."""

_READ_BYTES_PER_S = 500 << 20


class VersionNeeds:
    """Memory and load times: the greatest memory seen here or at verification, the last start seen here."""

    def __init__(self) -> None:
        self._memory: dict[str, int] = {}
        self._start_s: dict[str, float] = {}
        self._folders: dict[str, int] = {}

    def memory_bytes(self, version: HostedVersion) -> int:
        """Return the memory of the version's worker, with an inference server that the worker starts."""
        measured = version.memory_bytes or self._memory.get(version.queue, 0)
        return max(measured, self._memory.get(version.queue, 0)) or _PROCESS_BYTES + self.weights(version)

    def load_s(self, version: HostedVersion) -> float:
        """Return the seconds from the start of a worker until it takes jobs."""
        if version.queue in self._start_s:
            return self._start_s[version.queue]
        measured_s = version.start_s
        return PROCESS_START_S + self.weights(version) / _READ_BYTES_PER_S if measured_s is None else measured_s

    def saw_memory(self, queue: str, num_bytes: int) -> None:
        """Note the memory of a worker that serves."""
        self._memory[queue] = max(num_bytes, self._memory.get(queue, 0))

    def saw_start(self, queue: str, seconds: float) -> None:
        """Note the time of a start."""
        self._start_s[queue] = seconds

    def weights(self, version: HostedVersion) -> int:
        """Return an estimate of the weights in memory: the size of the files, doubled for float32.

        A server that the operator runs has them in its own memory.
        """
        if not version.source or (version.engine is not None and version.engine.url is not None):
            return 0
        if version.queue not in self._folders:
            self._folders[version.queue] = _size(Path(version.source))
        return self._folders[version.queue] * (2 if version.dtype == "float32" else 1)


def _size(folder: Path) -> int:
    """Return the bytes of the weights in a folder; 0 if it is not on this machine."""
    try:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    except OSError:
        return 0


def used_memory(pid: int) -> int:
    """Return the memory of a process and its descendants now, in bytes; 0 without /proc."""
    return sum(_resident_bytes(one) for one in (pid, *descendants(pid)))


def _resident_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "VmRSS:"), 0)
