"""Every route of the OpenAPI document, called by Schemathesis with requests generated from its schema."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from headrace.cli.local.stack import Stack, running_stack
from headrace.store.settings import Settings, child_environment
from tests.e2e.running import REPOSITORY
from tests.folders import reachable_folder
from tests.processes import free_port

# Without "positive_data_acceptance": a valid body may name a model that does not exist.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "use_after_free",
)
# Every waiting call must get an answer, however long the output; no limit may be reached.
CHANGES = {
    "HEADRACE_FAKE_STEP_MS": "0",
    "HEADRACE_DRAIN_S": "0.5",
    "HEADRACE_MAX_WAIT_S": "0.2",
    "HEADRACE_REQUESTS_PER_MINUTE": "1000000",
    "HEADRACE_TOKENS_PER_MINUTE": "1000000000",
}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All processes, with the models without weights."""
    with reachable_folder() as folder:
        settings = Settings(home=folder, api_port=free_port(), flower_port=free_port(), worker_metrics_port=free_port())
        with running_stack(settings, ["fake", "fake-encoder", "fake-classifier"], lambda _: None, CHANGES) as stack:
            yield stack


# Without --full: routes of each kind (a job, a file, a list), and no body that another route has too.
SOME = "^/v1/(chat/completions|jobs|files|batches)(/|$)"
SAID_ELSEWHERE = "^/v1/jobs$"


def _configuration(client: OpenAI, *, is_full: bool) -> str:
    """Return a configuration with the hooks, and with ids of existing objects for path parameters."""
    answer = client.chat.completions.with_raw_response.create(model="fake", messages=[{"role": "user", "content": "x"}])
    line = b'{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "fake", "prompt": "x"}}\n'
    file = client.files.create(file=("input.jsonl", line), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    known = {
        "job_id": answer.headers["x-job-id"],
        "name": "fake@1",
        "model": "fake",
        "file_id": file.id,
        "batch_id": batch.id,
        "response_id": client.responses.create(model="fake", input="x", background=True).id,
    }
    lines = [f'"path.{name}" = "{value}"' for name, value in known.items()]
    # The fuzzer could set limits that block all further requests.
    lines += ["[[operations]]", "include-path = '/v1/organization/limits'", "include-method = 'PUT'", "enabled = false"]
    if not is_full:
        lines += ["[[operations]]", f"include-path-regex = '{SAID_ELSEWHERE}'", "phases.coverage.enabled = false"]
    return "\n".join(['hooks = "tests.e2e.schemathesis_hooks"', "[parameters]", *lines])


@pytest.mark.full
def test_no_route_fails_or_answers_what_it_does_not_document(
    stack: Stack, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    is_full = pytestconfig.getoption("--full")
    options = (
        ["--max-examples", "300"]
        if is_full
        else ["--include-path-regex", SOME, "--max-examples", "2", "--generation-deterministic"]
    )
    configuration = tmp_path / "schemathesis.toml"
    with OpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.api_key) as client:
        configuration.write_text(_configuration(client, is_full=is_full))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(configuration)),
        "run",
        f"{stack.api_url}/openapi.json",
        *("--header", f"Authorization: Bearer {stack.api_key}"),
        *("--checks", ",".join(CHECKS)),
        *("--request-timeout", "60"),
        "--continue-on-failure",
        "--no-color",
        *options,
    ]
    env = child_environment({"PYTHONPATH": str(REPOSITORY)})
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
