"""Lines of batches with chats whose model calls tools of the server."""

from typing import Any

import httpx2
import redis
from openai import OpenAI

from models.catalog import register
from store.db.database import Database
from store.registry.models import register_version
from store.tasks.call_tool import CALL_TOOL
from tests.processes import wait_for
from tests.producer_api.batches.test_batch_routes import make, read
from tests.producer_api.batches.test_batch_routes import wait_for as wait_for_status
from tests.producer_api.turn_worker import TurnWorker

CALL = '{"name": "calculator", "arguments": {"expression": "2+3"}}'


def line(custom_id: str, names: list[str]) -> dict[str, Any]:
    asked = {"model": "wide", "messages": [{"role": "user", "content": "2+3?"}], "server_tools": {"names": names}}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def test_a_line_may_call_tools_and_one_with_an_unknown_tool_fails_alone(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    runner = CALL_TOOL.fake_runner
    register(db, "wide", "fake", "auto", actor="t")
    register_version(
        db, model="tools", runner=runner, source=runner, digest=runner, dtype="auto", context_window=100, actor="t"
    )
    batch = make(openai, [line("good", ["calculator"]), line("bad", ["gone"])])
    (job,) = wait_for(lambda: api.get("/v1/jobs").json()["data"], "the job of the line")
    worker = TurnWorker(db, redis_client, api, job["id"])
    worker.say("answer", CALL)
    worker.call("answer:1", "5")
    held = worker.say("answer:2", "Five.")
    assert held.payload["input"]["messages"][-1]["content"] == "5"
    done = wait_for_status(openai, batch, "completed")
    (good,), (bad,) = read(openai, done.output_file_id), read(openai, done.error_file_id)
    message = good["response"]["body"]["choices"][0]["message"]
    assert (good["custom_id"], message["content"], message.get("tool_calls")) == ("good", "Five.", None)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 404)
    assert bad["response"]["body"]["error"]["param"] == "server_tools.names[0]"
    shown = api.get(f"/v1/jobs/{job['id']}").json()
    assert (shown["service_class"], len(shown["steps"])) == ("batch", 3)
