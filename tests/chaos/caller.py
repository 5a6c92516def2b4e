"""A cluster with one worker more, of the task ``call_tool``, and the tool that it calls for each tenant."""

import sys
from pathlib import Path

from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.store.child_process import Child, Command
from headrace.store.db.database import Database
from headrace.store.ports import free_port
from headrace.store.registry.models import register_version
from headrace.store.settings import child_environment
from tests.chaos.cluster import ROOT, Cluster
from tests.chaos.tools import CALLER, MODEL, TOOL

LONGEST_CALL_MS = 30_000
"""No call ends by its time limit: a call that is cut was cut by the death of its worker."""


class CallingCluster(Cluster):
    """A cluster whose orders may be chats that call a tool. The tool writes its calls to ``tools.jsonl``."""

    def _prepare(self) -> None:
        super()._prepare()
        port = free_port("127.0.0.1", 0)
        argv: list[str | Path] = [sys.executable, "-m", "tests.chaos.tools", str(port), self.folder / "tools.jsonl"]
        log = self.folder / "logs" / "tool.log"
        self.helpers.append(Child(Command("tool", argv, log, env=child_environment({}), cwd=ROOT)))
        self._register(f"http://127.0.0.1:{port}/")
        # A quarter of the slots call one tool of a tenant: none is refused as busy when calls have piled up.
        self.add("worker", CALLER, model=MODEL, max_slots="128")

    def _register(self, url: str) -> None:
        runner = CALL_TOOL.fake_runner
        tool = HttpTool(url=url, timeout_ms=LONGEST_CALL_MS, max_attempts=5)
        db = Database(self.database_url, pool_size=1, application_name="chaos setup")
        try:
            register_version(
                db,
                model=MODEL,
                runner=runner,
                source=runner,
                digest=runner,
                dtype="auto",
                context_window=100,
                actor="chaos",
            )
            for tenant in self.tenants:
                tools.create(db, tenant.id, TOOL, tool, actor="chaos")
        finally:
            db.close()
