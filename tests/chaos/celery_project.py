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
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import redis

from headrace.store.child_process import Child, Command
from headrace.store.settings import child_environment
from tests.chaos.broker_log import MARK, Message, read_messages
from tests.chaos.cluster import ROOT, Cluster, Member, Shape, running_cluster

PROJECT = ROOT / "examples" / "celery_project"
VISIBILITY_TIMEOUT_S = 5
_KINDS = ("project-1", "worker-1", "redis", "dispatcher-1", "project-2", "postgres", "worker-2")


@dataclass
class Outcome:
    """What became of the chains. ``doubled``: ends that came once more, with the same text.

    ``taken``: messages that were taken from Redis, and that kombu never noted as taken.
    """

    sent: int
    took_s: float
    killed: list[tuple[str, float]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    doubled: int = 0
    taken: list[Message] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if each chain ended, with one text."""
        return not (self.lost or self.differing)

    def __str__(self) -> str:
        killed = ", ".join(f"{name} {at:.2f}" for name, at in self.killed)
        return (
            f"{self.sent} chains in {self.took_s:.0f} s: lost {len(self.lost)}, with two texts {len(self.differing)}, "
            f"ended again with the same text {self.doubled}\nkilled: {killed}\n"
            f"messages that Redis gave out and kombu did not note: {len(self.taken)}"
            + "".join(f"\n  {one.task} {one.args} at {one.mark}" for one in self.taken)
            + f"\nlost: {self.lost[:20]}"
        )


class _Project:
    """The processes of the project beside a cluster, which starts them again."""

    def __init__(self, cluster: Cluster, num_workers: int, send_again_s: float) -> None:
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
                "SEND_AGAIN_S": str(send_again_s),
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
            connection.execute("CREATE TABLE IF NOT EXISTS answers (number int NOT NULL, text text NOT NULL)")
            for number, text in connection.execute("SELECT number, text FROM answers"):
                found[number].append(text)
        return found


def run(
    num_chains: int,
    *,
    kills: int,
    kill_every_s: float,
    timeout_s: float,
    send_again_s: float = float("inf"),
    keep_logs: Path | None = None,
) -> Outcome:
    """Send the chains under so many kills; return when each has ended, or none ended for ``timeout_s``."""
    shape = Shape(apis=1, workers=2, dispatchers=1, has_marks=False)
    with running_cluster(shape, keep_logs=keep_logs) as cluster:
        project = _Project(cluster, 2, send_again_s)
        outcome = Outcome(num_chains, 0.0)
        kinds = cycle(_KINDS)
        with redis.from_url(cluster.redis_url) as broker:
            began = time.monotonic()
            sender = project.send(num_chains)
            cluster.helpers.append(sender)
            kill_at, num_ended, ended_at = began + kill_every_s, 0, began
            while sender.exit_code is None and (now := time.monotonic()) < ended_at + timeout_s:
                cluster.tend()
                with suppress(redis.RedisError):
                    broker.set(MARK, f"{now - began:.2f} s")
                if now >= kill_at and len(outcome.killed) < kills:
                    cluster.kill(name := next(kinds))
                    outcome.killed.append((name, now - began))
                    kill_at = now + kill_every_s
                if (ended := len(project.read())) > num_ended:
                    num_ended, ended_at = ended, now
                time.sleep(0.05)
            outcome.took_s = ended_at - began
        found = project.read()
        outcome.taken = [one for one in read_messages(cluster.folder / "kv", 1) if one.state == "taken"]
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
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds without an end of a chain")
    parser.add_argument("--send-again", type=float, default=float("inf"), help="seconds until a chain is sent again")
    parser.add_argument("--logs", type=Path)
    asked = parser.parse_args()
    outcome = run(
        asked.chains,
        kills=asked.kills,
        kill_every_s=asked.kill_every,
        timeout_s=asked.timeout,
        send_again_s=asked.send_again,
        keep_logs=asked.logs,
    )
    sys.stdout.write(f"{outcome}\n")
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
