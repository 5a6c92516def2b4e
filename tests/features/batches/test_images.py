"""A line of a batch has its images."""

from typing import Any

import redis
from openai import OpenAI

from headrace.store.db.database import Database
from tests.features.batches.test_batch_routes import line, make, read
from tests.features.batches.test_batch_routes import wait_for as wait_for_batch
from tests.features.openai.test_chat_images import ONE, TWO, chat, seeing, shown
from tests.producer_api.scripted_worker import ScriptedWorker

__all__ = ["seeing"]


def test_a_line_of_a_batch_has_its_images_and_one_for_a_text_model_fails_alone(
    openai: OpenAI, db: Database, redis_client: redis.Redis
) -> None:
    seen: list[Any] = []

    def say(payload: dict[str, Any]) -> list[str]:
        seen.append(payload["input"]["messages"][0]["images"])
        return ["a mill"]

    bodies = [{name: value for name, value in chat(shown(ONE), shown(TWO)).items() if name != "job"}]
    bodies += [bodies[0] | {"model": "tiny"}]
    with ScriptedWorker(db, redis_client, "seeing@1").serve(say):
        batch = make(openai, [line(str(number), body=body) for number, body in enumerate(bodies)])
        done = wait_for_batch(openai, batch, "completed" if batch.status != "failed" else "failed")
    assert seen == [[{"url": ONE, "at": 0}, {"url": TWO, "at": 0}]]
    (failed,) = read(openai, done.error_file_id)
    assert "no images" in str(failed)
