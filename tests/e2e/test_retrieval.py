"""The official client asks for answers from a file; a worker is killed at the end of the first search."""

import signal

import pytest
from openai import OpenAI
from openai.types.chat.chat_completion_message import Annotation
from openai.types.responses import ResponseFileSearchToolCall, ResponseOutputMessage

from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.e2e.test_embeddings import calling, worker
from tests.e2e.test_vector_stores import MILL, upload
from tests.processes import StartProcess
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment

QUESTION = "What leads water back to the river?"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_chat_is_answered_from_a_file_although_workers_die(
    settings: Settings, db: Database, start_process: StartProcess
) -> None:
    benches = [Bench(db, settings, register(db, "vectors", "fake-encoder", "auto", actor="tests"))]
    benches.append(Bench(db, settings, register(db, "writer", "fake", "auto", actor="tests")))
    duties = [Duties(bench) for bench in benches]
    for one in duties:
        one.start()
    try:
        with calling(settings, db, benches[0].tenant_id) as client:
            ended, annotations, file = _ask(client, settings, start_process)
        ends = benches[0].query(
            "SELECT step, attempt FROM jobs WHERE parent_id = :id ORDER BY step", id=str(ended["id"])
        )
        assert ended["status"] == "succeeded"
        assert [(one.step, one.attempt) for one in ends] == [("answer", 1), ("answer:search", 2)]
        assert {one.model_extra["file_id"] for one in annotations if one.model_extra} == {file}
    finally:
        for one in duties:
            one.stop()
        for bench in benches:
            bench.close()


def _ask(
    client: OpenAI, settings: Settings, start_process: StartProcess
) -> tuple[dict[str, object], list[Annotation], str]:
    """Kill the worker of a job's search, start others; return the job, a chat's annotations, and the file's id."""
    killed = {"environment": "test", "failpoints": "flow.before_commit=kill"}
    process = start_process(worker_command("vectors"), worker_environment(settings, killed))
    store = client.vector_stores.create()
    file = upload(client, "mill.md", MILL)
    client.vector_stores.files.create_and_poll(file, vector_store_id=store.id, poll_interval_ms=20)
    sent = {
        "model": "writer",
        "input": {"messages": [{"role": "user", "content": QUESTION}]},
        "sampling": {"max_tokens": 8},
        "retrieval": {"vector_store_ids": [store.id], "max_num_results": 2},
    }
    job = client.post("/jobs", body=sent, cast_to=dict[str, object])
    assert process.wait_exit() == -signal.SIGKILL
    with worker(start_process, settings, "vectors"), worker(start_process, settings, "writer"):
        chat = client.chat.completions.create(
            model="writer",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=8,
            extra_body={"retrieval": {"vector_store_ids": [store.id]}},
        )
        response = client.responses.create(
            model="writer",
            input=QUESTION,
            max_output_tokens=8,
            tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
            include=["file_search_call.results"],
        )
        ended = client.get(f"/jobs/{job['id']}?wait=30", cast_to=dict[str, object])
    search, answer = response.output
    assert isinstance(search, ResponseFileSearchToolCall)
    assert search.results
    assert {one.file_id for one in search.results} == {file}
    assert isinstance(answer, ResponseOutputMessage)
    assert response.output_text
    said = chat.choices[0].message
    assert said.content
    assert said.annotations
    return ended, said.annotations, file
