"""A line of a batch takes what it leaves out from the version's record."""

from typing import Any

from openai import OpenAI

from headrace.store.db.database import Database
from tests.features.batches.test_batch_routes import make
from tests.features.batches.test_batch_routes import wait_for as wait_for_batch
from tests.features.openai.test_sampling import SET, model
from tests.producer_api.calling import CHAT
from tests.producer_api.scripted_worker import ScriptedWorker

__all__ = ["model"]


def test_a_batch_line_takes_what_it_leaves_out_from_the_record(
    openai: OpenAI, worker: ScriptedWorker, db: Database
) -> None:
    seen: list[dict[str, Any]] = []
    with worker.serve(lambda payload: seen.append(payload["sampling"]) or ("hi",)):
        batch = make(openai, [{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}])
        wait_for_batch(openai, batch, "completed")
    assert [{name: sampling[name] for name in SET} for sampling in seen] == [SET]
