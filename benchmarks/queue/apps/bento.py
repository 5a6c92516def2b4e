"""(d) BentoML: a background task, and for scale the same as a batching endpoint."""

import bentoml


@bentoml.service(workers=1, metrics={"enabled": False}, traffic={"timeout": 60, "max_concurrency": 256})
class Service:
    @bentoml.task
    def work(self, text: str) -> str:
        return text.upper()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def batch(self, text: list[str]) -> list[str]:
        return [each.upper() for each in text]
