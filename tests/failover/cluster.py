"""The cluster of the chaos tests with a second server for each service: no proxies, all parts by their addresses."""

from collections.abc import Mapping
from pathlib import Path

from tests.chaos.cluster import Cluster, Shape
from tests.chaos.journal import Journal
from tests.chaos.proxy import FaultProxy
from tests.failover.postgres_pair import PostgresPair
from tests.sentinel import SentinelSet

SHAPE = Shape(apis=3, workers=6, dispatchers=2, settings={"FAKE_STEP_MS": "20", "STREAM_PING_S": "2"}, has_marks=False)
"""The product's own times for leases, sweeps and time-outs."""

DOWN_AFTER_MS = 1000


class FailoverCluster(Cluster):
    """Three APIs, six workers, two dispatchers, Redis with a replica and three Sentinels, Postgres with a standby."""

    def __init__(self, folder: Path, shape: Shape, journal: Journal) -> None:
        super().__init__(folder, shape, journal)
        self.postgres = self.pair = PostgresPair(folder, ("127.0.3.1", "127.0.3.2"))
        self.valkey = self.redis = SentinelSet(
            folder, num_sentinels=3, down_after_ms=DOWN_AFTER_MS, password="failover", hosts="127.0.4.{}"
        )

    def server_pids(self, name: str) -> list[int]:
        """None: the pairs end their own processes."""
        del name
        return []

    def _proxies_of(self, name: str) -> dict[str, FaultProxy]:
        del name
        return {}

    def _addresses(self, role: str, proxies: Mapping[str, FaultProxy]) -> dict[str, str]:
        del proxies
        return {"DATABASE_URL": self.pair.url_for(role), "REDIS_URL": self.redis.url}

    def _tend_servers(self) -> None:
        """Nothing starts a server again: the faults do."""
