"""Equal lines of a batch and the response cache."""

import httpx2
from openai import OpenAI

from tests.features.batches.test_batch_routes import line, make, read
from tests.features.batches.test_batch_routes import wait_for as wait_for_batch
from tests.features.response_cache.test_response_cache import CHAT as CACHED
from tests.features.response_cache.test_response_cache import server
from tests.producer_api.scripted_worker import ScriptedWorker

__all__ = ["server"]


def test_the_equal_lines_of_a_batch_are_computed_once(
    api: httpx2.Client, openai: OpenAI, worker: ScriptedWorker
) -> None:
    lines = [line("a", body=CACHED), line("b", body=CACHED), line("c", body={**CACHED, "max_tokens": 4})]
    with worker.serve(lambda _: ["Hel", "lo"]):
        done = wait_for_batch(openai, make(openai, lines), "completed")
        again = wait_for_batch(openai, make(openai, lines[:1]), "completed")
    for batch, num in ((done, 3), (again, 1)):
        answers = read(openai, batch.output_file_id)
        assert [one["response"]["body"]["choices"][0]["message"]["content"] for one in answers] == ["Hello"] * num
    metrics = api.get("/metrics").text
    for result, num in (("miss", 2), ("shared", 1), ("hit", 1)):
        assert f'headrace_cache_results_total{{result="{result}"}} {num}.0' in metrics
