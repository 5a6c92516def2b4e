"""Runs ``benchmarks.bare`` in a process of its own, so that the one that asks needs no torch and shares no threads."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

from benchmarks.workload import ChatJob
from headrace.cli.local.home import StackRecord
from headrace.store.settings import child_environment


def measure(kind: str, record: StackRecord, model: str, jobs: list[ChatJob]) -> dict[str, Any]:
    """Run one measurement in a process of its own, beside a stack that is idle."""
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare", kind, model],
        env=child_environment(
            {"DATABASE_URL": record.database_url, "REDIS_URL": record.redis_url, "HEADRACE_DTYPE": "float32"}
        ),
        input=json.dumps([dataclasses.asdict(job) for job in jobs]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result
