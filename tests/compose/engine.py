"""Podman by its command line and its socket, with settings of its own: those of the machine stay as they are."""

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.store.child_process import Child, Command
from headrace.store.settings import child_environment

# runc where there is one: crun refuses machines that mount cgroups of both versions.
_SETTINGS = """[engine]
{runtime}
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
"""

_SOCKET_S = 20.0


class NoEngineError(Exception):
    """There is no podman that can be used here. The text says why."""


class EngineError(Exception):
    """A command failed. The text has the end of what it wrote."""


@dataclass(frozen=True)
class Inspected:
    """What podman tells of one container."""

    raw: dict[str, Any]

    @property
    def pid(self) -> int:
        """Its first process on this machine; 0 while it does not run."""
        return int(self.raw["State"]["Pid"])

    @property
    def status(self) -> str:
        """``running``, ``exited``, ``paused`` and so on."""
        return str(self.raw["State"]["Status"])

    @property
    def health(self) -> str:
        """``healthy``, ``unhealthy``, ``starting``, or empty without a health check."""
        return str((self.raw["State"].get("Health") or {}).get("Status", ""))

    @property
    def num_restarts(self) -> int:
        """How often its restart policy started it again."""
        return int(self.raw["RestartCount"])

    @property
    def addresses(self) -> dict[str, str]:
        """Its address in each network."""
        networks = self.raw["NetworkSettings"]["Networks"] or {}
        return {name: one["IPAddress"] for name, one in networks.items() if one["IPAddress"]}


class Engine:
    """Podman, run as root."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            raise NoEngineError("containers are run as root here: networks are cut and disks are filled")
        if shutil.which("podman") is None:
            raise NoEngineError(
                "podman is not installed (Debian: apt-get install podman runc netavark aardvark-dns uidmap nftables)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "containers.conf"
        runtime = 'runtime = "runc"' if shutil.which("runc") else ""
        files, processes = (_hard(one) for one in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
        settings.write_text(_SETTINGS.format(runtime=runtime, files=files, processes=processes))
        self.env = {
            **child_environment({}),
            "CONTAINERS_CONF_OVERRIDE": str(settings),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }
        self._socket = folder / "podman.sock"
        self.ulimits = [f"--ulimit=nofile={files}:{files}", f"--ulimit=nproc={processes}:{processes}"]

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Yield the address of a socket that speaks Docker's protocol, for Compose and testcontainers."""
        self._socket.unlink(missing_ok=True)
        address = f"unix://{self._socket}"
        argv: list[str | Path] = ["podman", "system", "service", "--time=0", address]
        service = Child(
            Command("podman", argv, self._socket.with_suffix(".log"), env=self.env, cwd=self._socket.parent)
        )
        try:
            until = time.monotonic() + _SOCKET_S
            while not self._socket.exists():
                if time.monotonic() > until or service.exit_code is not None:
                    raise EngineError(f"podman's socket did not open: {service.log_tail()}")
                time.sleep(0.05)
            yield address
        finally:
            service.kill()

    def run(self, *argv: str, timeout_s: float = 120.0, stdin: bytes | None = None) -> str:
        """Return what ``podman argv`` writes. Raises EngineError."""
        try:
            done = subprocess.run(
                ["podman", *argv], env=self.env, capture_output=True, timeout=timeout_s, check=False, input=stdin
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"podman {argv[0]} took longer than {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise EngineError(f"podman {' '.join(argv[:3])}: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout.decode(errors="replace").strip()

    def tell(self, argv: Sequence[str], log: Path, timeout_s: float) -> None:
        """Run a long command with its output in ``log``. Raises EngineError with the log's end."""
        with log.open("a") as out:
            done = subprocess.run(argv, env=self.env, stdout=out, stderr=out, timeout=timeout_s, check=False)
        if done.returncode != 0:
            raise EngineError(f"{' '.join(argv[:3])} failed, see {log}:\n{log.read_text(errors='replace')[-3000:]}")

    def has_image(self, name: str) -> bool:
        """Return whether the image is here."""
        return subprocess.run(["podman", "image", "exists", name], env=self.env, check=False).returncode == 0

    def image_bytes(self, name: str) -> int:
        """The size of an image with all that it lies on."""
        return int(json.loads(self.run("image", "inspect", name))[0]["Size"])

    def inspect(self, container: str) -> Inspected:
        """Raises EngineError if there is none."""
        return Inspected(json.loads(self.run("container", "inspect", container))[0])


def _hard(limit: int) -> int:
    return min(resource.getrlimit(limit)[0], 1 << 20)
