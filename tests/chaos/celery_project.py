"""The project of ``examples/celery_project`` under kills: ``make celery-kills``.

Chains of a task of the project, a job, and a task of the project are sent, while both workers of the project, a worker
of Headrace, the dispatcher, Redis and Postgres are killed in turn. Each chain must end, and no chain with two texts.
"""

import argparse
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from headrace.store.child_process import Child, Command
from headrace.store.settings import child_environment
from tests.chaos.cluster import ROOT, Cluster, Member, Shape, running_cluster

PROJECT = ROOT / "examples" / "celery_project"
VISIBILITY_TIMEOUT_S = 5
_KINDS = ("project-1", "worker-1", "redis", "dispatcher-1", "project-2", "postgres", "worker-2")


@dataclass
class Outcome:
    """What became of the chains. ``doubled``: ends that came once more, with the same text."""

    sent: int
    took_s: float
    kills: dict[str, int] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    doubled: int = 0

    @property
    def is_good(self) -> bool:
        """True if each chain ended, with one text."""
        return not (self.lost or self.differing)

    def __str__(self) -> str:
        killed = ", ".join(f"{name} {times}" for name, times in sorted(self.kills.items()))
        return (
            f"{self.sent} chains in {self.took_s:.0f} s: lost {len(self.lost)}, with two texts {len(self.differing)}, "
            f"ended again with the same text {self.doubled}\nkilled: {killed}"
        )


class _Project:
    """The processes of the project beside a cluster, which starts them again."""

    def __init__(self, cluster: Cluster, num_workers: int) -> None:
        self._cluster = cluster
        self.answers = cluster.folder / "answers.sqlite"
        path = cluster.redis_url.removeprefix("unix://").partition("?")[0]
        self._environment = child_environment(
            {
                "HEADRACE_API_URL": cluster.api_urls[0],
                "HEADRACE_API_KEY": cluster.tenants[0].key,
                "CELERY_BROKER_URL": f"redis+socket://{path}?virtual_host=1",
                "CELERY_RESULT_BACKEND": f"redis+socket://{path}?virtual_host=2",
                "VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
                "SEND_AGAIN_S": "60",
                "ANSWERS": str(self.answers),
                "PYTHONPATH": str(ROOT),
            }
        )
        for number in range(num_workers):
            name = f"project-{number + 1}"
            arguments = ["-m", "celery", "-A", "project", "worker", "-c", "2", "-n", f"{name}@%h", "-l", "INFO"]
            member = Member("project", name, 0, self._command(name, arguments))
            cluster.members.append(member)
            member.start()

    def _command(self, name: str, arguments: list[str]) -> Callable[[Mapping[str, str]], Command]:
        argv: list[str | Path] = [sys.executable, *arguments]
        command = Command(name, argv, self._cluster.log_of(name), env=self._environment, cwd=PROJECT)
        return lambda _extra: command

    def send(self, number: int) -> Child:
        """Start to send; the process ends when all chains have ended."""
        return Child(self._command("send", ["send.py", str(number), "fake"])({}))

    def read(self) -> dict[int, list[str]]:
        """Return the texts of each chain's end."""
        found: dict[int, list[str]] = defaultdict(list)
        with closing(sqlite3.connect(self.answers)) as connection:
            for number, text in connection.execute("SELECT number, text FROM answers"):
                found[number].append(text)
        return found


def run(
    num_chains: int, *, kills: int, kill_every_s: float, timeout_s: float, keep_logs: Path | None = None
) -> Outcome:
    """Send the chains under so many kills; return when each has ended, or ``timeout_s`` is over."""
    shape = Shape(apis=1, workers=2, dispatchers=1, has_marks=False)
    with running_cluster(shape, keep_logs=keep_logs) as cluster:
        project = _Project(cluster, 2)
        outcome = Outcome(num_chains, 0.0)
        began = time.monotonic()
        sender = project.send(num_chains)
        cluster.helpers.append(sender)
        kill_at = began + kill_every_s
        kinds = cycle(_KINDS)
        while sender.exit_code is None and time.monotonic() < began + timeout_s:
            cluster.tend()
            if time.monotonic() >= kill_at and sum(outcome.kills.values()) < kills:
                name = next(kinds)
                cluster.kill(name)
                outcome.kills[name] = outcome.kills.get(name, 0) + 1
                kill_at = time.monotonic() + kill_every_s
            time.sleep(0.05)
        outcome.took_s = time.monotonic() - began
        found = project.read()
    outcome.lost = [number for number in range(num_chains) if number not in found]
    outcome.differing = [number for number, texts in found.items() if len(set(texts)) > 1]
    outcome.doubled = sum(len(texts) - 1 for texts in found.values())
    return outcome


def main() -> int:
    """Run it with the numbers of the command line; 1 if a chain was lost or ended with two texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=28)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds")
    parser.add_argument("--logs", type=Path)
    asked = parser.parse_args()
    outcome = run(
        asked.chains,
        kills=asked.kills,
        kill_every_s=asked.kill_every,
        timeout_s=asked.timeout,
        keep_logs=asked.logs,
    )
    sys.stdout.write(f"{outcome}\n")
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
